//! Measures whole pretraining steps without augmentation: both views forward, momentum branch, search, loss, backward, LARS.

use serde_json::{Value, json};

use super::{Case, Options, Unfit, Workload};
use crate::train::{Batch, Crop, Device, Loaded, OnDevice, Sections, Trainer, Trains};

/// Optimiser steps in an epoch, and images, of an imaginary data set. The schedules of a trainer depend on them.
const STEPS_PER_EPOCH: u64 = 100;
const IMAGES: usize = 50_000;

/// A network, and the sizes of its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    Small,
    Resnet18,
    Resnet50,
    VitTiny,
    VitSmall,
}

/// The sizes of a step.
struct Sizes {
    encoder: Value,
    /// Height and width of an image in pixels.
    size: usize,
    batch: usize,
    queue_length: usize,
    /// Width of the projections.
    dim: usize,
    /// Width of the heads' hidden layers.
    hidden: usize,
}

impl Network {
    /// The network of a case that is a training step; None for other cases.
    pub fn of(case: Case) -> Option<Self> {
        match case {
            Case::Small => Some(Network::Small),
            Case::Resnet18 => Some(Network::Resnet18),
            Case::Resnet50 => Some(Network::Resnet50),
            Case::VitTiny => Some(Network::VitTiny),
            Case::VitSmall => Some(Network::VitSmall),
            _ => None,
        }
    }

    fn sizes(self) -> Sizes {
        let small = |encoder| Sizes { encoder, size: 32, batch: 128, queue_length: 16384, dim: 128, hidden: 512 };
        let large = |encoder| Sizes { encoder, size: 224, batch: 8, queue_length: 65536, dim: 256, hidden: 4096 };
        match self {
            Network::Small => small(json!({"arch": "resnet18", "width_multiplier": 0.25, "stem": "cifar"})),
            Network::Resnet18 => small(json!({"arch": "resnet18", "stem": "cifar"})),
            Network::VitTiny => small(json!({"arch": "vit_tiny", "patch_size": 4})),
            Network::Resnet50 => large(json!({"arch": "resnet50"})),
            Network::VitSmall => large(json!({"arch": "vit_small"})),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Network::Small => "ResNet-18 of width 16",
            Network::Resnet18 => "ResNet-18",
            Network::Resnet50 => "ResNet-50",
            Network::VitTiny => "ViT-Tiny, patches of 4",
            Network::VitSmall => "ViT-S/16",
        }
    }

    /// The sections of a spec that the network's training depends on.
    pub fn sections(self, options: &Options) -> Sections {
        let Sizes { encoder, size, batch, queue_length, dim, hidden } = self.sizes();
        let view = json!({"random_resized_crop": {}});
        let sections = json!({
            "augmentations": {"size": size, "view1": view, "view2": view},
            "encoder": encoder,
            "projector": {"layers": 3, "hidden": hidden, "output": dim},
            "predictor": {"layers": 2, "hidden": hidden, "output": dim},
            "method": {
                "name": "snclr",
                "k": options.k.unwrap_or(30),
                "queue_length": options.queue_length.unwrap_or(queue_length),
                "tau": 0.2,
                "exclude_self": false,
            },
            "optimizer": {"name": "lars", "base_lr": 0.1, "weight_decay": 1e-6},
            "epochs": 100,
            "batch_size": options.batch.unwrap_or(batch),
            "precision": options.precision,
        });
        serde_json::from_value(sections).expect("the case is one that a spec may ask for")
    }

    /// A description of a step with its sizes, for people.
    pub fn describe(self, options: &Options) -> String {
        let Sizes { size, batch, queue_length, .. } = self.sizes();
        let (name, queue) = (self.name(), options.queue_length.unwrap_or(queue_length));
        let batch = options.batch.unwrap_or(batch);
        format!("step: {name}, {size}x{size}, batch {batch}, queue {queue}, K {}", options.k.unwrap_or(30))
    }
}

/// A trainer on a device, and the floating-point operations of its model per image.
///
/// # Errors
/// [`Unfit`] when this training is not possible on the device.
pub(super) fn trainer<B: Trains>(on: B, case: Case, sections: &Sections) -> Result<(Trainer<B>, u64), Unfit> {
    let config = sections.config();
    let trainer = Trainer::new(on, &config, STEPS_PER_EPOCH, IMAGES)
        .map_err(|error| Unfit::Training { case, why: format!("{error:#}") })?;
    let flops = trainer.model().flops_per_image(&config);
    Ok((trainer, flops))
}

/// Runs `work` on the process's device, in the precision of `sections`.
///
/// # Errors
/// [`Unfit`] when the device does not support this precision; otherwise the error of `work`.
pub(super) fn on_device<T>(
    case: Case,
    sections: &Sections,
    work: impl OnDevice<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let done = Device::chosen().run(sections.precision, work);
    done.map_err(|error| Unfit::Training { case, why: format!("{error:#}") })?
}

pub(super) fn prepare(case: Case, options: &Options) -> anyhow::Result<Workload> {
    let network = Network::of(case).expect("the case is a training step");
    let sections = network.sections(options);
    on_device(case, &sections, Steps { case, sections: &sections, what: network.describe(options) })
}

/// Prepares steps on one batch, on any device.
struct Steps<'a> {
    case: Case,
    sections: &'a Sections,
    what: String,
}

impl OnDevice for Steps<'_> {
    type Output = anyhow::Result<Workload>;

    fn run<B: Trains>(self, on: B) -> anyhow::Result<Workload> {
        let Self { case, sections, what } = self;
        let (mut trainer, flops) = trainer(on, case, sections)?;
        let (n, size) = (sections.batch_size, sections.augmentations.size as usize);
        // The share of this rank. The values of an image depend only on its place in the batch.
        let own = trainer.on().ranks().share(n);
        let values = own.start * size * size * 3..own.end * size * size * 3;
        let crop = |phase: f32| {
            let images = values.clone().map(|i| ((i % 1_000_003) as f32 * 0.7 + phase).sin()).collect();
            Crop { images, size }
        };
        let batch = Batch { samples: (0..n as i64).collect(), labels: vec![-1; n], crops: vec![crop(0.0), crop(1.0)] };
        // Uploading is not measured here, since a loader uploads images in another form.
        let batch = Loaded::new(trainer.on(), batch)?;
        Ok(Workload::new(what, Some(n), move || trainer.step(&batch).map(drop)).training(flops))
    }
}

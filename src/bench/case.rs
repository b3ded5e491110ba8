//! The list of benchmark cases, by name.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{
    Options, Workload,
    augment::{self, Recipe},
    epoch, knn, probe, queue,
    step::{self, Network},
};

/// A benchmark case: something whose speed is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// Pretraining step: ResNet-18 at a quarter of its width, 32x32, batch 128
    Small,
    /// Pretraining step: ResNet-18, 32x32, batch 128
    Resnet18,
    /// Pretraining step: ResNet-50, 224x224, batch 8, queue 65536
    Resnet50,
    /// Pretraining step: ViT-Tiny with patches of 4, 32x32, batch 128
    #[serde(rename = "vit_tiny")]
    VitTiny,
    /// Pretraining step: ViT-S/16, 224x224, batch 8
    #[serde(rename = "vit_small")]
    VitSmall,
    /// Training as it runs: images from shards, augmentation, and the step of `small`
    Epoch,
    /// Training as it runs: JPEG images from shards, ImageNet's augmentation, and the step of `resnet50`
    EpochImagenet,
    /// The exact K nearest rows of the queue to 256 queries
    Queue,
    /// Both views of CIFAR-10's recipe from PNG bytes, one thread
    AugmentCifar,
    /// Both views of ImageNet's recipe from JPEG bytes, one thread
    AugmentImagenet,
    /// kNN classification: 10000 queries, a bank of 50000, 512 features
    Knn,
    /// Linear probe: trained on 50000, scored on 10000, 512 features
    Probe,
}

impl Case {
    /// All cases, in the order in which they are measured.
    pub const ALL: [Case; 12] = [
        Case::Small,
        Case::Resnet18,
        Case::Resnet50,
        Case::VitTiny,
        Case::VitSmall,
        Case::Epoch,
        Case::EpochImagenet,
        Case::Queue,
        Case::AugmentCifar,
        Case::AugmentImagenet,
        Case::Knn,
        Case::Probe,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Case::Small => "small",
            Case::Resnet18 => "resnet18",
            Case::Resnet50 => "resnet50",
            Case::VitTiny => "vit_tiny",
            Case::VitSmall => "vit_small",
            Case::Epoch => "epoch",
            Case::EpochImagenet => "epoch-imagenet",
            Case::Queue => "queue",
            Case::AugmentCifar => "augment-cifar",
            Case::AugmentImagenet => "augment-imagenet",
            Case::Knn => "knn",
            Case::Probe => "probe",
        }
    }

    /// Whether the case is a pretraining step.
    pub fn is_step(self) -> bool {
        Network::of(self).is_some()
    }

    /// Whether the case takes pretraining steps.
    pub(super) fn trains(self) -> bool {
        self.is_step() || self.loads()
    }

    /// Whether the case loads and augments images in parallel with the steps that train on them.
    pub(super) fn loads(self) -> bool {
        matches!(self, Case::Epoch | Case::EpochImagenet)
    }

    /// Whether the case only augments images.
    pub(super) fn augments(self) -> bool {
        matches!(self, Case::AugmentCifar | Case::AugmentImagenet)
    }

    /// Default number of threads. Augmentation uses one, since its speed is reported per core.
    pub fn threads(self) -> usize {
        match self.augments() {
            true => 1,
            false => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Default number of measured repetitions: a few seconds in total.
    pub fn steps(self) -> usize {
        match self {
            Case::Small | Case::VitTiny | Case::Epoch => 10,
            Case::Resnet18 | Case::Resnet50 | Case::VitSmall | Case::EpochImagenet => 5,
            Case::Queue | Case::AugmentCifar => 20,
            Case::AugmentImagenet => 10,
            Case::Knn | Case::Probe => 3,
        }
    }

    /// Prepares the case, so that it can be measured.
    ///
    /// # Errors
    /// [`Unfit`](super::Unfit) when the case does not accept an option; other errors when its data cannot be made.
    pub fn prepare(self, options: &Options) -> anyhow::Result<Workload> {
        options.check(self)?;
        match self {
            Case::Small | Case::Resnet18 | Case::Resnet50 | Case::VitTiny | Case::VitSmall => {
                step::prepare(self, options)
            }
            Case::Epoch => epoch::prepare(self, Network::Small, Recipe::Cifar, options),
            Case::EpochImagenet => epoch::prepare(self, Network::Resnet50, Recipe::Imagenet, options),
            Case::Queue => queue::prepare(options),
            Case::AugmentCifar => augment::prepare(Recipe::Cifar, options),
            Case::AugmentImagenet => augment::prepare(Recipe::Imagenet, options),
            Case::Knn => Ok(knn::prepare(options)),
            Case::Probe => probe::prepare(),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

//! The embed stages: compute features of both splits by a frozen encoder in eval mode.

use std::path::Path;

use anyhow::{Context, ensure};
use rayon::prelude::*;
use serde::Serialize;

use super::{
    Cost, Depends, Descriptor, Input, Stage, StageContext, Stopped, features,
    frozen::Frozen,
    initial,
    weights::{Tensor, read_weights},
};
use crate::{
    artifact::{Artifact, ArtifactWriter, Kind},
    dataset::{
        Split, SplitName,
        augment::{AugmentationsConfig, EvalSection, EvalTransform},
        shard,
    },
    encoder::EncoderConfig,
    tables::{self, Table, column},
};

/// Pixels per forward pass: enough images to keep every core busy, few enough to keep activations small.
const PIXELS: usize = 1 << 20;

/// The stage that embeds by the trained encoder.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "embed",
    version: 8,
    inputs: &[TRAIN, TEST, Input { stage: Stage::Pretrain, table: tables::WEIGHTS, depends: Depends::All }],
    tables: TABLES,
    cost: COST,
    figures: None,
};

/// The stage that embeds by the encoder with random weights.
pub const CONTROL: Descriptor = Descriptor {
    name: "embed_random_init",
    version: 8,
    inputs: &[TRAIN, TEST],
    tables: TABLES,
    cost: COST,
    figures: None,
};

/// The stage that embeds by the encoder with the weights of `encoder.init`.
pub const INITIAL: Descriptor = Descriptor { name: "embed_initial", version: 4, ..CONTROL };

const TRAIN: Input = images(tables::TRAIN);
const TEST: Input = images(tables::TEST);
const TABLES: &[Table] = &[tables::FEATURES, tables::AUDIT];
const COST: Cost = Cost { of_an_image: &["encoder", "augmentations.size"], grows: &[tables::FEATURES] };

const fn images(table: Table) -> Input {
    Input { stage: Stage::Data, table, depends: Depends::Column(column::CONTENT_HASH) }
}

/// The fields of a spec that features depend on. Features are computed in f32, regardless of the precision of training.
#[derive(Clone, Debug, Serialize)]
pub struct EmbedConfig {
    pub augmentations: EvalSection,
    /// The network, without the fields that only training reads.
    pub encoder: EncoderConfig,
}

impl EmbedConfig {
    /// The part of these sections that features depend on.
    pub fn new(augmentations: &AugmentationsConfig, encoder: &EncoderConfig) -> Self {
        use EncoderConfig::*;
        let mut encoder = encoder.clone();
        match &mut encoder {
            Resnet18(resnet) | Resnet34(resnet) | Resnet50(resnet) | Resnet101(resnet) => resnet.init = None,
            VitTiny(vit) | VitSmall(vit) | VitBase(vit) => (vit.init, vit.stop_grad_patch_embed) = (None, false),
        }
        EmbedConfig { augmentations: augmentations.of_evaluation(), encoder }
    }
}

/// The fields of a spec that the random control depends on.
#[derive(Clone, Debug, Serialize)]
pub struct ControlConfig {
    pub seed: u64,
    #[serde(flatten)]
    pub embed: EmbedConfig,
}

/// The source of the encoder's weights.
#[derive(Clone, Copy, Debug)]
pub enum EncoderFrom<'a> {
    /// A pretrain artifact.
    Pretrained(&'a Artifact),
    /// Random weights of this seed (control), from which pretraining starts unless `encoder.init` is set.
    RandomInit { seed: u64 },
    /// The weights in the file of `encoder.init` (control), from which pretraining starts.
    Initial(&'a Path),
}

impl EncoderFrom<'_> {
    /// The stage that embeds by these weights.
    fn stage(self) -> &'static str {
        match self {
            EncoderFrom::Pretrained(_) => DESCRIPTOR.name,
            EncoderFrom::RandomInit { .. } => CONTROL.name,
            EncoderFrom::Initial(_) => INITIAL.name,
        }
    }
}

/// Writes the features of every sample of `data`.
///
/// Tables: `features`, and `audit` (key, value), which records that the encoder was complete, in eval mode, and did not change
/// from the first image to the last.
///
/// # Errors
/// When the weights are not exactly the encoder's, an image cannot be read, a feature is not finite, the artifacts cannot
/// be read or written, or the user interrupts.
pub fn run(
    config: &EmbedConfig,
    data: &Artifact,
    encoder: EncoderFrom,
    out: &mut ArtifactWriter,
    context: &StageContext,
) -> anyhow::Result<()> {
    let size = config.augmentations.size as usize;
    let (frozen, source) = match encoder {
        EncoderFrom::Pretrained(artifact) => {
            let weights: Vec<Tensor> = read_weights(artifact.read(tables::WEIGHTS.name)?)?;
            (Frozen::load(&config.encoder, size, &weights)?, "pretrained".to_owned())
        }
        EncoderFrom::RandomInit { seed } => {
            (Frozen::random_init(&config.encoder, size, seed)?, format!("initial ones of seed {seed}"))
        }
        // The audit omits the path, which may change; the key holds the content of the file.
        EncoderFrom::Initial(path) => {
            (initial::frozen(&config.encoder, size, path)?, "as encoder.init gives them".to_owned())
        }
    };
    let before = frozen.digest();
    let mut splits = Vec::new();
    for name in SplitName::ALL {
        let shards = data.files_of(&shard::table(name));
        if !shards.is_empty() {
            splits.push((name, Split::open(&shards)?));
        }
    }
    let total: usize = splits.iter().map(|(_, split)| split.len()).sum();
    context.progress.start(Some(total as u64), "images");

    let transform = EvalTransform::new(&config.augmentations);
    let mut table = out.table(tables::FEATURES.name, tables::FEATURES.schema_of_width(frozen.dim()), Kind::Content)?;
    for (name, split) in &splits {
        let labels: Vec<Option<i64>> = (0..split.len()).map(|i| split.label(i)).collect();
        let load = |i: usize, out: &mut [f32]| {
            transform.apply(&split.part(i, |size| (transform.reads(size), ()))?.0, out);
            Ok(())
        };
        embed(&frozen, *name, &labels, size, load, |batch| {
            table.write(batch)?;
            context.progress.advance(batch.num_rows() as u64);
            match context.interrupt.requested() {
                true => Err(Stopped::InterruptedAt { stage: encoder.stage() }.into()),
                false => Ok(()),
            }
        })?;
    }
    table.finish()?;

    let after = frozen.digest();
    ensure!(before == after, "the encoder's weights changed while it was frozen");
    let tensors = frozen.tensors();
    let audit = [
        ("weights", source),
        ("key_coverage", format!("{tensors} tensors of {tensors}, none unexpected")),
        ("mode", "eval: batch norm uses its running statistics".into()),
        ("encoder_sha256_before", before),
        ("encoder_sha256_after", after),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    out.whole(&tables::AUDIT, Kind::Content, &tables::AUDIT.texts_of(&audit))
}

/// Computes the features of a split, and passes them to `sink` in batches. `load(i, out)` puts sample i, normalised, into
/// `out` [size, size, 3].
fn embed(
    frozen: &Frozen,
    split: SplitName,
    labels: &[Option<i64>],
    size: usize,
    load: impl Fn(usize, &mut [f32]) -> anyhow::Result<()> + Sync,
    mut sink: impl FnMut(&arrow::array::RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let per_batch = per_batch(size);
    for (first, labels) in (0..).step_by(per_batch).zip(labels.chunks(per_batch)) {
        let name = |i: usize| format!("{split} sample {}", first + i);
        let rows = forward(frozen, size, labels.len(), |i, out| load(first + i, out), name)?;
        sink(&features::batch(split, first, labels, rows, frozen.dim()))?;
    }
    Ok(())
}

/// Number of images per forward pass, if an image has `size` x `size` pixels.
pub(super) fn per_batch(size: usize) -> usize {
    (PIXELS / (size * size)).clamp(8, 256)
}

/// Features [n, dim] of `n` images. `load(i, out)` puts image i, normalised, into `out` [size, size, 3]. Errors call image i
/// `name(i)`.
pub(super) fn forward(
    frozen: &Frozen,
    size: usize,
    n: usize,
    load: impl Fn(usize, &mut [f32]) -> anyhow::Result<()> + Sync,
    name: impl Fn(usize) -> String + Sync,
) -> anyhow::Result<Vec<f32>> {
    let image = size * size * 3;
    let mut images = vec![0.0; n * image];
    let each = images.par_chunks_mut(image).enumerate();
    each.try_for_each(|(i, out)| load(i, out).with_context(|| name(i)))?;
    let rows = frozen.features_on_device(images, n, size)?;
    if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
        anyhow::bail!("{}: a feature is {}", name(at / frozen.dim()), rows[at]);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::{ResnetConfig, Stem};

    fn frozen() -> Frozen {
        let config = EncoderConfig::Resnet18(ResnetConfig { width_multiplier: 0.0625, stem: Stem::Cifar, init: None });
        Frozen::random_init(&config, 8, 1).unwrap()
    }

    fn load(i: usize, out: &mut [f32]) -> anyhow::Result<()> {
        out.iter_mut().enumerate().for_each(|(j, v)| *v = ((i * 31 + j) as f32 * 0.37).sin());
        Ok(())
    }

    #[test]
    fn every_sample_gets_its_own_features_across_batches() {
        let (frozen, size, n) = (frozen(), 8, 300);
        let labels: Vec<Option<i64>> = (0..n).map(|i| (i % 3 > 0).then_some(i % 3)).collect();
        let mut batches = Vec::new();
        embed(&frozen, SplitName::Train, &labels, size, load, |batch| {
            batches.push(batch.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(batches.len(), 2);
        let read = features::read(batches.into_iter().map(Ok)).unwrap().train;
        assert_eq!((read.ids.len(), &read.labels), (n as usize, &labels));
        for i in [0, 255, 256, 299] {
            let mut image = vec![0.0; size * size * 3];
            load(i, &mut image).unwrap();
            let alone = frozen.features(image, 1, size);
            let (dim, row) = (frozen.dim(), &read.rows[i * frozen.dim()..]);
            assert!(alone.iter().zip(&row[..dim]).all(|(a, b)| (a - b).abs() < 1e-5), "{i}");
        }
    }

    #[test]
    fn bad_images_and_bad_features_name_the_sample() {
        let fails = |i: usize, out: &mut [f32]| match i {
            5 => anyhow::bail!("not an image"),
            i => load(i, out),
        };
        let error = embed(&frozen(), SplitName::Test, &[None; 9], 8, fails, |_| Ok(())).unwrap_err();
        assert_eq!(format!("{error:#}"), "test sample 5: not an image");

        let infinite = |i: usize, out: &mut [f32]| {
            out.fill(if i == 7 { f32::INFINITY } else { 0.5 });
            Ok(())
        };
        let error = embed(&frozen(), SplitName::Test, &[None; 9], 8, infinite, |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("test sample 7: a feature is "), "{error}");
    }
}

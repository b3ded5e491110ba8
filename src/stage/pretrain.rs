//! Pretrain stage: images to a trained encoder.

use super::StageContext;
use crate::{
    artifact::{Artifact, ArtifactWriter},
    dataset::augment::AugmentationsConfig,
    encoder::EncoderConfig,
    method::{MethodConfig, MlpConfig},
    train::{HealthConfig, OptimizerConfig, Precision, ScheduleConfig},
};

/// The sections of a spec that pretraining depends on.
#[derive(Clone, Copy, Debug)]
pub struct PretrainConfig<'a> {
    pub seed: u64,
    pub augmentations: &'a AugmentationsConfig,
    pub encoder: &'a EncoderConfig,
    pub projector: &'a MlpConfig,
    pub predictor: &'a MlpConfig,
    pub method: &'a MethodConfig,
    pub optimizer: &'a OptimizerConfig,
    pub schedule: &'a ScheduleConfig,
    pub epochs: usize,
    pub batch_size: usize,
    pub precision: Precision,
    pub health: &'a HealthConfig,
}

/// Trains the encoder on the training split of `data`.
pub fn run(
    _config: &PretrainConfig,
    _data: &Artifact,
    _out: &mut ArtifactWriter,
    _context: &StageContext,
) -> anyhow::Result<()> {
    todo!()
}

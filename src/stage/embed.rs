//! Embed stage: features of both splits from a frozen encoder in eval mode.

use super::StageContext;
use crate::{
    artifact::{Artifact, ArtifactWriter},
    dataset::augment::AugmentationsConfig,
    encoder::EncoderConfig,
};

/// The sections of a spec that features depend on.
#[derive(Clone, Copy, Debug)]
pub struct EmbedConfig<'a> {
    pub augmentations: &'a AugmentationsConfig,
    pub encoder: &'a EncoderConfig,
}

/// Where the encoder's weights come from.
#[derive(Clone, Copy, Debug)]
pub enum EncoderFrom<'a> {
    /// A pretrain artifact.
    Pretrained(&'a Artifact),
    /// The weights that pretraining with this seed starts from (control).
    RandomInit { seed: u64 },
}

/// Writes the features of every sample of `data`.
pub fn run(
    _config: &EmbedConfig,
    _data: &Artifact,
    _encoder: EncoderFrom,
    _out: &mut ArtifactWriter,
    _context: &StageContext,
) -> anyhow::Result<()> {
    todo!()
}

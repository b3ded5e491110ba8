//! kNN stage: a weighted nearest-neighbour classifier on frozen features.

use super::{KnnConfig, StageContext};
use crate::artifact::{Artifact, ArtifactWriter};

/// Scores the features of `trained`, beside the controls: `random_init` features, and shuffled labels.
pub fn run(
    _config: &KnnConfig,
    _seed: u64,
    _trained: &Artifact,
    _random_init: &Artifact,
    _out: &mut ArtifactWriter,
    _context: &StageContext,
) -> anyhow::Result<()> {
    todo!()
}

//! Data stage: streams a source into Parquet shards with a content hash per row.

use super::StageContext;
use crate::{artifact::ArtifactWriter, dataset::DataConfig};

/// Ingests both splits of `config`.
pub fn run(_config: &DataConfig, _out: &mut ArtifactWriter, _context: &StageContext) -> anyhow::Result<()> {
    todo!()
}

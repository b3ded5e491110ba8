//! From a stage of the plan to the function that does its work.

use std::collections::BTreeMap;

use super::Work;
use crate::{
    artifact::Artifact,
    plan::Stage,
    spec::Experiment,
    stage::{self, embed::EncoderFrom},
};

/// What every stage of `experiment` does.
pub fn stage_work(experiment: &Experiment) -> Box<Work<'_>> {
    let e = experiment;
    let embed_config = stage::embed::EmbedConfig { augmentations: &e.augmentations, encoder: &e.encoder };
    Box::new(move |stage, inputs: &BTreeMap<Stage, Artifact>, out, context| match stage {
        Stage::Data => stage::data::run(&e.data, out, context),
        Stage::Pretrain => stage::pretrain::run(&e.pretrain(), &inputs[&Stage::Data], out, context),
        Stage::Embed => {
            let from = EncoderFrom::Pretrained(&inputs[&Stage::Pretrain]);
            stage::embed::run(&embed_config, &inputs[&Stage::Data], from, out, context)
        }
        Stage::EmbedRandomInit => {
            let from = EncoderFrom::RandomInit { seed: e.seed };
            stage::embed::run(&embed_config, &inputs[&Stage::Data], from, out, context)
        }
        Stage::LinearProbe => {
            let (trained, random_init) = (&inputs[&Stage::Embed], &inputs[&Stage::EmbedRandomInit]);
            stage::linear_probe::run(&e.linear_probe, e.seed, trained, random_init, out, context)
        }
        Stage::Knn => {
            let (trained, random_init) = (&inputs[&Stage::Embed], &inputs[&Stage::EmbedRandomInit]);
            stage::knn::run(&e.knn, e.seed, trained, random_init, out, context)
        }
    })
}

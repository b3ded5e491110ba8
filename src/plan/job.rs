//! Derives the configuration of each stage from an experiment. The key is made from it, and the stage runs with it.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use serde::Serialize;

use crate::{
    artifact::{Artifact, ArtifactWriter},
    spec::Experiment,
    stage::{
        Stage, StageContext,
        data::{self, DataSection},
        embed::{self, ControlConfig, EmbedConfig, EncoderFrom},
        evaluation::Scored,
        knn::{self, KnnSections},
        linear_probe::{self, LinearProbeSections},
        pretrain::{self, PretrainConfig},
    },
};

/// A stage with its configuration. It serialises as the sections of the spec that it reads.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Job<'a> {
    Data(DataSection<'a>),
    Pretrain(PretrainConfig<'a>),
    Embed(EmbedConfig),
    EmbedRandomInit(ControlConfig),
    EmbedInitial(EmbedInitialJob<'a>),
    LinearProbe(LinearProbeSections<'a>),
    Knn(KnnSections<'a>),
}

/// The embedding with the weights that training starts from. The key holds the hash of their file instead of its path.
#[derive(Clone, Debug, Serialize)]
pub struct EmbedInitialJob<'a> {
    #[serde(flatten)]
    embed: EmbedConfig,
    #[serde(skip)]
    path: Option<&'a Path>,
}

/// The features that the evaluation `of` reads; those of the initial weights where the experiment has that stage.
fn scored(of: Stage, inputs: &BTreeMap<Stage, Artifact>) -> Scored<Artifact> {
    let input = |input: Stage| of.readable(input, &inputs[&input]);
    let initial = inputs.get(&Stage::EmbedInitial).map(|_| input(Stage::EmbedInitial));
    Scored { trained: input(Stage::Embed), random_init: input(Stage::EmbedRandomInit), initial }
}

impl<'a> Job<'a> {
    /// The configuration of `stage`: the parts of `experiment` that it reads.
    pub fn new(stage: Stage, experiment: &'a Experiment) -> Self {
        let e = experiment;
        let embed = || EmbedConfig::new(&e.augmentations, &e.encoder);
        match stage {
            Stage::Data => Job::Data(DataSection { data: &e.data }),
            Stage::Pretrain => Job::Pretrain(e.pretrain()),
            Stage::Embed => Job::Embed(embed()),
            Stage::EmbedRandomInit => Job::EmbedRandomInit(ControlConfig { seed: e.seed, embed: embed() }),
            Stage::EmbedInitial => Job::EmbedInitial(EmbedInitialJob { embed: embed(), path: e.encoder.init() }),
            Stage::LinearProbe => Job::LinearProbe(LinearProbeSections { seed: e.seed, linear_probe: &e.linear_probe }),
            Stage::Knn => Job::Knn(KnnSections { seed: e.seed, knn: &e.knn }),
        }
    }

    /// Does the stage's work. It can read only those tables of its inputs that its descriptor names.
    ///
    /// # Errors
    /// What the stage fails with, or why it stopped.
    pub fn run(
        &self,
        inputs: &BTreeMap<Stage, Artifact>,
        out: &mut ArtifactWriter,
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let input = |of: Stage, input: Stage| of.readable(input, &inputs[&input]);
        match self {
            Job::Data(config) => data::run(config.data, out, context),
            Job::Pretrain(config) => pretrain::run(config, &input(Stage::Pretrain, Stage::Data), out, context),
            Job::Embed(config) => {
                let [data, pretrain] = [Stage::Data, Stage::Pretrain].map(|read| input(Stage::Embed, read));
                embed::run(config, &data, EncoderFrom::Pretrained(&pretrain), out, context)
            }
            Job::EmbedRandomInit(ControlConfig { seed, embed }) => {
                let data = input(Stage::EmbedRandomInit, Stage::Data);
                embed::run(embed, &data, EncoderFrom::RandomInit { seed: *seed }, out, context)
            }
            Job::EmbedInitial(EmbedInitialJob { embed, path }) => {
                let path = path.context("the experiment starts from no file of weights")?;
                let data = input(Stage::EmbedInitial, Stage::Data);
                embed::run(embed, &data, EncoderFrom::Initial(path), out, context)
            }
            Job::LinearProbe(LinearProbeSections { seed, linear_probe }) => {
                let scored = scored(Stage::LinearProbe, inputs);
                linear_probe::run(linear_probe, *seed, scored.as_ref(), out, context)
            }
            Job::Knn(KnnSections { seed, knn }) => {
                let scored = scored(Stage::Knn, inputs);
                knn::run(knn, *seed, scored.as_ref(), out, context)
            }
        }
    }
}

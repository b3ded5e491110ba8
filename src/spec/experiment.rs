//! The experiment: every section of a spec in one struct.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    dataset::{DataConfig, augment::AugmentationsConfig},
    encoder::EncoderConfig,
    method::{MethodConfig, MlpConfig},
    stage::{KnnConfig, LinearProbeConfig},
    train::{BatchNormConfig, HealthConfig, OptimizerConfig, Precision, PretrainConfig, ScheduleConfig},
};

/// A self-supervised pretraining experiment with its evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "snclr experiment")]
pub struct Experiment {
    /// Name of the experiment, 200 characters at most; the run's folder bears it.
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"), extend("x-operational" = true))]
    pub name: String,
    /// What the experiment asks, in a sentence or two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-operational" = true))]
    pub description: Option<String>,
    /// Seed of everything random in training: initial weights, order, augmentation, queue.
    #[serde(default)]
    pub seed: u64,
    /// Where the images come from.
    pub data: DataConfig,
    /// What each view goes through.
    pub augmentations: AugmentationsConfig,
    /// Network that is trained and kept.
    pub encoder: EncoderConfig,
    /// Head g on the encoder's features; both branches have one.
    pub projector: MlpConfig,
    /// Head q on the online branch's projections; without it projections are compared themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictor: Option<MlpConfig>,
    /// Self-supervised method.
    pub method: MethodConfig,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Passes over the training images.
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Images per step; the last incomplete batch of an epoch is left out.
    #[schemars(range(min = 2))]
    pub batch_size: usize,
    /// Batches whose gradients are averaged in one step of the optimiser. Each batch is contrasted by itself.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub gradient_accumulation: usize,
    /// Batch norm in training.
    #[serde(default, skip_serializing_if = "BatchNormConfig::is_default")]
    pub batch_norm: BatchNormConfig,
    /// Arithmetic of the encoder.
    #[serde(default)]
    pub precision: Precision,
    /// Diagnostics during training.
    #[serde(default)]
    pub health: HealthConfig,
    /// Linear evaluation.
    #[serde(default)]
    pub linear_probe: LinearProbeConfig,
    /// Nearest-neighbour evaluation.
    #[serde(default)]
    pub knn: KnnConfig,
}

fn one() -> usize {
    1
}

impl Experiment {
    /// The settings that pretraining depends on.
    pub fn pretrain(&self) -> PretrainConfig<'_> {
        PretrainConfig {
            seed: self.seed,
            augmentations: self.augmentations.of_training(),
            encoder: &self.encoder,
            projector: &self.projector,
            predictor: self.predictor.as_ref(),
            method: &self.method,
            optimizer: &self.optimizer,
            schedule: &self.schedule,
            batch_norm: &self.batch_norm,
            epochs: self.epochs,
            batch_size: self.batch_size,
            gradient_accumulation: self.gradient_accumulation,
            precision: self.precision,
            health: &self.health,
        }
    }
}

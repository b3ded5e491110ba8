//! The `linear_probe:` and `knn:` sections of a spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Linear classifier on frozen features, trained with SGD and a cosine schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearProbeConfig {
    /// Passes over the training features.
    #[serde(default = "ninety")]
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Features per step.
    #[serde(default = "probe_batch")]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Learning rate = base_lr * batch_size / 256.
    #[serde(default = "probe_lr")]
    #[schemars(range(min = 0.0))]
    pub base_lr: f64,
    /// Momentum.
    #[serde(default = "nine_tenths")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
    /// Weight decay.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Standardise the features by the training split's mean and standard deviation first, so that one learning rate
    /// suits every encoder.
    #[serde(default = "yes")]
    pub standardize: bool,
}

impl Default for LinearProbeConfig {
    fn default() -> Self {
        LinearProbeConfig {
            epochs: ninety(),
            batch_size: probe_batch(),
            base_lr: probe_lr(),
            momentum: nine_tenths(),
            weight_decay: 0.0,
            standardize: yes(),
        }
    }
}

/// Weighted nearest-neighbour classifier on frozen features (DINO's protocol).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KnnConfig {
    /// Numbers of neighbours; `knn/top1` is the score of the first.
    #[serde(default = "knn_k")]
    #[schemars(length(min = 1), inner(range(min = 1)), extend("uniqueItems" = true))]
    pub k: Vec<usize>,
    /// Temperature of the votes: a neighbour votes exp(cosine / temperature).
    #[serde(default = "knn_temperature")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub temperature: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        KnnConfig { k: knn_k(), temperature: knn_temperature() }
    }
}

fn ninety() -> usize {
    90
}

fn probe_batch() -> usize {
    1024
}

fn probe_lr() -> f64 {
    0.1
}

fn nine_tenths() -> f64 {
    0.9
}

fn yes() -> bool {
    true
}

fn knn_k() -> Vec<usize> {
    vec![20, 10, 100, 200]
}

fn knn_temperature() -> f64 {
    0.07
}

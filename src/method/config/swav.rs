//! `method: {name: swav}`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// SwAV: each crop predicts the cluster assignment of the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SwavConfig {
    /// Number of prototypes.
    #[serde(default = "three_thousand")]
    #[schemars(range(min = 2))]
    pub prototypes: usize,
    /// Temperature tau of the predictions.
    #[serde(default = "one_tenth")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub tau: f64,
    /// Regularisation epsilon of Sinkhorn's assignment.
    #[serde(default = "one_twentieth")]
    #[schemars(range(min = 0.01, max = 1.0))]
    pub epsilon: f64,
    /// Rounds of Sinkhorn's normalisation.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 100))]
    pub sinkhorn_iterations: usize,
    /// Length of each full view's queue of projections that join the assignment; 0 for none.
    #[serde(default)]
    pub queue_length: usize,
    /// Epoch from which the queues are filled; they take part once they are full.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub queue_start_epoch: f64,
    /// Number of epochs for which the prototypes keep their initial values.
    #[serde(default = "one")]
    #[schemars(range(min = 0.0))]
    pub freeze_prototypes_epochs: f64,
}

impl SwavConfig {
    /// The loss if all prototypes have the same probability.
    pub(super) fn uninformative_loss(&self) -> f64 {
        libm::log(self.prototypes as f64)
    }
}

fn three_thousand() -> usize {
    3000
}

fn one_tenth() -> f64 {
    0.1
}

fn one_twentieth() -> f64 {
    0.05
}

fn three() -> usize {
    3
}

fn one() -> f64 {
    1.0
}

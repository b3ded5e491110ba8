//! `method: {name: infonce}` and `method: {name: simclr}`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{default_momentum, one};

/// InfoNCE with a momentum branch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InfonceConfig {
    /// Temperature tau of the logits.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub tau: f64,
    /// Factor on the loss of each direction (MoCo-v3's release uses 2 tau).
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub loss_scale: f64,
    /// Momentum of the exponential moving average at the start; it rises to 1 along a cosine.
    #[serde(default = "default_momentum")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
}

impl InfonceConfig {
    /// The loss if all candidates are equally likely: the sum of two directions with N candidates each.
    pub(super) fn uninformative_loss(&self, n: usize) -> f64 {
        2.0 * self.loss_scale * libm::log(n as f64)
    }
}

/// SimCLR: both views online, the other 2N - 1 projections as candidates of each, no predictor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SimclrConfig {
    /// Temperature tau of the logits.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub tau: f64,
}

impl SimclrConfig {
    /// The loss if all 2N - 1 candidates are equally likely.
    pub(super) fn uninformative_loss(&self, n: usize) -> f64 {
        libm::log((2 * n - 1) as f64)
    }
}

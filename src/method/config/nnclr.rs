//! `method: {name: nnclr}`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Overflow, default_momentum, yes};

/// NNCLR: the nearest row of a queue takes the place of each view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NnclrConfig {
    /// Length of the FIFO queue of projections that the neighbours come from.
    #[schemars(range(min = 1))]
    pub queue_length: usize,
    /// Temperature tau of the logits.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub tau: f64,
    /// What the softmax runs over.
    #[serde(default)]
    pub anchor: Anchor,
    /// Which branch's projections look up their neighbours and fill the queue.
    #[serde(default)]
    pub look_up: LookUp,
    /// What happens to a batch that reaches the end of the queue.
    #[serde(default)]
    pub queue_overflow: Overflow,
    /// Leave earlier copies of the same image out of its neighbours.
    #[serde(default = "yes")]
    pub exclude_self: bool,
    /// Factor on the loss of each direction (the paper takes the mean of both).
    #[serde(default = "half")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub loss_scale: f64,
    /// With `look_up: momentum`: momentum of the exponential moving average at the start; it rises to 1 along a cosine.
    #[serde(default = "default_momentum")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
}

impl NnclrConfig {
    /// The loss if all candidates are equally likely: the sum of two directions with N candidates each.
    pub(super) fn uninformative_loss(&self, n: usize) -> f64 {
        2.0 * self.loss_scale * libm::log(n as f64)
    }
}

fn half() -> f64 {
    0.5
}

/// What NNCLR's softmax runs over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// The batch's predictions, for each neighbour (NNCLR's paper).
    #[default]
    Neighbour,
    /// The batch's neighbours, for each prediction (SNCLR's layout).
    Prediction,
}

/// Which branch NNCLR's neighbours are looked up with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LookUp {
    /// The online branch; there is no other (NNCLR's paper). View 1 fills the queue.
    #[default]
    Online,
    /// A momentum branch, as in SNCLR. View 2 fills the queue.
    Momentum,
}

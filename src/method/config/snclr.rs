//! `method: {name: snclr}`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Overflow, default_momentum, one, yes};

/// SNCLR in the paper's notation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnclrConfig {
    /// K, the number of nearest neighbours that support each view; 0 leaves InfoNCE.
    pub k: usize,
    /// Length of the FIFO queue of momentum projections that neighbours come from.
    #[schemars(range(min = 1))]
    pub queue_length: usize,
    /// Scaling factor gamma of the positiveness: w_i = softmax_i / gamma.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub gamma: f64,
    /// Form of the loss.
    #[serde(default)]
    pub objective: Objective,
    /// Temperature tau of the logits.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub tau: f64,
    /// Where the positiveness comes from.
    #[serde(default)]
    pub attention: Attention,
    /// Feed unit vectors to f1 and f2, as the authors' release does.
    #[serde(default = "yes")]
    pub normalize_attention: bool,
    /// Width of the attention's projections f1 and f2; the projector's output width by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub attention_dim: Option<usize>,
    /// Stop the gradient through the positiveness.
    #[serde(default)]
    pub detach_w: bool,
    /// Set a positiveness of at most 1/K to zero, without renormalising (an option of the authors' release).
    #[serde(default)]
    pub threshold: bool,
    /// What happens to a batch that reaches the end of the queue.
    #[serde(default)]
    pub queue_overflow: Overflow,
    /// Leave earlier copies of the same image out of its neighbours.
    #[serde(default = "yes")]
    pub exclude_self: bool,
    /// Factor on the loss of each direction (MoCo-v3's release uses 2 tau; the paper's formula 1).
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub loss_scale: f64,
    /// Momentum of the exponential moving average at the start; it rises to 1 along a cosine.
    #[serde(default = "default_momentum")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
}

/// Form of SNCLR's loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Logarithm of the weighted sum over the positives (the paper).
    #[default]
    Paper,
    /// Weighted sum of the positives' log-probabilities (the authors' release).
    SoftCe,
}

/// Where SNCLR's positiveness comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// Learned projections f1 and f2 (the paper).
    #[default]
    Learned,
    /// Cosine of y1 and each neighbour (the authors' release).
    Cosine,
    /// 1/K for each neighbour (ablation).
    Uniform,
}

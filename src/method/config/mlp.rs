//! The `projector:` and `predictor:` sections of a spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::yes;

/// A multi-layer perceptron: linear, batch norm and ReLU per hidden layer, then linear and batch norm without affine.
/// The keys after the widths change that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Number of linear layers.
    #[schemars(range(min = 1, max = 8))]
    pub layers: usize,
    /// Width of the hidden layers.
    #[schemars(range(min = 1))]
    pub hidden: usize,
    /// Width of the output.
    #[schemars(range(min = 1))]
    pub output: usize,
    /// Bias in the linear layers.
    #[serde(default)]
    pub bias: bool,
    /// Batch norm in the hidden layers.
    #[serde(default = "yes")]
    pub hidden_batch_norm: bool,
    /// Batch norm behind the last linear layer.
    #[serde(default = "yes")]
    pub last_batch_norm: bool,
    /// Scale and shift in that batch norm.
    #[serde(default)]
    pub last_affine: bool,
}

impl MlpConfig {
    /// The usual MLP of these sizes.
    pub fn of_sizes(layers: usize, hidden: usize, output: usize) -> Self {
        Self { layers, hidden, output, bias: false, hidden_batch_norm: true, last_batch_norm: true, last_affine: false }
    }
}

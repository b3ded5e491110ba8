//! The `method:`, `projector:` and `predictor:` sections of a spec.

mod infonce;
mod mlp;
mod nnclr;
mod snclr;
mod swav;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use infonce::*;
pub use mlp::*;
pub use nnclr::*;
pub use snclr::*;
pub use swav::*;

/// The method and its settings. `name` selects it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum MethodConfig {
    /// InfoNCE with a momentum branch: each view predicts the other among the batch (MoCo-v3's loss).
    Infonce(InfonceConfig),
    /// A Simple Framework for Contrastive Learning of Visual Representations (ICML 2020): InfoNCE without momentum branch.
    Simclr(SimclrConfig),
    /// With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning (ICCV 2021).
    Nnclr(NnclrConfig),
    /// Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (NeurIPS 2020).
    Swav(SwavConfig),
    /// Soft Neighbors are Positive Supporters in Contrastive Visual Representation Learning (ICLR 2023).
    Snclr(SnclrConfig),
}

impl MethodConfig {
    /// The sections that the method called `name` does not take. SimCLR and SwAV compare projections, so they have no predictor.
    /// SimCLR's loss takes exactly two views.
    pub fn not_taken(name: &str) -> &'static [&'static str] {
        match name {
            "simclr" => &["predictor", "augmentations.local_crops"],
            "swav" => &["predictor"],
            _ => &[],
        }
    }

    /// Momentum of the exponential moving average at the start of training; None without a momentum branch.
    pub fn momentum(&self) -> Option<f64> {
        match self {
            MethodConfig::Infonce(config) => Some(config.momentum),
            MethodConfig::Simclr(_) | MethodConfig::Swav(_) => None,
            MethodConfig::Nnclr(config) => (config.look_up == LookUp::Momentum).then_some(config.momentum),
            MethodConfig::Snclr(config) => Some(config.momentum),
        }
    }

    /// The loss of a batch of `n` images if all candidates (for SwAV, all prototypes) are equally likely; None if that is not a
    /// single value.
    pub fn uninformative_loss(&self, n: usize) -> Option<f64> {
        match self {
            MethodConfig::Infonce(config) => Some(config.uninformative_loss(n)),
            MethodConfig::Simclr(config) => Some(config.uninformative_loss(n)),
            MethodConfig::Nnclr(config) => Some(config.uninformative_loss(n)),
            MethodConfig::Swav(config) => Some(config.uninformative_loss()),
            MethodConfig::Snclr(config) => config.uninformative_loss(n),
        }
    }

    /// The positiveness of a neighbour that has `share` of the weight of all neighbours. None without attention over several
    /// neighbours.
    pub fn share_of_positiveness(&self, share: f64) -> Option<f64> {
        match self {
            MethodConfig::Snclr(config) if config.k > 1 && config.attention != Attention::Uniform => {
                Some(share / config.gamma)
            }
            _ => None,
        }
    }
}

/// What happens to a batch that reaches the end of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Go on at the start (first in, first out).
    #[default]
    Wrap,
    /// Write the rows that fit and drop the rest (the authors' release of SNCLR).
    Truncate,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

fn default_momentum() -> f64 {
    0.99
}

//! `method: {name: snclr}`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

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
    /// Where the gradient of the positiveness stops. `none`: nowhere, it reaches f1, f2 and y1. `projection`: at y1, it reaches only f1
    /// and f2. `all`: at once, it reaches nothing. `false` and `true` are older words for `none` and `all`.
    #[serde(default)]
    #[schemars(extend("default" = "none"))]
    pub detach_w: Detach,
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

impl SnclrConfig {
    /// The loss if all candidates are equally likely: the sum of two directions with N (K + 1) candidates each. K + 1 of them are
    /// positives, whose weights sum to 1 + 1 / gamma. None with a threshold, which changes the sum of weights.
    pub(super) fn uninformative_loss(&self, n: usize) -> Option<f64> {
        let (all, weights) = (libm::log((n * (self.k + 1)) as f64), 1.0 + 1.0 / self.gamma);
        let direction = match self.objective {
            _ if self.k == 0 => all,
            _ if self.threshold => return None,
            Objective::Paper => all - libm::log(weights),
            Objective::SoftCe => weights * all,
        };
        Some(2.0 * self.loss_scale * direction)
    }
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

/// Where the gradient of SNCLR's positiveness w stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "DetachWords")]
pub enum Detach {
    /// Nowhere: it reaches f1, f2 and the projection y1.
    #[default]
    None,
    /// At y1: it reaches f1 and f2 alone.
    Projection,
    /// At w: it reaches nothing.
    All,
}

/// The values of [`Detach`] in a spec.
#[derive(Deserialize)]
#[serde(untagged)]
enum DetachWords {
    Flag(bool),
    Name(DetachName),
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum DetachName {
    None,
    Projection,
    All,
}

impl From<DetachWords> for Detach {
    fn from(words: DetachWords) -> Self {
        match words {
            DetachWords::Flag(false) | DetachWords::Name(DetachName::None) => Detach::None,
            DetachWords::Flag(true) | DetachWords::Name(DetachName::All) => Detach::All,
            DetachWords::Name(DetachName::Projection) => Detach::Projection,
        }
    }
}

// The serialised value is part of a training's key. The variants that are older than `projection` therefore keep their older
// words, `false` and `true`.
impl Serialize for Detach {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Detach::None => serializer.serialize_bool(false),
            Detach::Projection => DetachName::Projection.serialize(serializer),
            Detach::All => serializer.serialize_bool(true),
        }
    }
}

impl JsonSchema for Detach {
    fn schema_name() -> Cow<'static, str> {
        "Detach".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Where the gradient of SNCLR's positiveness w stops.",
            "enum": ["none", "projection", "all", false, true]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_words_for_where_the_gradient_stops_mean_the_same_and_make_the_same_key() {
        let read = |text: &str| serde_json::from_str::<Detach>(text);
        for (words, detach, written) in [
            (["\"none\"", "false"], Detach::None, "false"),
            (["\"all\"", "true"], Detach::All, "true"),
            (["\"projection\""; 2], Detach::Projection, "\"projection\""),
        ] {
            for word in words {
                assert_eq!(read(word).unwrap(), detach, "{word}");
            }
            assert_eq!(serde_json::to_string(&detach).unwrap(), written);
            assert_eq!(read(written).unwrap(), detach);
        }
        assert!(read("\"y1\"").is_err());
    }
}

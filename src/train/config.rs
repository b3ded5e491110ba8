//! The `optimizer:`, `schedule:` and `precision:` sections of a spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    dataset::augment::{AugmentationsConfig, TrainingSection},
    encoder::EncoderConfig,
    method::{MethodConfig, MlpConfig},
    ops::matmul::MatmulPrecision,
    rule::Broken,
};

/// Optimiser and its settings. `name` selects it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum OptimizerConfig {
    /// Stochastic gradient descent with momentum; decays tensors of two or more axes.
    Sgd(SgdConfig),
    /// AdamW; decays every tensor.
    Adamw(AdamwConfig),
    /// LARS; tensors of one axis are neither decayed nor scaled.
    Lars(LarsConfig),
}

/// How the learning rate follows from the base learning rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrScaling {
    /// learning rate = base_lr * batch_size / 256.
    #[default]
    Linear,
    /// learning rate = base_lr.
    None,
}

/// SGD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SgdConfig {
    /// Learning rate before `lr_scaling`.
    #[schemars(range(min = 0.0))]
    pub base_lr: f64,
    #[serde(default)]
    pub lr_scaling: LrScaling,
    /// Momentum.
    #[serde(default = "nine_tenths")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
    /// Weight decay.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

/// AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdamwConfig {
    /// Learning rate before `lr_scaling`.
    #[schemars(range(min = 0.0))]
    pub base_lr: f64,
    #[serde(default)]
    pub lr_scaling: LrScaling,
    /// Decay rates of the first and second moment.
    #[serde(default = "adam_betas")]
    #[schemars(extend("items" = { "type": "number", "minimum": 0, "exclusiveMaximum": 1 }))]
    pub betas: [f64; 2],
    /// Term added to the denominator.
    #[serde(default = "adam_eps")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Weight decay.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

/// LARS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LarsConfig {
    /// Learning rate before `lr_scaling`.
    #[schemars(range(min = 0.0))]
    pub base_lr: f64,
    #[serde(default)]
    pub lr_scaling: LrScaling,
    /// Momentum.
    #[serde(default = "nine_tenths")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
    /// Trust coefficient.
    #[serde(default = "lars_eta")]
    #[schemars(range(min = 0.0))]
    pub eta: f64,
    /// Weight decay.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
}

fn nine_tenths() -> f64 {
    0.9
}

fn adam_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn adam_eps() -> f64 {
    1e-8
}

fn lars_eta() -> f64 {
    1e-3
}

/// Learning rate over time: linear warm-up from 0, then half a cosine down to 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Length of the warm-up in epochs.
    #[serde(default)]
    #[schemars(range(min = 0.0))]
    pub warmup_epochs: f64,
}

/// Checks that the training images fill at least one update, which takes `accumulation` batches.
///
/// # Errors
/// When they do not.
pub fn fit_batches(batch: usize, accumulation: usize, images: usize) -> Result<(), Broken> {
    if batch > images {
        return Err(Broken {
            keys: vec!["batch_size", "data.train_images"],
            what: format!("{images} training images do not fill a batch of {batch}"),
            allowed: "batch_size <= data.train_images".to_owned(),
            hint: format!("lower `batch_size` to {images} or less"),
        });
    }
    if batch.saturating_mul(accumulation) > images {
        return Err(Broken {
            keys: vec!["gradient_accumulation", "batch_size", "data.train_images"],
            what: format!("{images} training images do not fill {accumulation} batches of {batch}"),
            allowed: "gradient_accumulation * batch_size <= data.train_images".to_owned(),
            hint: format!("lower `gradient_accumulation` to {} or less", images / batch),
        });
    }
    Ok(())
}

/// Arithmetic of the encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    F32,
    /// 32-bit floating point in memory; in encoder and heads, a GPU's tensor cores read 10 bits of its mantissa. Needs a GPU.
    Tf32,
    /// The factors of the encoder's products are rounded to bf16 (8 bits of mantissa), on a GPU all its activations; sums, parameters,
    /// statistics and everything else are f32. Faster on GPUs, and on CPUs with AMX-BF16 or AVX512-BF16.
    Bf16,
    /// 16-bit floating point in the encoder, with f32 sums, parameters and statistics, and loss scaling. Needs a GPU.
    F16,
}

impl Precision {
    /// The name of the precision, if it needs a GPU.
    pub fn of_gpus(self) -> Option<&'static str> {
        match self {
            Precision::Tf32 => Some("tf32"),
            Precision::F16 => Some("f16"),
            Precision::F32 | Precision::Bf16 => None,
        }
    }

    /// The precision in which the CPU reads the factors of the encoder's matrix products and of the queue's search.
    pub fn matmul(self) -> MatmulPrecision {
        match self {
            Precision::Bf16 => MatmulPrecision::Bf16,
            Precision::F32 | Precision::Tf32 | Precision::F16 => MatmulPrecision::Full,
        }
    }
}

/// Batch norm in training, of encoder and heads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchNormConfig {
    /// Number of images that share batch norm's statistics: the batch of one GPU in a recipe, however many processes train here. By
    /// default all images of a batch share them. A batch must be 1, 2, 4, 8, ... groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2))]
    pub group: Option<usize>,
}

impl BatchNormConfig {
    /// Whether all values are defaults. Then keys are the same as without the section.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Checks that a batch is a power of two of whole groups, as the tree of sums needs.
///
/// # Errors
/// When it does not.
pub fn fit_groups(group: usize, batch: usize) -> Result<(), Broken> {
    if batch.is_multiple_of(group) && (batch / group).is_power_of_two() {
        return Ok(());
    }
    let halves = std::iter::successors(Some(batch), |n| n.is_multiple_of(2).then_some(n / 2));
    let allowed: Vec<String> = halves.filter(|n| *n >= 2).map(|n| n.to_string()).collect();
    Err(Broken {
        keys: vec!["batch_norm.group", "batch_size"],
        what: format!("a batch of {batch} is not 1, 2, 4, 8, ... groups of {group}"),
        allowed: "batch_size = batch_norm.group * a power of two".to_owned(),
        hint: format!("with this `batch_size`, set `batch_norm.group` to {}", allowed.join(" or ")),
    })
}

/// Diagnostics of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthConfig {
    /// Number of steps from one row of health metrics to the next; the first is of step 0.
    #[serde(default = "ten")]
    #[schemars(range(min = 1), extend("x-operational" = true))]
    pub every: usize,
    /// Number of epochs between two measurements of kNN top-1, on a fixed part of both splits; 0 for never.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(extend("x-operational" = true))]
    pub knn_every_epochs: usize,
    /// Stop when the embeddings collapse.
    #[serde(default = "yes")]
    pub stop_on_collapse: bool,
}

impl Default for HealthConfig {
    fn default() -> Self {
        HealthConfig { every: ten(), knn_every_epochs: 0, stop_on_collapse: yes() }
    }
}

// Serialisation leaves out `knn_every_epochs: 0`, the default.
fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn ten() -> usize {
    10
}

fn yes() -> bool {
    true
}

/// The sections of a spec that pretraining depends on. The key of a pretraining holds them in serialised form.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PretrainConfig<'a> {
    pub seed: u64,
    pub augmentations: TrainingSection<'a>,
    pub encoder: &'a EncoderConfig,
    pub projector: &'a MlpConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predictor: Option<&'a MlpConfig>,
    pub method: &'a MethodConfig,
    pub optimizer: &'a OptimizerConfig,
    pub schedule: &'a ScheduleConfig,
    #[serde(skip_serializing_if = "BatchNormConfig::is_default")]
    pub batch_norm: &'a BatchNormConfig,
    pub epochs: usize,
    pub batch_size: usize,
    /// Batches whose gradients are averaged in one step of the optimiser.
    pub gradient_accumulation: usize,
    pub precision: Precision,
    pub health: &'a HealthConfig,
}

/// The same sections as owned values, for benchmarks and tests, which train without a spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sections {
    #[serde(default)]
    pub seed: u64,
    pub augmentations: AugmentationsConfig,
    pub encoder: EncoderConfig,
    pub projector: MlpConfig,
    pub predictor: Option<MlpConfig>,
    pub method: MethodConfig,
    pub optimizer: OptimizerConfig,
    #[serde(default)]
    pub schedule: ScheduleConfig,
    #[serde(default)]
    pub batch_norm: BatchNormConfig,
    pub epochs: usize,
    pub batch_size: usize,
    #[serde(default = "one")]
    pub gradient_accumulation: usize,
    #[serde(default)]
    pub precision: Precision,
    #[serde(default)]
    pub health: HealthConfig,
}

fn one() -> usize {
    1
}

impl Sections {
    pub fn config(&self) -> PretrainConfig<'_> {
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

//! Self-supervised methods: heads, neighbour queue and loss, on encoder outputs. Unaware of encoders and data sets.

mod config;
mod mlp;
mod queue;
mod snclr;

use dfdx::prelude::{OwnedTape, Rank0, Tensor};

pub use config::*;
pub use mlp::Mlp;
pub use queue::TooFewNeighbours;

use crate::ops::{Real, arena::Layout, backend::Backend, leaves::Leaves, named::NamedTensor, seam::Matrix};

/// What a method gets of one training step; both views, N samples, D the projector's output width.
pub struct StepInput<'a, E: Real, D: Backend<E>> {
    /// Online projections y [N, D]; their gradient is taken from the tapes of `z`.
    pub y: [Matrix<E, D>; 2],
    /// Online predictions z = q(y) [N, D], each on the tape that leads back to its features.
    pub z: [Matrix<E, D, OwnedTape<E, D>>; 2],
    /// Projections of the momentum branch [N, D].
    pub momentum: [Vec<E>; 2],
    /// Index of each sample in the data set.
    pub samples: &'a [i64],
    /// Label of each sample, -1 where there is none; for diagnostics only.
    pub labels: &'a [i64],
}

/// What comes out of a training step.
pub struct StepOutput<E: Real, D: Backend<E>> {
    pub loss: Tensor<Rank0, E, D, OwnedTape<E, D>>,
    pub positives: Positives<E>,
}

/// The soft positives of a step; rows are the samples of the first direction, then those of the second.
#[derive(Clone, Debug)]
pub struct Positives<E> {
    pub k: usize,
    /// Positiveness [2N, K].
    pub w: Vec<E>,
    /// Labels of the neighbours [2N, K], -1 where there is none.
    pub neighbour_labels: Vec<i64>,
}

/// A method with its state.
#[derive(Clone, Debug)]
pub enum Method<E> {
    Snclr(snclr::Snclr<E>),
}

impl<E: Real> Method<E> {
    /// Lays out the method's own parameters behind those already in `params`; `dim` is D.
    pub fn new(config: &MethodConfig, dim: usize, seed: u64, params: &mut Layout) -> Self {
        match config {
            MethodConfig::Snclr(config) => Method::Snclr(snclr::Snclr::new(config, dim, seed, params)),
        }
    }

    /// Sets the initial values of the method's own parameters.
    pub fn init(&self, seed: u64, layout: &Layout, params: &mut [E]) {
        match self {
            Method::Snclr(method) => method.init(seed, layout, params),
        }
    }

    /// What a checkpoint must hold beside the parameters.
    pub fn state(&self) -> Vec<NamedTensor<E>> {
        match self {
            Method::Snclr(method) => method.state(),
        }
    }

    /// Takes over what [`Method::state`] gave.
    pub fn restore(&mut self, tensors: &[NamedTensor<E>]) {
        match self {
            Method::Snclr(method) => method.restore(tensors),
        }
    }

    /// One training step.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step<D: Backend<E>>(
        &mut self,
        input: StepInput<E, D>,
        leaves: &Leaves<E, D>,
    ) -> anyhow::Result<StepOutput<E, D>>
    where
        D::Err: Send + Sync,
    {
        match self {
            Method::Snclr(method) => method.step(input, leaves),
        }
    }
}

impl MethodConfig {
    /// Momentum of the exponential moving average at the start of training.
    pub fn momentum(&self) -> f64 {
        match self {
            MethodConfig::Snclr(config) => config.momentum,
        }
    }
}

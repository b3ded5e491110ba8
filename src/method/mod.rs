//! Self-supervised methods: heads, neighbour queue and loss, on encoder outputs. Unaware of encoders and data sets.

mod config;
mod infonce;
mod mlp;
mod nnclr;
mod positives;
mod queue;
mod snclr;
mod swav;
mod views;

pub use config::*;
pub use mlp::Mlp;
pub use positives::Positives;
pub use queue::TooFewNeighbours;

use crate::ops::{
    Real,
    arena::Layout,
    backend::Backend,
    later::Later,
    leaves::Leaves,
    named::NamedTensor,
    product::Products,
    seam::{Matrix, TracedScalar},
};

/// What a method gets of one training step: N samples, D the projector's output width. Crops are the two full views, then
/// the small ones.
pub struct StepInput<'a, E: Real, D: Backend<E>> {
    /// Number of the step.
    pub step: u64,
    /// Epochs before the step, with fraction.
    pub epoch: f64,
    /// Online projections y [N, D] of each crop.
    pub y: Vec<Matrix<E, D>>,
    /// Online predictions z = q(y) [N, D] of each crop; y itself where there is no predictor.
    pub z: Vec<Matrix<E, D>>,
    /// Projections [N, D] of both full views from the momentum branch, where there is one.
    pub momentum: Option<[Matrix<E, D>; 2]>,
    /// Index of each sample in the data set.
    pub samples: &'a [i64],
    /// Label of each sample, -1 where there is none; for diagnostics only.
    pub labels: &'a [i64],
    /// Whether the positives are wanted in full.
    pub diagnose: bool,
}

/// What comes out of a training step.
pub struct StepOutput<E: Real, D: Backend<E>> {
    /// On a tape that leads back to the tensors y and z of the input and to the method's own parameters.
    pub loss: TracedScalar<E, D>,
    pub positives: Later<Positives<E>>,
}

/// A method with its state.
#[derive(Debug)]
pub enum Method<E> {
    Infonce(InfonceConfig),
    Simclr(SimclrConfig),
    Nnclr(nnclr::Nnclr<E>),
    Swav(swav::Swav<E>),
    Snclr(snclr::Snclr<E>),
}

impl<E: Real> Method<E> {
    /// Lays out the method's own parameters behind those already in `params`; `dim` is D.
    pub fn new(config: &MethodConfig, dim: usize, seed: u64, params: &mut Layout) -> Self {
        match config {
            MethodConfig::Infonce(config) => Method::Infonce(config.clone()),
            MethodConfig::Simclr(config) => Method::Simclr(config.clone()),
            MethodConfig::Nnclr(config) => Method::Nnclr(nnclr::Nnclr::new(config, dim, seed)),
            MethodConfig::Swav(config) => Method::Swav(swav::Swav::new(config, dim, seed, params)),
            MethodConfig::Snclr(config) => Method::Snclr(snclr::Snclr::new(config, dim, seed, params)),
        }
    }

    /// Sets the initial values of the method's own parameters.
    pub fn init(&self, seed: u64, layout: &Layout, params: &mut [E]) {
        match self {
            Method::Infonce(_) | Method::Simclr(_) | Method::Nnclr(_) => {}
            Method::Swav(method) => method.init(seed, layout, params),
            Method::Snclr(method) => method.init(seed, layout, params),
        }
    }

    /// Brings the method's own parameters into the form that a step wants.
    pub fn before_step(&self, layout: &Layout, params: &mut [E]) {
        if let Method::Swav(method) = self {
            method.before_step(layout, params);
        }
    }

    /// The entry of the parameters whose rows [`Method::before_step`] brings to unit length, where there is one.
    #[cfg(any(test, feature = "cuda"))]
    pub fn unit_rows(&self) -> Option<usize> {
        match self {
            Method::Swav(method) => Some(method.unit_rows()),
            Method::Infonce(_) | Method::Simclr(_) | Method::Nnclr(_) | Method::Snclr(_) => None,
        }
    }

    /// Has the searches of queues read factors as `products` says.
    pub fn set_products(&mut self, products: Products) {
        match self {
            Method::Nnclr(method) => method.set_products(products),
            Method::Snclr(method) => method.set_products(products),
            // SwAV's queues are multiplied, not searched.
            Method::Infonce(_) | Method::Simclr(_) | Method::Swav(_) => {}
        }
    }

    /// Moves queues to a GPU.
    ///
    /// # Errors
    /// When memory runs out.
    #[cfg(any(test, feature = "cuda"))]
    pub fn move_to(&mut self, gpu: &crate::ops::cuda::Gpu) -> Result<(), crate::ops::cuda::GpuError> {
        match self {
            Method::Nnclr(method) => method.move_to(gpu),
            Method::Snclr(method) => method.move_to(gpu),
            Method::Swav(method) => method.move_to(gpu),
            Method::Infonce(_) | Method::Simclr(_) => Ok(()),
        }
    }

    /// Whether the optimiser moves an entry of the parameters at this time.
    pub fn trains(&self, entry: usize, epoch: f64) -> bool {
        match self {
            Method::Swav(method) => method.trains(entry, epoch),
            Method::Infonce(_) | Method::Simclr(_) | Method::Nnclr(_) | Method::Snclr(_) => true,
        }
    }

    /// What a checkpoint must hold beside the parameters.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> anyhow::Result<Vec<NamedTensor<E>>> {
        match self {
            Method::Infonce(_) | Method::Simclr(_) => Ok(Vec::new()),
            Method::Nnclr(method) => method.state(),
            Method::Swav(method) => method.state(),
            Method::Snclr(method) => method.state(),
        }
    }

    /// Takes over what [`Method::state`] gave.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, tensors: &[NamedTensor<E>]) -> anyhow::Result<()> {
        match self {
            Method::Infonce(_) | Method::Simclr(_) => Ok(()),
            Method::Nnclr(method) => method.restore(tensors),
            Method::Swav(method) => method.restore(tensors),
            Method::Snclr(method) => method.restore(tensors),
        }
    }

    /// One training step.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step<D: Backend<E>>(
        &mut self,
        input: &StepInput<E, D>,
        leaves: &Leaves<E, D>,
    ) -> anyhow::Result<StepOutput<E, D>>
    where
        D::Err: Send + Sync,
    {
        match self {
            Method::Infonce(config) => infonce::step(config, input),
            Method::Simclr(config) => infonce::simclr_step(config, input),
            Method::Nnclr(method) => method.step(input),
            Method::Swav(method) => method.step(input, leaves),
            Method::Snclr(method) => method.step(input, leaves),
        }
    }
}

fn device_error(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error:?}")
}

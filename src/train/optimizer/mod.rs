//! Optimisers over flat buffers, and what follows the parameters: the momentum branch's average of them.

mod adamw;
mod ema;
pub mod gpu;
mod host;
mod lars;
mod sgd;
mod tensor;

#[cfg(test)]
mod tests;

use std::ops::Range;

pub use gpu::Scaling;

use super::{Loaded, OptimizerConfig, StepRow, Trainer, schedule::Due};
use crate::{
    backend::Backend,
    ops::{arena::Layout, named::NamedTensor},
};

/// What an update is given.
pub struct Update<'a, B: Backend> {
    pub params: &'a mut B::Params,
    /// Sum over the gradients of `batches` batches.
    pub gradients: &'a mut B::Buffer,
    pub batches: u64,
    pub learning_rate: f64,
    /// Whether each tensor is moved; neither decay nor momentum moves the others.
    pub trains: Vec<bool>,
    /// What follows in the same pass.
    pub average: Option<Average<'a, B>>,
}

/// The momentum branch's parameters, which move towards the first ones of the online branch: target <- m target + (1 - m) p.
/// Running statistics are not averaged: the momentum branch keeps its own.
pub struct Average<'a, B: Backend> {
    pub target: &'a mut B::Params,
    pub momentum: f64,
}

/// A device that moves parameters.
pub trait Optimize: Backend {
    /// An optimiser with its state.
    type Optimizer;

    /// A fresh optimiser for the parameters of `layout`, of which the first `encoder` are an encoder's.
    fn optimizer(
        &self,
        config: &OptimizerConfig,
        layout: &Layout,
        encoder: usize,
    ) -> Result<Self::Optimizer, Self::Error>;

    /// Moves the parameters by one step, and what follows them.
    fn update(&self, optimizer: &mut Self::Optimizer, update: Update<Self>) -> Result<(), Self::Error>;

    /// Moves an average of parameters that have not moved.
    fn average(&self, params: &Self::Params, average: Average<Self>) -> Result<(), Self::Error>;

    /// Brings rows of `columns` parameters to unit length.
    fn normalize_rows(&self, params: &mut Self::Params, range: Range<usize>, columns: usize)
    -> Result<(), Self::Error>;

    /// Multiplies the gradient of an encoder's features by the loss scale, where there is one.
    fn scale_features(&self, optimizer: &Self::Optimizer, g: &mut Self::Buffer) -> Result<(), Self::Error>;

    /// How loss scaling went; None where there is none. Waits for the device.
    fn scaling(&self, optimizer: &Self::Optimizer) -> Result<Option<Scaling>, Self::Error>;

    /// What a checkpoint must hold; either device goes on from it. Waits for the device.
    fn optimizer_state(&self, optimizer: &Self::Optimizer) -> Result<Vec<NamedTensor<Self::Real>>, Self::Error>;

    /// Takes over what [`Optimize::optimizer_state`] gave; tensors of other names are left alone.
    fn restore_optimizer(
        &self,
        optimizer: &mut Self::Optimizer,
        tensors: &[NamedTensor<Self::Real>],
    ) -> Result<(), Self::Error>;

    /// Calls [`Trainer::step_here`] on the thread that suits the device.
    ///
    /// # Errors
    /// As of [`Trainer::step`].
    fn step(trainer: &mut Trainer<Self>, batch: &Loaded<Self>, due: Due) -> anyhow::Result<Option<StepRow>> {
        trainer.step_here(batch, due)
    }
}

/// Moments per parameter.
fn moments(config: &OptimizerConfig) -> usize {
    match config {
        OptimizerConfig::Sgd(_) | OptimizerConfig::Lars(_) => 1,
        OptimizerConfig::Adamw(_) => 2,
    }
}

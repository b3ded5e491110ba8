//! Optimisers over flat buffers, and the moving average for the momentum branch.

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

use super::{Loaded, OptimizerConfig, StepRow, Trainer, schedule::StepPlan};
use crate::{
    backend::Backend,
    ops::{
        arena::Layout,
        named::{NamedTensor, Values},
    },
};

/// The inputs of an update.
pub struct Update<'a, B: Backend> {
    pub params: &'a mut B::Params,
    /// Sum over the gradients of `batches` batches.
    pub gradients: &'a mut B::Buffer,
    pub batches: u64,
    pub learning_rate: f64,
    /// Whether to update each tensor. The other tensors do not change at all, neither by weight decay nor by momentum.
    pub trains: Vec<bool>,
    /// The average to update in the same pass.
    pub average: Option<Average<'a, B>>,
}

/// The parameters of the momentum branch, which average the first ones of the online branch: target <- m target + (1 - m) p.
/// Running statistics are not averaged: the momentum branch keeps its own.
pub struct Average<'a, B: Backend> {
    pub target: &'a mut B::Params,
    pub momentum: f64,
}

/// A device with optimisers.
pub trait Optimize: Backend {
    /// An optimiser with its state.
    type Optimizer;

    /// A fresh optimiser for the parameters of `layout`. The first `encoder` of them belong to the encoder.
    fn optimizer(
        &self,
        config: &OptimizerConfig,
        layout: &Layout,
        encoder: usize,
    ) -> Result<Self::Optimizer, Self::Error>;

    /// Updates the parameters by one step, and the average.
    fn update(&self, optimizer: &mut Self::Optimizer, update: Update<Self>) -> Result<(), Self::Error>;

    /// Updates only the average, when the parameters have not changed.
    fn average(&self, params: &Self::Params, average: Average<Self>) -> Result<(), Self::Error>;

    /// Scales rows of `columns` parameters to unit length.
    fn normalize_rows(&self, params: &mut Self::Params, range: Range<usize>, columns: usize)
    -> Result<(), Self::Error>;

    /// Multiplies the gradient of an encoder's features by the loss scale, if there is one.
    fn scale_features(&self, optimizer: &Self::Optimizer, g: &mut Self::Buffer) -> Result<(), Self::Error>;

    /// Statistics of loss scaling; None without it. Waits for the device.
    fn scaling(&self, optimizer: &Self::Optimizer) -> Result<Option<Scaling>, Self::Error>;

    /// The state of an optimiser. Waits for the device.
    fn kept(&self, optimizer: &Self::Optimizer) -> Result<Kept<Self::Real>, Self::Error>;

    /// Restores the state of an optimiser. Parts that `kept` lacks stay as they are.
    fn go_on_from(&self, optimizer: &mut Self::Optimizer, kept: Kept<Self::Real>) -> Result<(), Self::Error>;

    /// The state for a checkpoint, which any device can restore. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    fn optimizer_state(&self, optimizer: &Self::Optimizer) -> Result<Vec<NamedTensor<Self::Real>>, Self::Error> {
        Ok(self.kept(optimizer)?.into_tensors())
    }

    /// Restores the state of [`Optimize::optimizer_state`]; ignores tensors of other names.
    ///
    /// # Errors
    /// When the device fails.
    fn restore_optimizer(
        &self,
        optimizer: &mut Self::Optimizer,
        tensors: &[NamedTensor<Self::Real>],
    ) -> Result<(), Self::Error> {
        self.go_on_from(optimizer, Kept::of(tensors))
    }

    /// Calls [`Trainer::step_here`] on the thread that suits the device.
    ///
    /// # Errors
    /// Those of [`Trainer::step`].
    fn step(trainer: &mut Trainer<Self>, batch: &Loaded<Self>, due: StepPlan) -> anyhow::Result<Option<StepRow>> {
        trainer.step_here(batch, due)
    }
}

/// The state of an optimiser.
pub struct Kept<E> {
    /// One or two moments, in the layout of the parameters; None if a checkpoint lacks them.
    moments: [Option<Vec<E>>; 2],
    /// Number of updates so far.
    steps: Option<i64>,
    /// The state of loss scaling, for f16 only.
    loss_scaling: Option<Vec<E>>,
}

const MOMENTS: [&str; 2] = ["optimizer.moment1", "optimizer.moment2"];
const STEPS: &str = "optimizer.steps";
const LOSS_SCALING: &str = "optimizer.loss_scaling";

impl<E: Clone> Kept<E> {
    fn into_tensors(self) -> Vec<NamedTensor<E>> {
        let flat = |name: &str, values: Vec<E>| NamedTensor::real(name, &[values.len()], values);
        let moments = MOMENTS.iter().zip(self.moments).filter_map(|(name, moment)| Some(flat(name, moment?)));
        let steps = self.steps.map(|steps| NamedTensor::integer(STEPS, &[1], vec![steps]));
        let scaling = self.loss_scaling.map(|values| flat(LOSS_SCALING, values));
        moments.chain(steps).chain(scaling).collect()
    }

    fn of(tensors: &[NamedTensor<E>]) -> Self {
        let values = |name: &str| Some(&tensors.iter().find(|tensor| tensor.name == name)?.values);
        let reals = |name: &str| match values(name) {
            Some(Values::Real(values)) => Some(values.clone()),
            _ => None,
        };
        let steps = match values(STEPS) {
            Some(Values::Integer(steps)) => Some(steps[0]),
            _ => None,
        };
        Kept { moments: MOMENTS.map(reals), steps, loss_scaling: reals(LOSS_SCALING) }
    }
}

/// Number of moments per parameter.
fn moments(config: &OptimizerConfig) -> usize {
    match config {
        OptimizerConfig::Sgd(_) | OptimizerConfig::Lars(_) => 1,
        OptimizerConfig::Adamw(_) => 2,
    }
}

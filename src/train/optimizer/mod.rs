//! Optimisers over flat buffers: one pass over parameters, gradients and state, tensor by tensor.

mod adamw;
#[cfg(any(test, feature = "cuda"))]
pub mod cuda;
mod lars;
mod sgd;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::OptimizerConfig;
use crate::ops::{
    Real,
    arena::{Entry, Layout},
    named::{NamedTensor, Values},
};

/// An optimiser with its state.
#[derive(Clone, Debug)]
pub struct Optimizer<E> {
    config: OptimizerConfig,
    /// One or two buffers, laid out like the parameters.
    moments: Vec<Vec<E>>,
    /// Steps taken.
    steps: i64,
}

impl<E: Real> Optimizer<E> {
    /// A fresh optimiser for `len` parameters.
    pub fn new(config: &OptimizerConfig, len: usize) -> Self {
        let buffers = match config {
            OptimizerConfig::Sgd(_) | OptimizerConfig::Lars(_) => 1,
            OptimizerConfig::Adamw(_) => 2,
        };
        Self { config: config.clone(), moments: vec![vec![E::zero(); len]; buffers], steps: 0 }
    }

    /// Moves the parameters by one step at learning rate `lr`. Entries of the layout that `trains` refuses are left alone:
    /// neither decay nor momentum moves them.
    pub fn step(
        &mut self,
        layout: &Layout,
        params: &mut [E],
        gradients: &[E],
        lr: f64,
        trains: impl Fn(usize) -> bool,
    ) {
        self.steps += 1;
        let steps = self.steps as i32;
        let tensors = by_tensor(layout, params, gradients, &mut self.moments);
        let tensors: Vec<_> = tensors.into_iter().enumerate().filter(|(i, _)| trains(*i)).map(|(_, t)| t).collect();
        match &self.config {
            OptimizerConfig::Sgd(config) => {
                tensors.into_par_iter().for_each(|tensor| sgd::step(config, lr, tensor));
            }
            OptimizerConfig::Adamw(config) => {
                tensors.into_par_iter().for_each(|tensor| adamw::step(config, lr, steps, tensor));
            }
            OptimizerConfig::Lars(config) => {
                tensors.into_par_iter().for_each(|tensor| lars::step(config, lr, tensor));
            }
        }
    }

    /// What a checkpoint must hold.
    pub fn state(&self) -> Vec<NamedTensor<E>> {
        let moments = self.moments.iter().enumerate();
        let mut state: Vec<_> = moments
            .map(|(i, m)| NamedTensor::real(format!("optimizer.moment{}", i + 1), &[m.len()], m.clone()))
            .collect();
        state.push(NamedTensor::integer("optimizer.steps", &[1], vec![self.steps]));
        state
    }

    /// Takes over what [`Optimizer::state`] gave; tensors of other names are left alone.
    pub fn restore(&mut self, tensors: &[NamedTensor<E>]) {
        for tensor in tensors {
            match (tensor.name.strip_prefix("optimizer."), &tensor.values) {
                (Some("steps"), Values::Integer(steps)) => self.steps = steps[0],
                (Some("moment1"), Values::Real(moment)) => self.moments[0].clone_from(moment),
                (Some("moment2"), Values::Real(moment)) => self.moments[1].clone_from(moment),
                _ => {}
            }
        }
    }
}

/// One tensor's share of the flat buffers.
struct TensorStep<'a, E> {
    entry: &'a Entry,
    params: &'a mut [E],
    gradients: &'a [E],
    moments: Vec<&'a mut [E]>,
}

impl<E> TensorStep<'_, E> {
    /// Weights have two axes or more; biases and batch norm's parameters have one.
    fn is_weight(&self) -> bool {
        self.entry.shape.len() > 1
    }
}

/// Cuts the flat buffers into tensors.
fn by_tensor<'a, E: Real>(
    layout: &'a Layout,
    mut params: &'a mut [E],
    gradients: &'a [E],
    moments: &'a mut [Vec<E>],
) -> Vec<TensorStep<'a, E>> {
    let mut moments: Vec<&mut [E]> = moments.iter_mut().map(Vec::as_mut_slice).collect();
    let mut steps = Vec::with_capacity(layout.entries.len());
    for entry in &layout.entries {
        let own = params.split_off_mut(..entry.len()).expect("params cover the layout");
        let own_moments =
            moments.iter_mut().map(|m| m.split_off_mut(..entry.len()).expect("moments cover the layout")).collect();
        steps.push(TensorStep { entry, params: own, gradients: &gradients[entry.range()], moments: own_moments });
    }
    steps
}

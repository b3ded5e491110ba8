//! Optimisers on the host: one pass over parameters, gradients and state, tensor by tensor.

use std::{convert::Infallible, ops::Range};

use dfdx::prelude::Cpu;
use rayon::prelude::*;

use super::{Average, Optimize, Scaling, Update, adamw, ema::ema, lars, moments, sgd, tensor::by_tensor};
use crate::{
    backend::Host,
    ops::{
        Real,
        arena::Layout,
        buffers::Buffer,
        named::{NamedTensor, Values},
        normalize,
        tensor::CpuTensors,
    },
    train::{Loaded, OptimizerConfig, StepRow, Trainer, schedule::Due},
};

/// An optimiser with its state.
#[derive(Clone, Debug)]
pub struct Optimizer<E> {
    config: OptimizerConfig,
    layout: Layout,
    /// One or two buffers, laid out like the parameters.
    moments: Vec<Vec<E>>,
    /// Steps taken.
    steps: i64,
}

impl<E: Real> Optimizer<E> {
    /// A fresh optimiser for the parameters of `layout`.
    pub fn new(config: &OptimizerConfig, layout: &Layout) -> Self {
        let moments = vec![vec![E::zero(); layout.len()]; moments(config)];
        Self { config: config.clone(), layout: layout.clone(), moments, steps: 0 }
    }

    /// Moves the parameters by one step at learning rate `lr`. Tensors that `trains` refuses are left alone: neither decay nor
    /// momentum moves them.
    pub fn step(&mut self, params: &mut [E], gradients: &[E], lr: f64, trains: &[bool]) {
        self.steps += 1;
        let steps = self.steps as i32;
        let tensors = by_tensor(&self.layout, params, gradients, &mut self.moments);
        let tensors: Vec<_> =
            tensors.into_iter().zip(trains).filter(|(_, moves)| **moves).map(|(tensor, _)| tensor).collect();
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

impl<E: Real> Optimize for Host<E>
where
    Cpu: CpuTensors<E>,
{
    type Optimizer = Optimizer<E>;

    fn optimizer(&self, config: &OptimizerConfig, layout: &Layout, _: usize) -> Result<Optimizer<E>, Infallible> {
        Ok(Optimizer::new(config, layout))
    }

    fn update(&self, optimizer: &mut Optimizer<E>, update: Update<Self>) -> Result<(), Infallible> {
        let Update { params, gradients, batches, learning_rate, trains, average } = update;
        if batches > 1 {
            let share = E::of(1.0 / batches as f64);
            gradients.iter_mut().for_each(|g| *g *= share);
        }
        optimizer.step(params, gradients, learning_rate, &trains);
        average.map_or(Ok(()), |average| self.average(params, average))
    }

    fn average(&self, params: &Vec<E>, average: Average<Self>) -> Result<(), Infallible> {
        let shared = average.target.len();
        ema(average.target, &params[..shared], average.momentum);
        Ok(())
    }

    fn normalize_rows(&self, params: &mut Vec<E>, range: Range<usize>, columns: usize) -> Result<(), Infallible> {
        normalize::normalize_rows(&mut params[range], columns);
        Ok(())
    }

    fn scale_features(&self, _: &Optimizer<E>, _: &mut Buffer<E>) -> Result<(), Infallible> {
        Ok(())
    }

    fn scaling(&self, _: &Optimizer<E>) -> Result<Option<Scaling>, Infallible> {
        Ok(None)
    }

    fn optimizer_state(&self, optimizer: &Optimizer<E>) -> Result<Vec<NamedTensor<E>>, Infallible> {
        Ok(optimizer.state())
    }

    fn restore_optimizer(&self, optimizer: &mut Optimizer<E>, tensors: &[NamedTensor<E>]) -> Result<(), Infallible> {
        optimizer.restore(tensors);
        Ok(())
    }

    /// On one of rayon's own threads: from outside, every parallel loop would have to wake one and wait for it.
    fn step(trainer: &mut Trainer<Self>, batch: &Loaded<Self>, due: Due) -> anyhow::Result<Option<StepRow>> {
        rayon::scope(|_| trainer.step_here(batch, due))
    }
}

//! Optimisers on the host: one pass over parameters, gradients and state, tensor by tensor.

use std::{convert::Infallible, ops::Range};

use dfdx::prelude::Cpu;
use rayon::prelude::*;

use super::{Average, Kept, Optimize, Scaling, Update, adamw, ema::ema, lars, moments, sgd, tensor::by_tensor};
use crate::{
    backend::Host,
    ops::{Real, arena::Layout, buffers::Buffer, normalize, tensor::CpuTensors},
    train::{Loaded, OptimizerConfig, StepRow, Trainer, schedule::StepPlan},
};

/// An optimiser with its state.
#[derive(Clone, Debug)]
pub struct Optimizer<E> {
    config: OptimizerConfig,
    layout: Layout,
    /// One or two moments, in the layout of the parameters.
    moments: Vec<Vec<E>>,
    /// Number of steps so far.
    steps: i64,
}

impl<E: Real> Optimizer<E> {
    /// A fresh optimiser for the parameters of `layout`.
    pub fn new(config: &OptimizerConfig, layout: &Layout) -> Self {
        let moments = vec![vec![E::zero(); layout.len()]; moments(config)];
        Self { config: config.clone(), layout: layout.clone(), moments, steps: 0 }
    }

    /// Updates the parameters by one step at learning rate `lr`. Tensors for which `trains` is false do not change at all,
    /// neither by weight decay nor by momentum.
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

    fn kept(&self, optimizer: &Optimizer<E>) -> Result<Kept<E>, Infallible> {
        let moment = |i: usize| optimizer.moments.get(i).cloned();
        Ok(Kept { moments: [moment(0), moment(1)], steps: Some(optimizer.steps), loss_scaling: None })
    }

    fn go_on_from(&self, optimizer: &mut Optimizer<E>, kept: Kept<E>) -> Result<(), Infallible> {
        for (own, moment) in optimizer.moments.iter_mut().zip(kept.moments) {
            *own = moment.unwrap_or_else(|| std::mem::take(own));
        }
        optimizer.steps = kept.steps.unwrap_or(optimizer.steps);
        Ok(())
    }

    /// Runs the step on a thread of rayon. From another thread, every parallel loop would have to wake a rayon thread and wait
    /// for it.
    fn step(trainer: &mut Trainer<Self>, batch: &Loaded<Self>, due: StepPlan) -> anyhow::Result<Option<StepRow>> {
        rayon::scope(|_| trainer.step_here(batch, due))
    }
}

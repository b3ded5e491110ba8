//! The self-supervised methods: heads, queue of neighbours, and loss. Their input is the output of encoders; they know neither
//! encoders nor data sets.

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
pub use mlp::{Mlp, SavedMlp};
pub use positives::Positives;
pub use queue::TooFewNeighbours;

use std::ops::Range;

use dfdx::prelude::{Gradients, OwnedTape, SplitTape, Trace};

use crate::{
    backend::{Backend, Memory},
    ops::{
        arena::Layout,
        matmul::MatmulPrecision,
        pending::Pending,
        tensor::{self, Traced, TracedScalar, device_error},
    },
};
use queue::Queue;

/// Rows [N, D] on the losses' device.
pub use crate::backend::RowsOf as Rows;

/// Rows on a tape.
type TracedRows<B> = tensor::TracedRows<<B as Memory>::Real, <B as Memory>::Tensors>;
/// A matrix on its tape, for operations of dfdx.
type TracedMatrix<B> = Traced<<B as Memory>::Real, <B as Memory>::Tensors>;
/// A loss on its tape.
type Loss<B> = TracedScalar<<B as Memory>::Real, <B as Memory>::Tensors>;
/// The error of the losses' device.
type TensorError<B> = <<B as Memory>::Tensors as dfdx::prelude::HasErr>::Err;

/// The inputs of a training step. N is the number of samples, D the output width of the projector. Crops are the two full
/// views, then the small ones.
pub struct StepInput<'a, B: Backend> {
    /// Number of the step.
    pub step: u64,
    /// Epochs before the step, with fraction.
    pub epoch: f64,
    /// Online projections y [N, D] of each crop.
    pub y: Vec<Rows<B>>,
    /// Online predictions z = q(y) [N, D] of each crop; y itself without a predictor.
    pub z: Vec<Rows<B>>,
    /// Projections [N, D] of both full views from the momentum branch, if there is one.
    pub momentum: Option<[Rows<B>; 2]>,
    /// Index of each sample in the data set.
    pub samples: &'a [i64],
    /// Label of each sample, -1 if it has none; for diagnostics only.
    pub labels: &'a [i64],
    /// Whether to return the positives in full.
    pub diagnose: bool,
}

/// The outputs of a training step.
pub struct StepOutput<B: Backend> {
    /// The loss, on a tape that leads back to y and z of the input and to the method's own parameters.
    pub loss: Loss<B>,
    pub positives: Pending<Positives<B::Real>>,
}

/// The method's own parameters as tensors on the losses' tape.
pub struct OwnParams<B: Backend> {
    /// Index of the first one in all parameters.
    first: usize,
    tensors: Vec<Rows<B>>,
}

impl<B: Backend> OwnParams<B> {
    /// Makes tensors from `entries` of `params`. Each entry must have two axes.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(on: &B, layout: &Layout, params: &B::Params, entries: Range<usize>) -> anyhow::Result<Self> {
        let first = entries.start;
        let tensor = |entry: usize| {
            let entry = &layout.entries[entry];
            on.weight(params, entry.range(), (entry.shape[0], entry.shape[1]))
        };
        Ok(Self { first, tensors: entries.map(tensor).collect::<Result<_, _>>()? })
    }

    /// The values of a parameter.
    fn values(&self, entry: usize) -> &Rows<B> {
        &self.tensors[entry - self.first]
    }

    /// A parameter, traced.
    fn get(&self, entry: usize) -> TracedRows<B> {
        self.values(entry).clone().traced()
    }

    /// A tape on which the gradients of these parameters start from their values in `totals`, the gradients of all parameters.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn tape(&self, on: &B, layout: &Layout, totals: &B::Buffer) -> anyhow::Result<OwnedTape<B::Real, B::Tensors>> {
        let mut gradients = Gradients::leaky();
        for (entry, tensor) in layout.entries[self.first..].iter().zip(&self.tensors) {
            on.begin_gradient(&mut gradients, tensor, totals, entry.range())?;
        }
        Ok(match self.tensors.first() {
            Some(rows) => rows.tensor().trace(gradients).split_tape().1,
            None => OwnedTape::default(),
        })
    }

    /// Copies the gradients of these parameters from a tape of [`OwnParams::tape`] back into `totals`.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn put_gradients(
        &self,
        on: &B,
        layout: &Layout,
        gradients: &mut Gradients<B::Real, B::Tensors>,
        totals: &mut B::Buffer,
    ) -> anyhow::Result<()> {
        for (entry, tensor) in layout.entries[self.first..].iter().zip(&self.tensors) {
            on.put(totals, entry.range(), &on.gradient(gradients, tensor)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
impl<E: crate::ops::Real> OwnParams<crate::backend::Host<E>>
where
    dfdx::prelude::Cpu: crate::ops::tensor::CpuTensors<E>,
{
    /// All of `params` on the host.
    fn all(layout: &Layout, params: &[E]) -> Self {
        let entries = 0..layout.entries.len();
        Self::new(&crate::backend::Host::default(), layout, &params.to_vec(), entries).unwrap()
    }

    /// The gradients of the parameters.
    fn gradients(&self, layout: &Layout, gradients: &mut Gradients<E, dfdx::prelude::Cpu>) -> Vec<E> {
        let mut totals = vec![E::nan(); layout.len()].into();
        self.put_gradients(&crate::backend::Host::default(), layout, gradients, &mut totals).unwrap();
        totals.to_vec()
    }
}

/// A method with its state.
pub enum Method<B: Backend> {
    Infonce(InfonceConfig),
    Simclr(SimclrConfig),
    Nnclr(nnclr::Nnclr<B>),
    Swav(swav::Swav<B>),
    Snclr(snclr::Snclr<B>),
}

impl<B: Backend> Method<B> {
    /// Makes the method, and appends its own parameters to `params`; `dim` is D. `matmul` is the precision of searches in
    /// queues.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(
        on: &B,
        config: &MethodConfig,
        dim: usize,
        seed: u64,
        matmul: MatmulPrecision,
        params: &mut Layout,
    ) -> Result<Self, B::Error> {
        let queue = |name, length| Queue::new(on, name, [length, dim], seed, matmul);
        Ok(match config {
            MethodConfig::Infonce(config) => Method::Infonce(config.clone()),
            MethodConfig::Simclr(config) => Method::Simclr(config.clone()),
            MethodConfig::Nnclr(config) => {
                Method::Nnclr(nnclr::Nnclr { config: config.clone(), queue: queue("queue", config.queue_length)? })
            }
            MethodConfig::Swav(config) => {
                let names = if config.queue_length > 0 { &["queue1", "queue2"][..] } else { &[] };
                let queues = names.iter().map(|name| queue(name, config.queue_length)).collect::<Result<_, _>>()?;
                Method::Swav(swav::Swav::new(config, dim, queues, params))
            }
            MethodConfig::Snclr(config) => {
                Method::Snclr(snclr::Snclr::new(config, dim, queue("queue", config.queue_length)?, params))
            }
        })
    }

    /// The method's queues.
    pub fn queues(&self) -> &[Queue<B>] {
        match self {
            Method::Infonce(_) | Method::Simclr(_) => &[],
            Method::Nnclr(method) => std::slice::from_ref(&method.queue),
            Method::Snclr(method) => std::slice::from_ref(&method.queue),
            Method::Swav(method) => &method.queues,
        }
    }

    /// The method's queues, mutable.
    pub fn queues_mut(&mut self) -> &mut [Queue<B>] {
        match self {
            Method::Infonce(_) | Method::Simclr(_) => &mut [],
            Method::Nnclr(method) => std::slice::from_mut(&mut method.queue),
            Method::Snclr(method) => std::slice::from_mut(&mut method.queue),
            Method::Swav(method) => &mut method.queues,
        }
    }

    /// Sets the initial values of the method's own parameters.
    pub fn init(&self, seed: u64, layout: &Layout, params: &mut [B::Real]) {
        match self {
            Method::Infonce(_) | Method::Simclr(_) | Method::Nnclr(_) => {}
            Method::Swav(method) => method.init(seed, layout, params),
            Method::Snclr(method) => method.init(seed, layout, params),
        }
    }

    /// The entry of the parameters whose rows are scaled to unit length at the start of each step, if there is one.
    pub fn unit_rows(&self) -> Option<usize> {
        match self {
            Method::Swav(method) => Some(method.prototypes),
            Method::Infonce(_) | Method::Simclr(_) | Method::Nnclr(_) | Method::Snclr(_) => None,
        }
    }

    /// Whether the optimiser updates an entry of the parameters in this epoch.
    pub fn trains(&self, entry: usize, epoch: f64) -> bool {
        match self {
            Method::Swav(method) => method.trains(entry, epoch),
            Method::Infonce(_) | Method::Simclr(_) | Method::Nnclr(_) | Method::Snclr(_) => true,
        }
    }

    /// One training step.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step(&mut self, on: &B, input: &StepInput<B>, params: &OwnParams<B>) -> anyhow::Result<StepOutput<B>> {
        match self {
            Method::Infonce(config) => infonce::step(on, config, input),
            Method::Simclr(config) => infonce::simclr_step(config, input),
            Method::Nnclr(method) => method.step(on, input),
            Method::Swav(method) => method.step(on, input, params),
            Method::Snclr(method) => method.step(on, input, params),
        }
    }
}

#[cfg(test)]
mod tests {
    use dfdx::prelude::{AsArray, Cpu, TensorFromVec};
    use serde_json::json;

    use super::*;
    use crate::backend::Host;

    /// Runs two steps with identical embeddings for all images. In the second step, the queue is full of them too.
    #[test]
    fn embeddings_that_are_all_alike_have_the_uninformative_loss() {
        const N: usize = 6;
        let queue = |more: serde_json::Value| {
            let mut method = json!({"queue_length": N, "tau": 0.2, "exclude_self": false, "loss_scale": 0.4});
            method.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            method
        };
        let cases = [
            json!({"name": "infonce", "tau": 0.2, "loss_scale": 0.4}),
            json!({"name": "simclr", "tau": 0.2}),
            // With so large a tau, the scores of all prototypes are equal.
            json!({"name": "swav", "prototypes": 12, "tau": 1e12}),
            queue(json!({"name": "nnclr"})),
            queue(json!({"name": "snclr", "k": 0})),
            queue(json!({"name": "snclr", "k": 3, "gamma": 2.0})),
            queue(json!({"name": "snclr", "k": 3, "gamma": 0.5, "objective": "soft_ce", "attention": "cosine"})),
        ];
        for case in cases {
            let config: MethodConfig = serde_json::from_value(case.clone()).unwrap();
            let (on, mut layout) = (Host::<f64>::default(), Layout::default());
            let Ok(mut method) = Method::new(&on, &config, 4, 0, MatmulPrecision::Full, &mut layout);
            let mut params = vec![0.0; layout.len()];
            method.init(0, &layout, &mut params);
            let own = OwnParams::all(&layout, &params);
            let rows = || {
                let values = [0.1, -0.7, 0.4, 0.2].repeat(N);
                Rows::<Host<f64>>::of(Cpu::default().tensor_from_vec(values, (N, 4))).unwrap()
            };
            let mut step = || {
                let input = StepInput {
                    step: 0,
                    epoch: 0.0,
                    y: vec![rows(), rows()],
                    z: vec![rows(), rows()],
                    momentum: Some([rows(), rows()]),
                    samples: &[0, 1, 2, 3, 4, 5],
                    labels: &[-1; N],
                    diagnose: false,
                };
                method.step(&on, &input, &own).unwrap().loss.array()
            };
            step();
            let (loss, expected) = (step(), config.uninformative_loss(N).unwrap());
            assert!((loss - expected).abs() < 1e-9, "{case}: {loss}, not {expected}");
        }
    }
}

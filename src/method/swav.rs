//! SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al., NeurIPS 2020).
//!
//! Notation of the paper: z is the projection of a crop at unit length, C the prototypes [P, D] at unit length, q the code of a
//! full view (its assignment to the prototypes), and p = softmax(z C^T / tau) the prediction of a crop. N is the batch size.

use dfdx::prelude::*;

use super::{
    Loss as Scalar, Overflow, OwnParams, Positives, Rows, StepInput, StepOutput, SwavConfig, TensorError, device_error,
    queue::{Origin, Queue},
};
use crate::{
    backend::{Backend, Memory},
    ops::{
        Number,
        arena::Layout,
        normalize::normalize_rows,
        pending::Pending,
        random::{Normals, Purpose, stream},
        sinkhorn::Sinkhorn,
        tensor::{Matrix, TensorDevice, linear, normalize},
    },
};

/// A matrix of codes, for operations of dfdx.
type MatrixOf<B> = Matrix<<B as Memory>::Real, <B as Memory>::Tensors>;

/// A loss, and the codes q [N, P] of both full views.
type Loss<B> = (Scalar<B>, [MatrixOf<B>; 2]);

/// Rows [M, D] of the queue of each full view, if it takes part in the codes.
type Queued<B> = [Option<Rows<B>>; 2];

/// The settings of the method, the entry of the prototypes C in the parameters, and the queue of each full view, if there are
/// queues.
pub struct Swav<B: Backend> {
    config: SwavConfig,
    dim: usize,
    pub prototypes: usize,
    pub queues: Vec<Queue<B>>,
}

impl<B: Backend> Swav<B> {
    /// Makes the method, and appends the prototypes to the parameters. `dim` is D.
    pub fn new(config: &SwavConfig, dim: usize, queues: Vec<Queue<B>>, params: &mut Layout) -> Self {
        let prototypes = params.push("prototypes.weight", &[config.prototypes, dim]);
        Self { config: config.clone(), dim, prototypes, queues }
    }

    /// Initial prototypes, spread uniformly over the sphere.
    pub fn init(&self, seed: u64, layout: &Layout, params: &mut [B::Real]) {
        let prototypes = &mut params[layout.entries[self.prototypes].range()];
        let mut normals = Normals::of(stream(seed, Purpose::Init, self.prototypes as u64, 2, 0));
        prototypes.fill_with(|| B::Real::of(normals.draw()));
        normalize_rows(prototypes, self.dim);
    }

    /// Whether the optimiser updates an entry of the parameters in this epoch.
    pub fn trains(&self, entry: usize, epoch: f64) -> bool {
        entry != self.prototypes || epoch >= self.config.freeze_prototypes_epochs
    }

    /// One training step. It computes the codes of both full views and the swapped prediction, then adds the batch to the
    /// queues.
    ///
    /// L = -(1/2) sum over full views i of the mean over the other crops v of (1/N) sum_n q_i . log p_v.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self, on: &B, input: &StepInput<B>, params: &OwnParams<B>) -> anyhow::Result<StepOutput<B>> {
        let queued = self.queued(on)?;
        let (loss, codes) = self.loss(&input.z, params, queued).map_err(device_error)?;
        if input.epoch >= self.config.queue_start_epoch {
            let origin = Origin { samples: input.samples, labels: input.labels, step: input.step };
            for (queue, z) in self.queues.iter_mut().zip(&input.z) {
                queue.enqueue(on, z, origin, Overflow::Wrap)?;
            }
        }
        let [code1, code2] = [&codes[0], &codes[1]].map(B::Tensors::read_later);
        let (code1, code2) = (code1.map_err(device_error)?, code2.map_err(device_error)?);
        let (prototypes, labels, diagnose) = (self.config.prototypes, input.labels.to_vec(), input.diagnose);
        let positives =
            move || Ok(Positives::from_codes([code2.wait()?, code1.wait()?], prototypes, &labels, diagnose));
        Ok(StepOutput { loss, positives: Pending::new(positives) })
    }

    /// The rows of the queues. A queue takes part once it is full.
    fn queued(&self, on: &B) -> anyhow::Result<Queued<B>> {
        let rows = |view: usize| {
            let full = self.queues.get(view).filter(|queue| queue.is_full());
            full.map(|queue| queue.all(on)).transpose()
        };
        Ok([rows(0)?, rows(1)?])
    }

    /// The loss, and the codes q [N, P] of both full views.
    fn loss(&self, z: &[Rows<B>], params: &OwnParams<B>, queued: Queued<B>) -> Result<Loss<B>, TensorError<B>> {
        let crops = z.len();
        let prototypes = params.values(self.prototypes);
        let mut scores = Vec::with_capacity(crops);
        for z in z {
            scores.push(linear(normalize(z.clone().traced())?, params.get(self.prototypes))?.split_tape());
        }
        let [first, second] = queued;
        let codes = [
            self.code(&scores[0].0, first.as_ref(), prototypes)?,
            self.code(&scores[1].0, second.as_ref(), prototypes)?,
        ];

        // Every crop predicts the codes of the full views other than itself.
        let share = B::Real::of(1.0 / (2 * (crops - 1)) as f64);
        let mut total: Option<Scalar<B>> = None;
        for (crop, (scores, tape)) in scores.into_iter().enumerate() {
            let q = match crop {
                0 => codes[1].clone(),
                1 => codes[0].clone(),
                _ => codes[0].clone().try_add(codes[1].clone())?,
            };
            let loss = B::Tensors::cross_entropy(scores.put_tape(tape).into_tensor(), q, self.config.tau)?;
            let loss = B::Tensors::batch_mean(loss)?.try_mul(share)?;
            total = Some(match total {
                Some(total) => total.try_add(loss)?,
                None => loss,
            });
        }
        Ok((total.expect("there are two views"), codes))
    }

    /// The code q [N, P] of a full view's scores, normalised together with those of its queue's rows.
    fn code(
        &self,
        scores: &Rows<B>,
        queued: Option<&Rows<B>>,
        prototypes: &Rows<B>,
    ) -> Result<MatrixOf<B>, TensorError<B>> {
        let beside = queued.map(|rows| B::Tensors::linear_forward(rows, prototypes)).transpose()?;
        let settings = Sinkhorn { epsilon: self.config.epsilon, iterations: self.config.sinkhorn_iterations };
        B::Tensors::assign(scores, beside.as_ref(), settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{Gpu, Host},
        ops::{
            conv2d::cuda::Math,
            cuda::testing::on_every_gpu,
            golden::{Golden, assert_close, tolerance},
            matmul::MatmulPrecision,
        },
    };

    type Found<E> = (f64, Vec<Vec<E>>, [Vec<E>; 2]);

    /// A golden case's loss, its gradients with respect to crops and prototypes, and the codes.
    fn run<B: Backend>(on: &B, golden: &Golden, crops: &[&str], queue_length: usize) -> Found<B::Real> {
        let config = SwavConfig {
            prototypes: 5,
            tau: 0.1,
            epsilon: 0.05,
            sinkhorn_iterations: 3,
            queue_length,
            queue_start_epoch: 0.0,
            freeze_prototypes_epochs: 0.0,
        };
        let matrix = |name: &str, rows: usize| {
            on.rows(&on.buffer(golden.get(&format!("in.{name}"))).unwrap(), (rows, 8)).unwrap()
        };
        let mut layout = Layout::default();
        let names = if queue_length > 0 { &["queue1", "queue2"][..] } else { &[] };
        let queues =
            names.iter().map(|name| Queue::new(on, name, [queue_length, 8], 0, MatmulPrecision::Full).unwrap());
        let mut method = Swav::new(&config, 8, queues.collect(), &mut layout);
        for queue in &mut method.queues {
            let origin = Origin { samples: &[1; 32], labels: &[-1; 32], step: 0 };
            queue.enqueue(on, &matrix("queue", 32), origin, Overflow::Wrap).unwrap();
        }
        let params = on.params(golden.get("in.protos"), 0).unwrap();
        let own = OwnParams::new(on, &layout, &params, 0..1).unwrap();
        let z: Vec<Rows<B>> = crops.iter().map(|c| matrix(c, 6)).collect();
        let (loss, codes) = method.loss(&z, &own, method.queued(on).unwrap()).unwrap();
        let (loss, tape) = loss.split_tape();
        let value = loss.as_vec()[0].as_f64();
        let mut gradients = loss.put_tape(tape).backward();
        let mut found: Vec<_> = z.iter().map(|z| on.read(&on.gradient(&mut gradients, z).unwrap()).unwrap()).collect();
        let mut totals = on.zeros(layout.len()).unwrap();
        own.put_gradients(on, &layout, &mut gradients, &mut totals).unwrap();
        found.push(on.read(&totals).unwrap());
        (value, found, codes.map(|code| code.as_vec()))
    }

    fn agrees<B: Backend>(
        on: &B,
        case: &str,
        crops: &[(&str, &str)],
        queue_length: usize,
        f32_tolerance: f64,
    ) -> Vec<Vec<B::Real>> {
        let (golden, tolerance) = (Golden::load(case), tolerance::<B::Real>(f32_tolerance));
        let names: Vec<&str> = crops.iter().map(|(name, _)| *name).collect();
        let (loss, gradients, codes) = run(on, &golden, &names, queue_length);
        assert!((loss - golden.scalar("out.loss")).abs() < tolerance, "{case}: {loss}");
        for (gradient, name) in gradients.iter().zip(names.into_iter().chain(["protos"])) {
            assert_close(&format!("{case} {name}"), gradient, &golden.get(&format!("grad.{name}")), tolerance);
        }
        for (code, (_, name)) in codes.iter().zip(crops).filter(|(_, (_, name))| !name.is_empty()) {
            assert_close(&format!("{case} {name}"), code, &golden.get(name), tolerance);
        }
        gradients
    }

    fn every_case<B: Backend>(on: &B, f32_tolerance: f64) -> [Vec<Vec<B::Real>>; 3] {
        let views = [("za", "out.q_a"), ("zb", "out.q_b")];
        let crops = ["z0", "z1", "z2", "z3", "z4"].map(|name| (name, ""));
        [
            agrees(on, "loss_swav", &views, 0, f32_tolerance),
            agrees(on, "loss_swav_queue", &views, 32, f32_tolerance),
            agrees(on, "loss_swav_multi_crop", &crops, 0, f32_tolerance),
        ]
    }

    /// Small crops predict the codes of both full views.
    #[test]
    fn loss_codes_and_gradients_agree_with_the_reference() {
        every_case(&Host::<f64>::default(), 0.0);
        // Scores are divided by epsilon, which amplifies the rounding errors of f32.
        every_case(&Host::<f32>::default(), 1e-4);
        on_every_gpu(|gpu| every_case(&Gpu::new(gpu.clone(), Cpu::default(), Math::F32), 1e-4));
    }
}

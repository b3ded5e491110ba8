//! SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al., NeurIPS 2020).
//!
//! Notation of the paper: z projection of a crop at unit length, C the prototypes [P, D] at unit length, q the code of a
//! full view (its assignment to the prototypes), p = softmax(z C^T / tau) the prediction of a crop. N batch size.

use dfdx::prelude::*;

use super::{
    Overflow, Positives, StepInput, StepOutput, SwavConfig, device_error,
    queue::{Origin, Queue},
};
use crate::ops::{
    Real,
    arena::Layout,
    backend::Backend,
    later::Later,
    leaves::Leaves,
    named::NamedTensor,
    normalize::{normalize, normalize_rows},
    over_batch::batch_mean,
    random::{Normals, Purpose, stream},
    seam::{Matrix, TracedScalar, traced},
    sinkhorn::{Sinkhorn, assign},
    softmax::cross_entropy,
    weight::layer,
};

/// A loss, and the codes q [N, P] of both full views.
type Loss<E, D> = (TracedScalar<E, D>, [Matrix<E, D>; 2]);

/// Rows [M, D] of each full view's queue, where it has a part in the codes.
type Queued<E, D> = [Option<Matrix<E, D>>; 2];

/// The method's settings, where C lies among the parameters, and the queue of each full view.
#[derive(Debug)]
pub struct Swav<E> {
    config: SwavConfig,
    dim: usize,
    prototypes: usize,
    queues: Option<[Queue<E>; 2]>,
}

impl<E: Real> Swav<E> {
    /// Lays out the prototypes. `dim` is D.
    pub fn new(config: &SwavConfig, dim: usize, seed: u64, params: &mut Layout) -> Self {
        let prototypes = params.push("prototypes.weight", &[config.prototypes, dim]);
        let queue = |name| Queue::new(name, config.queue_length, dim, seed);
        let queues = (config.queue_length > 0).then(|| [queue("queue1"), queue("queue2")]);
        Self { config: config.clone(), dim, prototypes, queues }
    }

    /// Prototypes that are spread uniformly over the sphere.
    pub fn init(&self, seed: u64, layout: &Layout, params: &mut [E]) {
        let mut normals = Normals::of(stream(seed, Purpose::Init, self.prototypes as u64, 2, 0));
        params[layout.entries[self.prototypes].range()].fill_with(|| E::of(normals.draw()));
        self.before_step(layout, params);
    }

    /// Brings the prototypes back to unit length.
    pub fn before_step(&self, layout: &Layout, params: &mut [E]) {
        normalize_rows(&mut params[layout.entries[self.prototypes].range()], self.dim);
    }

    /// The entry whose rows [`Swav::before_step`] brings to unit length.
    #[cfg(any(test, feature = "cuda"))]
    pub fn unit_rows(&self) -> usize {
        self.prototypes
    }

    /// Moves the queues to a GPU.
    ///
    /// # Errors
    /// When memory runs out.
    #[cfg(any(test, feature = "cuda"))]
    pub fn move_to(&mut self, gpu: &crate::ops::cuda::Gpu) -> Result<(), crate::ops::cuda::GpuError> {
        self.queues.iter_mut().flatten().try_for_each(|queue| queue.move_to(gpu))
    }

    /// Whether the optimiser moves an entry of the parameters at this time.
    pub fn trains(&self, entry: usize, epoch: f64) -> bool {
        entry != self.prototypes || epoch >= self.config.freeze_prototypes_epochs
    }

    /// What a checkpoint must hold beside the parameters.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> anyhow::Result<Vec<NamedTensor<E>>> {
        let states: anyhow::Result<Vec<_>> = self.queues.iter().flatten().map(Queue::state).collect();
        Ok(states?.concat())
    }

    /// Takes over what [`Swav::state`] gave.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, tensors: &[NamedTensor<E>]) -> anyhow::Result<()> {
        self.queues.iter_mut().flatten().try_for_each(|queue| queue.restore(tensors))
    }

    /// One training step: the codes of both full views, then the swapped prediction, then the queues take the batch.
    ///
    /// L = -(1/2) sum over full views i of the mean over the other crops v of (1/N) sum_n q_i . log p_v.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step<D: Backend<E>>(
        &mut self,
        input: &StepInput<E, D>,
        leaves: &Leaves<E, D>,
    ) -> anyhow::Result<StepOutput<E, D>>
    where
        D::Err: Send + Sync,
    {
        let queued = self.queued(input.z[0].device())?;
        let (loss, codes) = self.loss(&input.z, leaves, queued).map_err(device_error)?;
        if let Some(queues) = self.queues.as_mut().filter(|_| input.epoch >= self.config.queue_start_epoch) {
            let origin = Origin { samples: input.samples, labels: input.labels, step: input.step };
            for (queue, z) in queues.iter_mut().zip(&input.z) {
                queue.enqueue(z, origin, Overflow::Wrap)?;
            }
        }
        let [code1, code2] = [&codes[0], &codes[1]].map(D::read_later);
        let (code1, code2) = (code1.map_err(device_error)?, code2.map_err(device_error)?);
        let (prototypes, labels, diagnose) = (self.config.prototypes, input.labels.to_vec(), input.diagnose);
        let positives =
            move || Ok(Positives::from_codes([code2.wait()?, code1.wait()?], prototypes, &labels, diagnose));
        Ok(StepOutput { loss, positives: Later::new(positives) })
    }

    /// The rows of the queues; a queue takes part once it is full.
    fn queued<D: Backend<E>>(&self, device: &D) -> anyhow::Result<Queued<E, D>> {
        let Some(queues) = &self.queues else { return Ok([None, None]) };
        let rows = |queue: &Queue<E>| queue.is_full().then(|| queue.all(device)).transpose();
        Ok([rows(&queues[0])?, rows(&queues[1])?])
    }

    /// The loss, and the codes q [N, P] of both full views.
    fn loss<D: Backend<E>>(
        &self,
        z: &[Matrix<E, D>],
        leaves: &Leaves<E, D>,
        queued: Queued<E, D>,
    ) -> Result<Loss<E, D>, D::Err> {
        let crops = z.len();
        let prototypes = leaves.matrix(self.prototypes)?;
        let mut scores = Vec::with_capacity(crops);
        for z in z {
            scores.push(layer(normalize(traced(z.clone()))?, leaves.weight(self.prototypes))?.split_tape());
        }
        let [first, second] = queued;
        let codes = [
            self.code(&scores[0].0, first.as_ref(), &prototypes)?,
            self.code(&scores[1].0, second.as_ref(), &prototypes)?,
        ];

        // Every crop predicts the codes of the full views other than itself.
        let share = E::of(1.0 / (2 * (crops - 1)) as f64);
        let mut total: Option<TracedScalar<E, D>> = None;
        for (crop, (scores, tape)) in scores.into_iter().enumerate() {
            let q = match crop {
                0 => codes[1].clone(),
                1 => codes[0].clone(),
                _ => codes[0].clone().try_add(codes[1].clone())?,
            };
            let loss = batch_mean(cross_entropy(scores.put_tape(tape), q, self.config.tau)?)?.try_mul(share)?;
            total = Some(match total {
                Some(total) => total.try_add(loss)?,
                None => loss,
            });
        }
        Ok((total.expect("there are two views"), codes))
    }

    /// The code q [N, P] of a full view's scores, normalised together with those of its queue's rows.
    fn code<D: Backend<E>>(
        &self,
        scores: &Matrix<E, D>,
        queued: Option<&Matrix<E, D>>,
        prototypes: &Matrix<E, D>,
    ) -> Result<Matrix<E, D>, D::Err> {
        let beside = queued.map(|rows| scores.device().linear_forward(rows, prototypes)).transpose()?;
        let settings = Sinkhorn { epsilon: self.config.epsilon, iterations: self.config.sinkhorn_iterations };
        assign(scores, beside.as_ref(), settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        cuda::{Gpu, testing::on_every_gpu},
        golden::{Golden, assert_close},
    };

    /// A golden case's loss, its gradients with respect to crops and prototypes, and the codes.
    /// The queues lie on `gpu`, where there is one.
    fn run(
        golden: &Golden,
        crops: &[&str],
        queue_length: usize,
        gpu: Option<&Gpu>,
    ) -> (f64, Vec<Vec<f64>>, [Vec<f64>; 2]) {
        let config = SwavConfig {
            prototypes: 5,
            tau: 0.1,
            epsilon: 0.05,
            sinkhorn_iterations: 3,
            queue_length,
            queue_start_epoch: 0.0,
            freeze_prototypes_epochs: 0.0,
        };
        let mut layout = Layout::default();
        let mut method = Swav::<f64>::new(&config, 8, 0, &mut layout);
        gpu.iter().for_each(|gpu| method.move_to(gpu).unwrap());
        for queue in method.queues.iter_mut().flatten() {
            let origin = Origin { samples: &[1; 32], labels: &[-1; 32], step: 0 };
            let rows: Matrix<f64, Cpu> = Cpu::default().tensor_from_vec(golden.get("in.queue"), (32, 8));
            queue.enqueue(&rows, origin, Overflow::Wrap).unwrap();
        }
        let device = Cpu::default();
        let params = golden.get::<f64>("in.protos");
        let (leaves, totals) = Leaves::all(&layout, &params);
        let z: Vec<Matrix<f64, Cpu>> =
            crops.iter().map(|c| device.tensor_from_vec(golden.get(&format!("in.{c}")), (6, 8))).collect();
        let (loss, codes) = method.loss(&z, &leaves, method.queued(&device).unwrap()).unwrap();
        let value = loss.array();
        let mut gradients = loss.backward();
        let mut found: Vec<Vec<f64>> = z.iter().map(|z| gradients.get(z).as_vec()).collect();
        leaves.add_gradients(&layout, &mut gradients, &totals).unwrap();
        let prototypes = totals.lock().clone();
        found.push(prototypes);
        (value, found, codes.map(|code| code.as_vec()))
    }

    #[test]
    fn loss_codes_and_gradients_agree_with_the_reference() {
        for (case, queue_length) in [("loss_swav", 0), ("loss_swav_queue", 32)] {
            let golden = Golden::load(case);
            let (loss, gradients, codes) = run(&golden, &["za", "zb"], queue_length, None);
            assert!((loss - golden.scalar("out.loss")).abs() < 1e-12, "{case}");
            for (gradient, name) in gradients.iter().zip(["za", "zb", "protos"]) {
                assert_close(&format!("{case} {name}"), gradient, &golden.get(&format!("grad.{name}")), 1e-11);
            }
            for (code, name) in codes.iter().zip(["out.q_a", "out.q_b"]) {
                assert_close(&format!("{case} {name}"), code, &golden.get(name), 1e-11);
            }
        }
    }

    #[test]
    fn queues_on_a_gpu_have_the_same_part_in_the_codes() {
        let golden = Golden::load("loss_swav_queue");
        on_every_gpu(|gpu| {
            let (loss, gradients, codes) = run(&golden, &["za", "zb"], 32, Some(gpu));
            // The rows of the queues are f32 there, and divided by epsilon.
            assert!((loss - golden.scalar("out.loss")).abs() < 1e-5);
            for (code, name) in codes.iter().zip(["out.q_a", "out.q_b"]) {
                assert_close(name, code, &golden.get(name), 1e-5);
            }
            (gradients, codes)
        });
    }

    #[test]
    fn small_crops_predict_the_codes_of_both_full_views() {
        let golden = Golden::load("loss_swav_multi_crop");
        let (loss, gradients, _) = run(&golden, &["z0", "z1", "z2", "z3", "z4"], 0, None);
        assert!((loss - golden.scalar("out.loss")).abs() < 1e-12);
        for (gradient, name) in gradients.iter().zip(["z0", "z1", "z2", "z3", "z4", "protos"]) {
            assert_close(name, gradient, &golden.get(&format!("grad.{name}")), 1e-11);
        }
    }
}

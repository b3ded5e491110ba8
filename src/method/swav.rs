//! SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al., NeurIPS 2020).
//!
//! Notation of the paper: z projection of a crop at unit length, C the prototypes [P, D] at unit length, q the code of a
//! full view (its assignment to the prototypes), p = softmax(z C^T / tau) the prediction of a crop. N batch size.

use dfdx::prelude::*;
use rand_distr::{Distribution, StandardNormal};

use super::{
    Overflow, Positives, StepInput, StepOutput, SwavConfig, device_error,
    queue::{Origin, Queue},
    sinkhorn::sinkhorn,
};
use crate::ops::{
    Real,
    arena::Layout,
    backend::Backend,
    gemm::{self, Threads, gemm},
    later::Later,
    leaves::Leaves,
    named::NamedTensor,
    normalize::{normalize, normalize_rows},
    random::{Purpose, stream},
    seam::{Matrix, TracedScalar, traced},
    weight::layer,
};

/// A loss, and the codes q [N, P] of both full views.
type Loss<E, D> = (TracedScalar<E, D>, [Vec<E>; 2]);

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
        let mut random = stream(seed, Purpose::Init, self.prototypes as u64, 2, 0);
        let mut draw = || -> f64 { StandardNormal.sample(&mut random) };
        params[layout.entries[self.prototypes].range()].fill_with(|| E::of(draw()));
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
        let (loss, codes) = self.loss(&input.z, leaves).map_err(device_error)?;
        if let Some(queues) = self.queues.as_mut().filter(|_| input.epoch >= self.config.queue_start_epoch) {
            let origin = Origin { samples: input.samples, labels: input.labels, step: input.step };
            for (queue, z) in queues.iter_mut().zip(&input.z) {
                queue.enqueue(z, origin, Overflow::Wrap)?;
            }
        }
        let [code1, code2] = codes;
        let positives = Positives::from_codes([code2, code1], self.config.prototypes, input.labels, input.diagnose);
        Ok(StepOutput { loss, positives: Later::now(positives) })
    }

    /// The loss, and the codes q [N, P] of both full views.
    fn loss<D: Backend<E>>(&self, z: &[Matrix<E, D>], leaves: &Leaves<E, D>) -> Result<Loss<E, D>, D::Err> {
        let device = z[0].device().clone();
        let (n, crops) = (z[0].shape().0, z.len());
        let prototypes = leaves.matrix(self.prototypes)?;
        let mut scores = Vec::with_capacity(crops);
        for z in z {
            scores.push(layer(normalize(traced(z.clone()))?, leaves.weight(self.prototypes))?);
        }
        let codes = [0, 1].map(|view| self.code(view, &scores[view].as_vec(), &prototypes.as_vec()));

        // Every crop predicts the codes of the full views other than itself.
        let share = E::of(-1.0 / (2 * (crops - 1) * n) as f64);
        let mut total: Option<TracedScalar<E, D>> = None;
        for (crop, scores) in scores.into_iter().enumerate() {
            let mut q = vec![E::zero(); n * self.config.prototypes];
            for (_, code) in codes.iter().enumerate().filter(|(view, _)| *view != crop) {
                q.iter_mut().zip(code).for_each(|(q, c)| *q += *c);
            }
            let q: Matrix<E, D> = device.try_tensor_from_vec(q, (n, self.config.prototypes))?;
            let log_p = scores.try_div(E::of(self.config.tau))?.try_log_softmax::<Axis<1>>()?;
            let loss = log_p.try_mul(q)?.try_sum::<Rank0, _>()?.try_mul(share)?;
            total = Some(match total {
                Some(total) => total.try_add(loss)?,
                None => loss,
            });
        }
        Ok((total.expect("there are two views"), codes))
    }

    /// The code q [N, P] of a full view's scores; its queue's scores join the normalisation once the queue is full.
    fn code(&self, view: usize, scores: &[E], prototypes: &[E]) -> Vec<E> {
        let columns = self.config.prototypes;
        let mut all = Vec::new();
        if let Some(queue) = self.queues.as_ref().map(|queues| &queues[view]).filter(|queue| queue.is_full()) {
            let rows = self.config.queue_length;
            all = vec![E::zero(); rows * columns];
            let bank = gemm::Matrix::new(queue.host_rows(), rows, self.dim);
            let prototypes = gemm::Matrix::new(prototypes, columns, self.dim);
            gemm(bank, prototypes.t(), E::zero(), &mut all, Threads::All);
        }
        all.extend_from_slice(scores);
        sinkhorn(&mut all, columns, self.config.epsilon, self.config.sinkhorn_iterations);
        all.split_off(all.len() - scores.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden::{Golden, assert_close};

    /// A golden case's loss, its gradients with respect to crops and prototypes, and the codes.
    fn run(golden: &Golden, crops: &[&str], queue_length: usize) -> (f64, Vec<Vec<f64>>, [Vec<f64>; 2]) {
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
        let (loss, codes) = method.loss(&z, &leaves).unwrap();
        let value = loss.array();
        let mut gradients = loss.backward();
        let mut found: Vec<Vec<f64>> = z.iter().map(|z| gradients.get(z).as_vec()).collect();
        leaves.add_gradients(&layout, &mut gradients, &totals).unwrap();
        let prototypes = totals.lock().clone();
        found.push(prototypes);
        (value, found, codes)
    }

    #[test]
    fn loss_codes_and_gradients_agree_with_the_reference() {
        for (case, queue_length) in [("loss_swav", 0), ("loss_swav_queue", 32)] {
            let golden = Golden::load(case);
            let (loss, gradients, codes) = run(&golden, &["za", "zb"], queue_length);
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
    fn small_crops_predict_the_codes_of_both_full_views() {
        let golden = Golden::load("loss_swav_multi_crop");
        let (loss, gradients, _) = run(&golden, &["z0", "z1", "z2", "z3", "z4"], 0);
        assert!((loss - golden.scalar("out.loss")).abs() < 1e-12);
        for (gradient, name) in gradients.iter().zip(["z0", "z1", "z2", "z3", "z4", "protos"]) {
            assert_close(name, gradient, &golden.get(&format!("grad.{name}")), 1e-11);
        }
    }
}

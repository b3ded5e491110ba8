//! SNCLR: Soft Neighbors are Positive Supporters in Contrastive Visual Representation Learning (Ge et al., ICLR 2023).
//!
//! Notation of the paper: y1 = g(f(x1)) is the online projection of a view, z1 = q(y1) its online prediction, and y2 the momentum
//! projection of the other view. NN(y2)_1..K are the rows of the queue C nearest to y2, NN(y2)_0 is y2 itself, and w_i is the
//! positiveness of NN(y2)_i. N is the batch size, D the width.

use anyhow::Context;
use dfdx::prelude::*;

use super::{
    Attention, Detach, Loss as Scalar, Objective, OwnParams, Positives, Rows, SnclrConfig, StepInput, StepOutput,
    TensorError, TracedMatrix, device_error,
    mlp::init_linear,
    queue::{Origin, Queue},
    views::each_view_predicted,
};
use crate::{
    backend::{Backend, Memory, Nearest},
    ops::{
        MathFunctions, Number,
        arena::Layout,
        contrast::Pairs,
        pending::Pending,
        tensor::{Matrix, TensorDevice, linear, normalize, traced},
    },
};

/// A matrix off any tape.
type MatrixOf<B> = Matrix<<B as Memory>::Real, <B as Memory>::Tensors>;

/// A loss, and its positiveness [N, K] if there are neighbours.
type Loss<B> = (Scalar<B>, Option<Pending<Vec<<B as Memory>::Real>>>);

/// The settings of the method, its queue, and the entries of f1 and f2 in the parameters.
pub struct Snclr<B: Backend> {
    config: SnclrConfig,
    pub queue: Queue<B>,
    /// Entries of f1 and f2 [attention width, D], if the attention is learned.
    attention: Option<(usize, usize)>,
}

impl<B: Backend> Snclr<B> {
    /// Makes the method, and appends the parameters of the attention. `dim` is D.
    pub fn new(config: &SnclrConfig, dim: usize, queue: Queue<B>, params: &mut Layout) -> Self {
        let learned = config.attention == Attention::Learned && config.k > 0;
        let attention = learned.then(|| {
            let width = config.attention_dim.unwrap_or(dim);
            (params.push("attention.f1.weight", &[width, dim]), params.push("attention.f2.weight", &[width, dim]))
        });
        Self { config: config.clone(), queue, attention }
    }

    /// Initial f1 and f2.
    pub fn init(&self, seed: u64, layout: &Layout, params: &mut [B::Real]) {
        if let Some((f1, f2)) = self.attention {
            init_linear(seed, layout, f1, params);
            init_linear(seed, layout, f2, params);
        }
    }

    /// One training step. It looks up the neighbours of both views, enqueues view 2, and computes the symmetrised loss. Small
    /// crops predict the candidates of both full views.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step(&mut self, on: &B, input: &StepInput<B>, params: &OwnParams<B>) -> anyhow::Result<StepOutput<B>> {
        let momentum = input.momentum.as_ref().context("SNCLR needs a momentum branch")?;
        let unit = |k: &Rows<B>| normalize(k.clone()).map_err(device_error);
        let k = [unit(&momentum[0])?, unit(&momentum[1])?];
        let near = [self.look_up(on, &k[0], input.samples)?, self.look_up(on, &k[1], input.samples)?];
        let origin = Origin { samples: input.samples, labels: input.labels, step: input.step };
        self.queue.enqueue(on, &momentum[1], origin, self.config.queue_overflow)?;

        let mut w = [None, None];
        let loss = each_view_predicted(input.z.len(), |source, target| {
            let (z, y) = (input.z[source].clone(), input.y[source].clone());
            let (loss, positiveness) = self.direction(on, z, y, &k[target], near[target].as_ref(), params)?;
            if source < 2 {
                w[source] = positiveness;
            }
            Ok(loss)
        });
        let (n, step) = (input.samples.len(), input.step);
        let positives = match (near, w) {
            ([Some(near1), Some(near2)], [Some(w1), Some(w2)]) => Pending::new(move || {
                let w = [w1.wait()?, w2.wait()?].concat();
                Ok(Positives::from_queue(B::Real::of(1.0), w, [near2.origins.wait()?, near1.origins.wait()?], step))
            }),
            _ => Pending::now(Positives::own_view(n)),
        };
        Ok(StepOutput { loss: loss.map_err(device_error)?, positives })
    }

    /// NN(y2)_1..K for `queries` [N, D], which are y2 at unit length; None if K is 0.
    fn look_up(&self, on: &B, queries: &Rows<B>, samples: &[i64]) -> anyhow::Result<Option<Nearest<B>>> {
        let exclude = self.config.exclude_self.then_some(samples);
        (self.config.k > 0).then(|| self.queue.search(on, queries, self.config.k, exclude)).transpose()
    }

    /// The loss of one direction, times `loss_scale`, and its positiveness. The paper's loss is
    ///
    /// L = -(1/N) sum_n log( sum_(i = 0..K) w_i exp(z1 . NN(y2)_i / tau) / sum_c exp(z1 . c / tau) ), with w_0 = 1.
    ///
    /// The candidates c are NN(y2)_0..K of all N samples. Without neighbours (K = 0) the loss is InfoNCE.
    ///
    /// `z1` [N, D] is normalised here. Gradients flow to `z1` and `y1` [N, D]. `y2` [N, D] and the neighbours have unit length
    /// and no gradient.
    fn direction(
        &self,
        on: &B,
        z1: Rows<B>,
        y1: Rows<B>,
        y2: &Rows<B>,
        neighbours: Option<&Nearest<B>>,
        params: &OwnParams<B>,
    ) -> Result<Loss<B>, TensorError<B>> {
        let device = z1.device().clone();
        let n = z1.shape().0;
        let (z1, scale) = (normalize(z1.traced())?, B::Real::of(self.config.loss_scale));
        let Some(neighbours) = neighbours else {
            let (all, own) = on.contrast(z1, y2.clone(), Pairs::grouped(1), self.config.tau)?;
            let own = own.try_reshape_like(&(n,))?;
            return Ok((B::Tensors::batch_mean(all.try_sub(own)?)?.try_mul(scale)?, None));
        };

        // The logits s [N, N(K+1)] are the cosines of each z1 with the candidates NN(y2)_0..K of all samples, divided by tau.
        // `all` [N] is the log of the sum of exp(s) over each row. `own` [N, K+1] are the logits of each sample's own candidates.
        let k = neighbours.k;
        let candidates = B::Tensors::interleave(y2, &neighbours.vectors)?;
        let (all, own) = on.contrast(z1, candidates, Pairs::grouped(k + 1), self.config.tau)?;

        let mut log_w = self.log_positiveness(y1, neighbours, params)?;
        if self.config.threshold {
            // A dropped neighbour gets log w = -1e30: exp of it is 0. It is finite, since infinities could give NaN.
            let (kept, tape) = log_w.split_tape();
            let exceeds = kept.try_gt(B::Real::of(-libm::log(k as f64)))?;
            let never = device.try_zeros_like(&(n, k))?.try_sub(B::Real::of(1e30))?;
            log_w = exceeds.try_choose(kept.put_tape(tape), never)?;
        }
        let (kept, tape) = log_w.split_tape();
        let w = B::Tensors::read_later(&kept)?.map(|log_w| log_w.into_iter().map(|l| l.exp_inline()).collect());
        let log_w = kept.put_tape(tape);
        let zero: MatrixOf<B> = device.try_zeros_like(&(n, 1usize))?;
        let loss = match self.config.objective {
            // -log( sum_j w_j exp(own_j) / sum exp(s) ), w_0 = 1
            Objective::Paper => {
                let log_w = (traced(zero), log_w).try_concat_along(Axis::<1>)?;
                let log_w: TracedMatrix<B> = log_w.try_reshape_like(&(n, k + 1))?;
                let positive = B::Tensors::log_sum_exp(own.try_add(log_w)?)?;
                B::Tensors::batch_mean(all.try_sub(positive)?)?
            }
            // -sum_j w_j log( exp(own_j) / sum exp(s) ), w_0 = 1
            Objective::SoftCe => {
                let one = zero.try_add(B::Real::of(1.0))?;
                let weights = (traced(one), B::Tensors::exp(log_w)?).try_concat_along(Axis::<1>)?;
                let weights: TracedMatrix<B> = weights.try_reshape_like(&(n, k + 1))?;
                let log_p = own.try_sub(all.try_broadcast_like::<_, Axis<1>>(&(n, k + 1))?)?;
                let total = log_p.try_mul(weights)?.try_sum::<(usize,), Axis<1>>()?;
                B::Tensors::batch_mean(total)?.try_negate()?
            }
        };
        Ok((loss.try_mul(scale)?, Some(w)))
    }

    /// log w [N, K] with w_i = softmax_i( f1(y1) . f2(NN(y2)_i) ) / gamma.
    fn log_positiveness(
        &self,
        y1: Rows<B>,
        neighbours: &Nearest<B>,
        params: &OwnParams<B>,
    ) -> Result<TracedMatrix<B>, TensorError<B>> {
        let device = y1.device().clone();
        let (n, k) = (y1.shape().0, neighbours.k);
        let log_gamma = B::Real::of(libm::log(self.config.gamma));
        if self.config.attention == Attention::Uniform {
            let uniform: MatrixOf<B> = device.try_zeros_like(&(n, k))?;
            return traced(uniform).try_sub(B::Real::of(libm::log(k as f64)) + log_gamma);
        }
        let y1 = match self.config.detach_w {
            // A copy off the tape, so that no gradient flows back.
            Detach::Projection => Rows::<B>::of(y1.into_tensor().try_mul(B::Real::of(1.0))?)?,
            Detach::None | Detach::All => y1,
        };
        let mut a = y1.traced();
        let mut near = neighbours.vectors.clone();
        if self.config.normalize_attention {
            a = normalize(a)?;
        } else {
            near = B::Tensors::scale_rows(&near, &neighbours.norms)?;
        }
        let b = match self.attention {
            Some((f1, f2)) => {
                a = linear(a, params.get(f1))?;
                linear(near, params.get(f2))?
            }
            None => near.traced(),
        };
        let scores = B::Tensors::group_dots(a.into_tensor(), b.into_tensor())?;
        let log_w = B::Tensors::log_softmax(scores)?.try_sub(log_gamma)?;
        Ok(match self.config.detach_w {
            Detach::All => traced(log_w.split_tape().0),
            Detach::None | Detach::Projection => log_w,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::Host,
        method::Overflow,
        ops::{
            Real,
            golden::{Golden, assert_close, tolerance},
            matmul::MatmulPrecision,
            normalize::normalize_rows,
            tensor::{CpuTensors, Rows as Of},
        },
    };

    /// The tolerance in f32. Logits have magnitude 10, and PyTorch's own f32 run is off by up to 9e-7.
    const F32: f64 = 5e-6;

    fn config(k: usize, queue_length: usize, tau: f64) -> SnclrConfig {
        SnclrConfig {
            k,
            queue_length,
            gamma: 1.0,
            objective: Objective::Paper,
            tau,
            attention: Attention::Learned,
            normalize_attention: true,
            attention_dim: None,
            detach_w: Detach::None,
            threshold: false,
            queue_overflow: Overflow::Truncate,
            exclude_self: false,
            loss_scale: 1.0,
            momentum: 0.99,
        }
    }

    /// The origin of rows without samples.
    fn nobody(rows: usize) -> Origin<'static> {
        Origin { samples: &[-1; 32][..rows], labels: &[-1; 32][..rows], step: 0 }
    }

    fn rows<E: Real>(values: Vec<E>, n: usize) -> Of<E, Cpu>
    where
        Cpu: CpuTensors<E>,
    {
        Of::of(Cpu::default().tensor_from_vec(values, (n, 8))).unwrap()
    }

    fn queue<E: Real>(length: usize) -> Queue<Host<E>>
    where
        Cpu: CpuTensors<E>,
    {
        let Ok(queue) = Queue::new(&Host::default(), "queue", [length, 8], 0, MatmulPrecision::Full);
        queue
    }

    /// A method with the queue and the attention of a golden case.
    fn method<E: Real>(config: &SnclrConfig, golden: &Golden) -> (Snclr<Host<E>>, Layout, Vec<E>)
    where
        Cpu: CpuTensors<E>,
    {
        let (on, mut layout) = (Host::default(), Layout::default());
        let mut method = Snclr::new(config, 8, queue(config.queue_length), &mut layout);
        let rows = rows(golden.get("in.queue"), config.queue_length);
        method.queue.enqueue(&on, &rows, nobody(config.queue_length), Overflow::Wrap).unwrap();
        let mut params = vec![E::nan(); layout.len()];
        if let Some((f1, f2)) = method.attention {
            params[layout.entries[f1].range()].copy_from_slice(&golden.get::<E>("in.f1"));
            params[layout.entries[f2].range()].copy_from_slice(&golden.get::<E>("in.f2"));
        }
        (method, layout, params)
    }

    fn one_direction<E: Real>(case: &str, config: &SnclrConfig)
    where
        Cpu: CpuTensors<E>,
    {
        let golden = Golden::load(case);
        let close = |what: &str, actual: &[E], expected: &str| {
            assert_close(&format!("{case} {what}"), actual, &golden.get::<E>(expected), tolerance::<E>(F32));
        };
        let (method, layout, params) = method::<E>(config, &golden);
        let own = OwnParams::all(&layout, &params);
        let matrix = |name: &str| rows::<E>(golden.get(name), 6);
        let (z1, y1) = (matrix("in.z1"), matrix("in.y1"));
        let y2 = normalize(matrix("in.y2")).unwrap();
        let neighbours = method.look_up(&Host::default(), &y2, &[0; 6]).unwrap();
        let (loss, w) =
            method.direction(&Host::default(), z1.clone(), y1.clone(), &y2, neighbours.as_ref(), &own).unwrap();
        close("loss", &[loss.array()], "out.loss");
        close("w", &w.unwrap().wait().unwrap(), "out.w");
        let mut gradients = loss.backward();
        close("grad.z1", &gradients.get(z1.tensor()).as_vec(), "grad.z1");
        gradients.try_alloc_for(y1.tensor()).unwrap();
        close("grad.y1", &gradients.get(y1.tensor()).as_vec(), "grad.y1");
        let totals = own.gradients(&layout, &mut gradients);
        if let Some((f1, f2)) = method.attention {
            close("grad.f1", &totals[layout.entries[f1].range()], "grad.f1");
            close("grad.f2", &totals[layout.entries[f2].range()], "grad.f2");
        }
    }

    #[test]
    fn every_form_of_the_loss_agrees_with_the_reference() {
        let paper = config(3, 32, 0.1);
        let soft_ce = SnclrConfig { objective: Objective::SoftCe, attention: Attention::Cosine, ..config(3, 32, 0.2) };
        for (case, config) in [
            ("loss_paper", paper.clone()),
            (
                "loss_paper_gamma2_tau02_att5",
                SnclrConfig { gamma: 2.0, tau: 0.2, attention_dim: Some(5), ..paper.clone() },
            ),
            ("loss_paper_rawatt", SnclrConfig { tau: 0.2, normalize_attention: false, ..paper.clone() }),
            ("loss_paper_noproj", SnclrConfig { attention: Attention::Cosine, ..paper.clone() }),
            ("loss_paper_detach", SnclrConfig { detach_w: Detach::All, ..paper.clone() }),
            ("loss_paper_detach_projection", SnclrConfig { detach_w: Detach::Projection, ..paper.clone() }),
            (
                "loss_paper_detach_projection_rawatt",
                SnclrConfig { tau: 0.2, normalize_attention: false, detach_w: Detach::Projection, ..paper.clone() },
            ),
            ("loss_soft_ce", soft_ce.clone()),
            ("loss_soft_ce_scaled_tau01", SnclrConfig { tau: 0.1, loss_scale: 0.2, ..soft_ce.clone() }),
            ("loss_soft_ce_threshold", SnclrConfig { threshold: true, ..soft_ce.clone() }),
            ("loss_soft_ce_detach", SnclrConfig { detach_w: Detach::All, ..soft_ce.clone() }),
        ] {
            one_direction::<f64>(case, &config);
            one_direction::<f32>(case, &config);
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        for (detach_w, flows) in [(Detach::None, 0..224), (Detach::Projection, 96..224), (Detach::All, 0..0)] {
            finite_differences(SnclrConfig { detach_w, ..config(3, 32, 0.1) }, flows);
        }
        finite_differences(SnclrConfig { threshold: true, ..config(3, 32, 0.1) }, 0..224);
    }

    /// The gradients of z1 and those within `flows` agree with finite differences of the loss. All others are 0.
    fn finite_differences(config: SnclrConfig, flows: std::ops::Range<usize>) {
        let golden = Golden::load("loss_paper");
        let (method, layout, params) = method::<f64>(&config, &golden);
        let y2 = normalize(rows(golden.get("in.y2"), 6)).unwrap();
        let neighbours = method.look_up(&Host::default(), &y2, &[0; 6]).unwrap();
        // `all` is the concatenation of z1, y1, f1 and f2.
        let run = |all: &[f64]| {
            let matrix = |at: usize| rows(all[at..at + 48].to_vec(), 6);
            let (z1, y1) = (matrix(0), matrix(48));
            let own = OwnParams::all(&layout, &all[96..]);
            let (loss, _) =
                method.direction(&Host::default(), z1.clone(), y1.clone(), &y2, neighbours.as_ref(), &own).unwrap();
            let value = loss.array();
            let mut gradients = loss.backward();
            let attention = own.gradients(&layout, &mut gradients);
            gradients.try_alloc_for(y1.tensor()).unwrap();
            (value, [gradients.get(z1.tensor()).as_vec(), gradients.get(y1.tensor()).as_vec(), attention].concat())
        };
        let all = [golden.get::<f64>("in.z1"), golden.get("in.y1"), params].concat();
        let (_, gradient) = run(&all);
        for i in 0..all.len() {
            let at = |step: f64| {
                let mut moved = all.clone();
                moved[i] += step;
                run(&moved).0
            };
            let reached = i < 48 || flows.contains(&i);
            let difference = if reached { (at(1e-6) - at(-1e-6)) / 2e-6 } else { 0.0 };
            assert!((gradient[i] - difference).abs() < 1e-8, "{i}: {} instead of {difference}", gradient[i]);
        }
    }

    #[test]
    fn both_directions_and_the_queue_agree_with_the_reference() {
        let paper = config(3, 32, 0.2);
        let soft_ce = SnclrConfig {
            objective: Objective::SoftCe,
            attention: Attention::Cosine,
            loss_scale: 0.4,
            ..config(3, 32, 0.2)
        };
        for (case, config) in [("symmetric_paper", paper), ("symmetric_soft_ce", soft_ce)] {
            let golden = Golden::load(case);
            let (mut method, layout, params) = method::<f64>(&config, &golden);
            // The next row is three rows before the queue's end, as in the reference.
            method.queue = {
                let bank = golden.get::<f64>("in.queue");
                let mut queue = queue(32);
                for n in [32, 29] {
                    let rows = rows(bank[..n * 8].to_vec(), n);
                    queue.enqueue(&Host::default(), &rows, nobody(n), Overflow::Wrap).unwrap();
                }
                queue
            };
            let own = OwnParams::all(&layout, &params);
            let matrix = |name: &str| rows::<f64>(golden.get(name), 6);
            let (z, y) = (["in.z1", "in.z2"].map(matrix), ["in.y1", "in.y2"].map(matrix));
            let input = StepInput {
                step: 0,
                epoch: 0.0,
                y: y.to_vec(),
                z: z.to_vec(),
                momentum: Some(["in.k1", "in.k2"].map(matrix)),
                samples: &[0, 1, 2, 3, 4, 5],
                labels: &[-1; 6],
                diagnose: true,
            };
            let output = method.step(&Host::default(), &input, &own).unwrap();
            assert!((output.loss.array() - golden.scalar("out.loss")).abs() < 1e-10);
            let mut gradients = output.loss.backward();
            for (tensor, name) in z.iter().chain(&y).zip(["z1", "z2", "y1", "y2"]) {
                let expected = golden.get(&format!("grad.{name}"));
                assert_close(name, &gradients.get(tensor.tensor()).as_vec(), &expected, 1e-10);
            }
            let totals = own.gradients(&layout, &mut gradients);
            if let Some((f1, f2)) = method.attention {
                assert_close("f1", &totals[layout.entries[f1].range()], &golden.get("grad.f1"), 1e-10);
                assert_close("f2", &totals[layout.entries[f2].range()], &golden.get("grad.f2"), 1e-10);
            }
            let Ok(state) = method.queue.state(&Host::default());
            let crate::ops::named::Values::Real(bank) = &state[0].values else { unreachable!() };
            let mut expected = golden.get::<f64>("out.queue_after");
            normalize_rows(&mut expected, 8);
            assert_close("queue", bank, &expected, 1e-12);
        }
    }

    #[test]
    fn without_neighbours_it_is_infonce() {
        for (case, tau) in [("loss_infonce_tau01", 0.1), ("loss_infonce_tau02", 0.2)] {
            let golden = Golden::load(case);
            let method = Snclr::<Host<f64>>::new(&config(0, 4, tau), 8, queue(4), &mut Layout::default());
            let own = OwnParams::all(&Layout::default(), &[]);
            let (z1, y2) = (rows(golden.get("in.z1"), 6), normalize(rows(golden.get("in.y2"), 6)).unwrap());
            let none = method.look_up(&Host::default(), &y2, &[0; 6]).unwrap();
            let (loss, w) =
                method.direction(&Host::default(), z1.clone(), z1.clone(), &y2, none.as_ref(), &own).unwrap();
            assert!(none.is_none() && w.is_none());
            assert!((loss.array() - golden.scalar("out.loss")).abs() < 1e-12);
            assert_close("grad.z1", &loss.backward().get(z1.tensor()).as_vec(), &golden.get("grad.z1"), 1e-12);
        }
    }
}

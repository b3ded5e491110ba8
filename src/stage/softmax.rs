//! Softmax regression: logits = x W + b, mean cross-entropy, its gradient, and SGD with momentum. Schedules and data sets are
//! left to the caller.
//!
//! Work is cut into blocks of fixed size and sums run in a fixed order, so that any number of threads gives the same bits.

use rayon::prelude::*;

use crate::ops::{
    Real,
    gemm::gemm,
    matrix::Matrix,
    parts::Threads,
    random::{Normals, Purpose, stream},
};

/// Samples per block of the forward pass.
const SAMPLES: usize = 128;
/// Features per block of the weight's gradient.
const FEATURES: usize = 64;

/// A linear classifier.
#[derive(Clone, Debug)]
pub struct Classifier<E> {
    /// Width of a feature vector.
    pub dim: usize,
    /// Number of classes.
    pub classes: usize,
    /// W [dim, classes], followed by b [classes].
    pub params: Vec<E>,
}

/// Cross-entropy on a batch, with its gradient and the number of correct samples.
pub struct Gradient<E> {
    /// Mean loss.
    pub loss: f64,
    /// Number of samples whose largest logit is that of their class.
    pub correct: usize,
    /// The gradient, in the layout of the parameters.
    pub params: Vec<E>,
}

impl<E: Real> Classifier<E> {
    /// Weights from N(0, 0.01^2) and no bias, as in MoCo-v3's linear evaluation.
    pub fn new(dim: usize, classes: usize, seed: u64) -> Self {
        let mut normals = Normals::of(stream(seed, Purpose::ProbeInit, 0, 0, 0));
        let weights = (0..dim * classes).map(|_| E::of(0.01 * normals.draw()));
        let params = weights.chain(std::iter::repeat_n(E::zero(), classes)).collect();
        Self { dim, classes, params }
    }

    /// Logits [n, classes] of the rows of `x` [n, dim], on the calling thread.
    fn logits(&self, x: &[E], logits: &mut [E]) {
        let (weight, bias) = self.params.split_at(self.dim * self.classes);
        for row in logits.chunks_exact_mut(self.classes) {
            row.copy_from_slice(bias);
        }
        let x = Matrix::new(x, logits.len() / self.classes, self.dim);
        gemm(x, Matrix::new(weight, self.dim, self.classes), true, logits, Threads::One);
    }

    /// Loss and gradient on the rows of `x` [m, dim] that `order` names, with `targets` [m].
    pub fn gradient(&self, x: &[E], targets: &[usize], order: &[usize]) -> Gradient<E> {
        let (n, dim, classes) = (order.len(), self.dim, self.classes);
        let (mut batch, mut errors) = (vec![E::zero(); n * dim], vec![E::zero(); n * classes]);
        let scale = E::of(1.0 / n as f64);
        let blocks: Vec<(f64, usize)> = order
            .par_chunks(SAMPLES)
            .zip(batch.par_chunks_mut(SAMPLES * dim))
            .zip(errors.par_chunks_mut(SAMPLES * classes))
            .map(|((order, batch), errors)| {
                for (row, &sample) in batch.chunks_exact_mut(dim).zip(order) {
                    row.copy_from_slice(&x[sample * dim..][..dim]);
                }
                self.logits(batch, errors);
                let (mut loss, mut correct) = (0.0, 0);
                for (row, &sample) in errors.chunks_exact_mut(classes).zip(order) {
                    let target = targets[sample];
                    correct += (rank(row, target) == 0) as usize;
                    loss += softmax(row, target);
                    row[target] -= E::one();
                    row.iter_mut().for_each(|v| *v *= scale);
                }
                (loss, correct)
            })
            .collect();

        let mut params = vec![E::zero(); self.params.len()];
        let (weight, bias) = params.split_at_mut(dim * classes);
        let errors = Matrix::new(&errors, n, classes);
        weight.par_chunks_mut(FEATURES * classes).enumerate().for_each(|(block, gradient)| {
            let columns = gradient.len() / classes;
            let x = Matrix { data: &batch[block * FEATURES..], rows: n, columns, row_stride: dim, column_stride: 1 };
            gemm(x.t(), errors, false, gradient, Threads::One);
        });
        for row in errors.data.chunks_exact(classes) {
            bias.iter_mut().zip(row).for_each(|(b, &e)| *b += e);
        }
        Gradient {
            loss: blocks.iter().map(|block| block.0).sum::<f64>() / n as f64,
            correct: blocks.iter().map(|block| block.1).sum(),
            params,
        }
    }

    /// The prediction for each row of `x` [n, dim]. Its true class is `target(row)`, if training had that class.
    pub fn predict(&self, x: &[E], target: impl Fn(usize) -> Option<usize> + Sync) -> Vec<Prediction> {
        let blocks = x.par_chunks(SAMPLES * self.dim).enumerate().flat_map_iter(|(block, x)| {
            let mut logits = vec![E::zero(); x.len() / self.dim * self.classes];
            self.logits(x, &mut logits);
            let target = &target;
            let rows = logits.chunks_exact_mut(self.classes).zip(block * SAMPLES..);
            rows.map(|(row, i)| {
                let rank = target(i).map(|class| rank(row, class));
                let class = (1..row.len()).fold(0, |best, class| if row[class] > row[best] { class } else { best });
                Prediction { class, probability: libm::exp(-softmax(row, class)), rank }
            })
            .collect::<Vec<_>>()
        });
        blocks.collect()
    }
}

/// The prediction for a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Most likely class.
    pub class: usize,
    /// Its probability.
    pub probability: f64,
    /// The number of classes that are more likely than the true one; None if training did not have the true class.
    pub rank: Option<usize>,
}

/// SGD with momentum: v = momentum v + g + weight_decay w; w = w - rate v.
pub fn sgd<E: Real>(params: &mut [E], velocity: &mut [E], gradient: &[E], rate: f64, momentum: f64, decay: f64) {
    let (rate, momentum, decay) = (E::of(rate), E::of(momentum), E::of(decay));
    for ((w, v), &g) in params.iter_mut().zip(velocity).zip(gradient) {
        *v = momentum * *v + (g + decay * *w);
        *w -= rate * *v;
    }
}

/// Turns logits into probabilities, and returns -log of the target's probability.
fn softmax<E: Real>(row: &mut [E], target: usize) -> f64 {
    let most = row.iter().copied().fold(E::neg_infinity(), E::max);
    let shifted = (row[target] - most).as_f64();
    let mut sum = E::zero();
    for v in row.iter_mut() {
        *v = (*v - most).exp_inline();
        sum += *v;
    }
    row.iter_mut().for_each(|v| *v /= sum);
    libm::log(sum.as_f64()) - shifted
}

/// The number of classes before `class`: those of larger logit, or of equal logit and lower number.
fn rank<E: Real>(row: &[E], class: usize) -> usize {
    let own = row[class];
    row.iter().enumerate().filter(|&(other, &v)| v > own || (v == own && other < class)).count()
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;

    fn problem(n: usize, dim: usize, classes: usize) -> (Vec<f64>, Vec<usize>) {
        let mut rng = stream(5, Purpose::Synthetic, 0, 0, 0);
        let x = (0..n * dim).map(|_| rng.random::<f64>() * 2.0 - 1.0).collect();
        (x, (0..n).map(|_| rng.random_range(0..classes)).collect())
    }

    #[test]
    fn gradient_equals_finite_differences() {
        let (n, dim, classes) = (300, 70, 5);
        let (x, targets) = problem(n, dim, classes);
        let order: Vec<usize> = (0..n).rev().filter(|i| i % 7 != 0).collect();
        let mut classifier = Classifier::<f64>::new(dim, classes, 1);
        classifier.params.iter_mut().enumerate().for_each(|(i, w)| *w = *w * 30.0 + (i as f64).sin() * 0.1);
        let gradient = classifier.gradient(&x, &targets, &order);
        for i in (0..classifier.params.len()).step_by(11).chain(dim * classes..(dim + 1) * classes) {
            let at = |step: f64| {
                let mut moved = classifier.clone();
                moved.params[i] += step;
                moved.gradient(&x, &targets, &order).loss
            };
            let numeric = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((numeric - gradient.params[i]).abs() < 1e-9, "{i}: {numeric} {}", gradient.params[i]);
        }
    }

    #[test]
    fn loss_and_predictions_equal_the_definition() {
        let (n, dim, classes) = (2 * SAMPLES + 3, 6, 4);
        let (x, targets) = problem(n, dim, classes);
        let mut classifier = Classifier::<f64>::new(dim, classes, 2);
        classifier.params.iter_mut().for_each(|w| *w *= 100.0);
        let logit = |i: usize, c: usize| {
            (0..dim).map(|d| x[i * dim + d] * classifier.params[d * classes + c]).sum::<f64>()
                + classifier.params[dim * classes + c]
        };
        let probability = |i: usize, c: usize| logit(i, c).exp() / (0..classes).map(|o| logit(i, o).exp()).sum::<f64>();
        let order: Vec<usize> = (0..n).collect();
        let gradient = classifier.gradient(&x, &targets, &order);
        let loss = order.iter().map(|&i| -probability(i, targets[i]).ln()).sum::<f64>() / n as f64;
        assert!((gradient.loss - loss).abs() < 1e-12);

        let predictions = classifier.predict(&x, |i| (i > 0).then_some(targets[i]));
        assert_eq!((predictions.len(), predictions[0].rank), (n, None));
        let mut correct = 0;
        for (i, &Prediction { class, probability: score, rank }) in predictions.iter().enumerate() {
            let best = (0..classes).max_by(|&a, &b| logit(i, a).total_cmp(&logit(i, b))).unwrap();
            assert_eq!(class, best);
            assert!((score - probability(i, best)).abs() < 1e-12);
            let above = (0..classes).filter(|&c| logit(i, c) > logit(i, targets[i])).count();
            assert!(i == 0 || rank == Some(above));
            correct += (above == 0) as usize;
        }
        assert_eq!(gradient.correct, correct);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let mut row = [1000.0f32, 0.0, -1000.0];
        assert_eq!(softmax(&mut row, 1), 1000.0);
        assert_eq!(row, [1.0, 0.0, 0.0]);
    }

    #[test]
    fn momentum_and_decay_follow_torchs_sgd() {
        let (mut w, mut v) = ([1.0f64], [0.0]);
        sgd(&mut w, &mut v, &[0.5], 0.1, 0.9, 0.01);
        assert!((v[0] - 0.51).abs() < 1e-15 && (w[0] - 0.949).abs() < 1e-15);
        sgd(&mut w, &mut v, &[-1.0], 0.1, 0.9, 0.01);
        assert!((v[0] - (0.9 * 0.51 - 1.0 + 0.00949)).abs() < 1e-15);
    }
}

//! Measures the health of a training from the projections of a step: spread, rank, alignment, uniformity, positiveness.

use nalgebra::DMatrix;
use rayon::prelude::*;

use crate::{
    method::Positives,
    ops::{Real, reductions::sum, simd::vectorized},
};

/// Health metrics of one step. y are the online projections at unit length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Health {
    /// Standard deviation of y per dimension, averaged, times sqrt(D): 1 on a uniformly covered sphere, 0 on collapse.
    pub std: f64,
    /// Exponential of the entropy of y's normalised singular values (Roy and Vetterli 2007): from 1 to min(N, D).
    pub effective_rank: f64,
    /// Mean squared distance between an image's two views (Wang and Isola 2020): lower is closer.
    pub alignment: f64,
    /// log of the mean of exp(-2 distance^2) over pairs of images (Wang and Isola 2020): lower is more spread out.
    pub uniformity: f64,
    /// Mean positiveness; NaN without neighbours.
    pub mean_positiveness: f64,
    /// Largest positiveness; NaN without neighbours.
    pub max_positiveness: f64,
    /// Share of neighbours with the label of the image; NaN without labels. Training never sees labels.
    pub neighbour_agreement: f64,
}

impl Health {
    /// Metrics of unit-length projections `y1`, `y2` [n, dim] of both views.
    pub fn of<E: Real>(y1: &[E], y2: &[E], dim: usize, positives: &Positives<E>, neighbour_agreement: f64) -> Self {
        let n = y1.len() / dim;
        let y = DMatrix::from_row_iterator(n, dim, y1.iter().map(|v| v.as_f64()));
        let gram = gram(&y.transpose());
        let alignment =
            y1.iter().zip(y2).map(|(a, b)| a.as_f64() - b.as_f64()).map(|off| off * off).sum::<f64>() / n as f64;
        let mean = |values: &[E]| values.iter().map(|v| v.as_f64()).sum::<f64>() / values.len() as f64;
        Self {
            std: spread(&y),
            effective_rank: effective_rank(&y, &gram),
            alignment,
            uniformity: uniformity(&gram),
            mean_positiveness: mean(&positives.w),
            max_positiveness: positives.w.iter().map(|v| v.as_f64()).fold(f64::NAN, f64::max),
            neighbour_agreement,
        }
    }
}

/// Whether a spread and an effective rank show a collapse: embeddings that are (nearly) one point or line.
pub fn is_collapsed(std: f64, effective_rank: f64) -> bool {
    std < 0.02 || effective_rank < 1.5
}

fn spread(y: &DMatrix<f64>) -> f64 {
    let dim = y.ncols() as f64;
    let std = y.column_iter().map(|column| column.variance().sqrt()).sum::<f64>() / dim;
    std * dim.sqrt()
}

/// The dot products of all pairs of columns. nalgebra's own product selects its code by CPU, so its bits would depend on the CPU.
fn gram(x: &DMatrix<f64>) -> DMatrix<f64> {
    let (len, n) = x.shape();
    let mut gram = DMatrix::zeros(n, n);
    let columns = x.as_slice();
    gram.as_mut_slice().par_chunks_exact_mut(n).enumerate().for_each(|(i, dots)| {
        let a = &columns[i * len..][..len];
        vectorized(
            #[inline(always)]
            || {
                for (dot, b) in dots.iter_mut().zip(columns.chunks_exact(len)) {
                    *dot = sum(len, |c| a[c] * b[c]);
                }
            },
        );
    });
    gram
}

fn effective_rank(y: &DMatrix<f64>, gram: &DMatrix<f64>) -> f64 {
    // y^T y and y y^T have the same non-zero eigenvalues: the squares of y's singular values. The smaller matrix is cheaper.
    let eigenvalues =
        if y.ncols() < y.nrows() { self::gram(y).symmetric_eigenvalues() } else { gram.symmetric_eigenvalues() };
    let singular: Vec<f64> = eigenvalues.iter().map(|e| e.max(0.0).sqrt()).collect();
    let total: f64 = singular.iter().sum();
    let entropy: f64 = singular.iter().map(|s| s / total).filter(|p| *p > 0.0).map(|p| -p * libm::log(p)).sum();
    libm::exp(entropy)
}

fn uniformity(gram: &DMatrix<f64>) -> f64 {
    let n = gram.nrows();
    let mut sum = 0.0;
    for i in 0..n {
        for j in 0..i {
            sum += libm::exp(-2.0 * (2.0 - 2.0 * gram[(i, j)]));
        }
    }
    libm::log(sum / (n * (n - 1) / 2) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orthonormal_batch_has_full_rank_and_a_constant_one_is_collapsed() {
        let identity: Vec<f64> = (0..16).map(|i| if i % 5 == 0 { 1.0 } else { 0.0 }).collect();
        let health = Health::of(&identity, &identity, 4, &Positives::own_view(4), f64::NAN);
        assert!((health.effective_rank - 4.0).abs() < 1e-9);
        assert_eq!(health.alignment, 0.0);
        assert!((health.uniformity - -4.0).abs() < 1e-12); // all pairs at squared distance 2
        assert!(!is_collapsed(health.std, health.effective_rank) && health.mean_positiveness.is_nan());
        let constant = [0.5f64; 16];
        let health = Health::of(&constant, &identity, 4, &Positives::own_view(4), f64::NAN);
        assert!(is_collapsed(health.std, health.effective_rank) && (health.effective_rank - 1.0).abs() < 1e-6);
        assert!((health.alignment - 1.0).abs() < 1e-12);
    }

    #[test]
    fn positiveness_is_that_of_other_images() {
        let mut positives = Positives::own_view(1);
        (positives.k, positives.w) = (2, vec![0.25f64, 0.75, 0.5, 0.5]);
        let health = Health::of(&[1.0, 0.0], &[1.0, 0.0], 1, &positives, 0.5);
        assert_eq!((health.mean_positiveness, health.max_positiveness), (0.5, 0.75));
    }
}

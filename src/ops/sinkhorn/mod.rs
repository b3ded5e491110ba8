//! Sinkhorn's normalisation: turns scores of samples and prototypes into an assignment that uses all prototypes equally.

pub mod cuda;

use rayon::prelude::*;

use super::{
    Real,
    parts::{Work, add_tree, parts},
    simd::vectorized,
};

/// How scores are normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sinkhorn {
    /// Regularisation: the number by which scores are divided before the exponential.
    pub epsilon: f64,
    /// Number of rounds. Each round normalises columns, then rows.
    pub iterations: usize,
}

/// Turns scores [rows, columns] (samples by prototypes), in place, into an assignment whose rows sum to 1 and whose columns sum
/// to about rows / columns: exp(scores / epsilon), then columns and rows alternately (Caron et al. 2020, appendix A). The last
/// `own` rows are those of the batch.
pub fn sinkhorn<E: Real>(scores: &mut [E], columns: usize, own: usize, Sinkhorn { epsilon, iterations }: Sinkhorn) {
    let rows = scores.len() / columns;
    // Subtracting the maximum prevents overflow. It cancels in the first division.
    let most = scores.iter().copied().fold(E::neg_infinity(), E::max);
    let inverse = E::of(1.0 / epsilon);
    scores.par_chunks_mut(columns).for_each(|row| {
        vectorized(
            #[inline(always)]
            || row.iter_mut().for_each(|s| *s = ((*s - most) * inverse).exp_inline()),
        );
    });
    for _ in 0..iterations {
        let factors: Vec<E> =
            column_sums(scores, columns, own).into_iter().map(|sum| E::of(1.0 / (sum * columns as f64))).collect();
        scores.par_chunks_mut(columns).for_each(|row| {
            let mut sum = 0.0;
            for (q, factor) in row.iter_mut().zip(&factors) {
                *q *= *factor;
                sum += q.as_f64();
            }
            let factor = E::of(1.0 / (sum * rows as f64));
            row.iter_mut().for_each(|q| *q *= factor);
        });
    }
    let rows = E::of(rows as f64);
    scores.iter_mut().for_each(|q| *q *= rows);
}

/// Sums of the columns: the sum over the rows before the batch plus the sum over the rows of the batch, the last `own` rows of q.
/// Each of the two is a tree's sum (see [`add_tree`]).
fn column_sums<E: Real>(q: &[E], columns: usize, own: usize) -> Vec<f64> {
    let mut total = vec![0.0; columns];
    let (beside, own) = q.split_at(q.len() - own * columns);
    for rows in [beside, own] {
        let count = parts(rows.len() / columns);
        let part = rows.len() / count;
        add_tree(count, &mut total, Work::Leaves, |i, sums| {
            sums.fill(0.0);
            for row in rows[i * part..][..part].chunks_exact(columns) {
                sums.iter_mut().zip(row).for_each(|(sum, q)| *sum += q.as_f64());
            }
        });
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sum_to_one_and_prototypes_are_used_alike() {
        let mut q: Vec<f64> = (0..300 * 5).map(|i| (i as f64 * 0.7).sin()).collect();
        sinkhorn(&mut q, 5, 300, Sinkhorn { epsilon: 0.5, iterations: 50 });
        for row in q.chunks(5) {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
        for sum in column_sums(&q, 5, 300) {
            assert!((sum - 60.0).abs() < 0.1, "{sum}");
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let mut q = [900.0f32, 0.0, 0.0, 900.0];
        sinkhorn(&mut q, 2, 2, Sinkhorn { epsilon: 1.0, iterations: 3 });
        assert_eq!(q, [1.0, 0.0, 0.0, 1.0]);
    }
}

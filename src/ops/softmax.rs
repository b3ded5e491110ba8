//! Softmax over the rows of a matrix: its logarithm, the logarithm of its denominator (log-sum-exp), and its cross-entropy with a
//! distribution.
//!
//! dfdx's own operations use exp and ln of the C library, whose bits depend on the CPU.

use rayon::prelude::*;

use super::{Real, reductions::sum, simd::vectorized};

/// The row-wide terms of a softmax: the largest element of the row, and ln sum_j exp((row_j - largest) scale). To be called
/// within [`vectorized`].
#[inline(always)]
pub fn largest_and_rest<E: Real>(row: &[E], scale: E) -> (E, E) {
    let largest = row.iter().fold(E::neg_infinity(), |a, b| if *b > a { *b } else { a });
    let total = sum(row.len(), |j| ((row[j] - largest) * scale).exp_inline());
    (largest, total.ln_inline())
}

/// ln sum_j exp(s_j scale) of each row of s.
pub fn log_sum_exp<E: Real>(s: &[E], columns: usize, scale: E) -> Vec<E> {
    let mut y = vec![E::zero(); s.len() / columns];
    y.par_iter_mut().zip(s.par_chunks_exact(columns)).for_each(|(y, s)| {
        vectorized(
            #[inline(always)]
            || {
                let (largest, rest) = largest_and_rest(s, scale);
                *y = largest * scale + rest;
            },
        );
    });
    y
}

/// Backward pass of [`log_sum_exp`]: adds to gs, the gradient of s, from the result y and its gradient gy.
pub fn log_sum_exp_backward<E: Real>(s: &[E], scale: E, [y, gy]: [&[E]; 2], gs: &mut [E]) {
    let columns = s.len() / y.len();
    let rows = gs.par_chunks_exact_mut(columns).zip(s.par_chunks_exact(columns)).zip(y.par_iter().zip(gy));
    rows.for_each(|((gs, s), (y, gy))| {
        let factor = *gy * scale;
        vectorized(
            #[inline(always)]
            || {
                for (gs, s) in gs.iter_mut().zip(s) {
                    *gs += factor * (*s * scale - *y).exp_inline();
                }
            },
        );
    });
}

/// log softmax of each row of s.
pub fn log_softmax<E: Real>(s: &[E], columns: usize) -> Vec<E> {
    let mut y = vec![E::zero(); s.len()];
    y.par_chunks_exact_mut(columns).zip(s.par_chunks_exact(columns)).for_each(|(y, s)| {
        vectorized(
            #[inline(always)]
            || {
                let (largest, rest) = largest_and_rest(s, E::one());
                y.iter_mut().zip(s).for_each(|(y, s)| *y = (*s - largest) - rest);
            },
        );
    });
    y
}

/// Backward pass of [`log_softmax`]: adds to gs, the gradient of s, from the result y and its gradient gy.
pub fn log_softmax_backward<E: Real>(columns: usize, [y, gy]: [&[E]; 2], gs: &mut [E]) {
    let rows = gs.par_chunks_exact_mut(columns).zip(y.par_chunks_exact(columns));
    rows.zip(gy.par_chunks_exact(columns)).for_each(|((gs, y), gy)| {
        vectorized(
            #[inline(always)]
            || {
                let total = sum(columns, |j| gy[j]);
                for ((gs, y), gy) in gs.iter_mut().zip(y).zip(gy) {
                    *gs += *gy - y.exp_inline() * total;
                }
            },
        );
    });
}

/// -sum_j q_j log softmax(s scale)_j of each row, and the values per row that [`cross_entropy_backward`] needs.
pub fn cross_entropy<E: Real>([s, q]: [&[E]; 2], columns: usize, scale: E) -> (Vec<E>, Vec<[E; 3]>) {
    assert_eq!(s.len(), q.len());
    let rows = s.par_chunks_exact(columns).zip(q.par_chunks_exact(columns));
    let of_row = |(s, q): (&[E], &[E])| {
        vectorized(
            #[inline(always)]
            || {
                let (largest, rest) = largest_and_rest(s, scale);
                let y = -sum(columns, |j| q[j] * ((s[j] - largest) * scale - rest));
                (y, [largest, rest, sum(columns, |j| q[j])])
            },
        )
    };
    rows.map(of_row).unzip()
}

/// Backward pass of [`cross_entropy`]: adds to gs, the gradient of s, from `kept`, the second result, and gy, the gradient of the
/// first.
pub fn cross_entropy_backward<E: Real>([s, q]: [&[E]; 2], scale: E, (kept, gy): (&[[E; 3]], &[E]), gs: &mut [E]) {
    let columns = s.len() / kept.len();
    let rows = s.par_chunks_exact(columns).zip(q.par_chunks_exact(columns));
    let of_rows = kept.par_iter().zip(gy);
    gs.par_chunks_exact_mut(columns).zip(rows).zip(of_rows).for_each(|((gs, (s, q)), (kept, gy))| {
        let ([largest, rest, total], factor) = (*kept, *gy * scale);
        vectorized(
            #[inline(always)]
            || {
                for ((gs, s), q) in gs.iter_mut().zip(s).zip(q) {
                    let p = ((*s - largest) * scale - rest).exp_inline();
                    *gs += factor * (p * total - *q);
                }
            },
        );
    });
}

/// e^x of each element.
pub fn exp<E: Real>(x: &[E]) -> Vec<E> {
    vectorized(
        #[inline(always)]
        || x.iter().map(|x| x.exp_inline()).collect(),
    )
}

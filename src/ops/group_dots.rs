//! Dot products of each row with the rows of its own group.

use rayon::prelude::*;

use super::{Real, reductions::sum, simd::vectorized};

/// y [n, k]: the dot products of row i of a [n, width] with the rows i k .. (i + 1) k of b [n k, width].
pub fn forward<E: Real>(a: &[E], b: &[E], width: usize) -> Vec<E> {
    let k = b.len() / a.len();
    let mut y = vec![E::zero(); b.len() / width];
    let rows = y.par_chunks_exact_mut(k).zip(a.par_chunks_exact(width)).zip(b.par_chunks_exact(k * width));
    rows.for_each(|((y, a), b)| {
        vectorized(
            #[inline(always)]
            || {
                for (y, b) in y.iter_mut().zip(b.chunks_exact(width)) {
                    *y = sum(width, |c| a[c] * b[c]);
                }
            },
        );
    });
    y
}

/// Adds to ga, the gradient of a, from gy, that of y.
pub fn backward_a<E: Real>(b: &[E], width: usize, ga: &mut [E], gy: &[E]) {
    let k = gy.len() / (ga.len() / width);
    let rows = ga.par_chunks_exact_mut(width).zip(gy.par_chunks_exact(k)).zip(b.par_chunks_exact(k * width));
    rows.for_each(|((ga, gy), b)| {
        vectorized(
            #[inline(always)]
            || {
                for (gy, b) in gy.iter().zip(b.chunks_exact(width)) {
                    for (ga, b) in ga.iter_mut().zip(b) {
                        *ga += *gy * *b;
                    }
                }
            },
        );
    });
}

/// Adds to gb, the gradient of b, from gy, that of y.
pub fn backward_b<E: Real>(a: &[E], width: usize, gb: &mut [E], gy: &[E]) {
    let k = gy.len() / (a.len() / width);
    let rows = gb.par_chunks_exact_mut(k * width).zip(gy.par_chunks_exact(k)).zip(a.par_chunks_exact(width));
    rows.for_each(|((gb, gy), a)| {
        vectorized(
            #[inline(always)]
            || {
                for (gy, gb) in gy.iter().zip(gb.chunks_exact_mut(width)) {
                    for (gb, a) in gb.iter_mut().zip(a) {
                        *gb += *gy * *a;
                    }
                }
            },
        );
    });
}

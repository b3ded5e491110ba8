//! Contrastive logits: which of a row are an anchor's own, and what their candidates are made of.
//!
//! The matrix of logits is the largest that a loss touches. On the CPU each operation passes over it once, on all threads;
//! on a GPU it is never there as a whole.

pub mod cuda;

use rayon::prelude::*;

use super::Real;

/// Which of the N own candidates are an anchor's own: those of row (anchor + shift) mod N, where each row has `own`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairs {
    pub own: usize,
    pub shift: usize,
    /// Whether anchors and candidates are the same rows, none of which is its own candidate.
    pub alone: bool,
}

impl Pairs {
    /// The candidates are those of anchor 1, then of anchor 2, ...
    pub fn grouped(own: usize) -> Self {
        Self { own, shift: 0, alone: false }
    }

    /// Anchors and candidates are both views of N images, one behind the other: the other view is an anchor's own.
    pub fn of_views(n: usize) -> Self {
        Self { own: 1, shift: n, alone: true }
    }
}

/// Row i of a [n, dim], then the k rows of b [n k, dim] that follow each other, for each i: [n (k + 1), dim].
pub fn interleave<E: Real>(a: &[E], b: &[E], [k, dim]: [usize; 2]) -> Vec<E> {
    let mut both = vec![E::zero(); a.len() + b.len()];
    let groups = both.par_chunks_exact_mut((k + 1) * dim);
    groups.zip(a.par_chunks_exact(dim)).zip(b.par_chunks_exact(k * dim)).for_each(|((both, first), rest)| {
        both[..dim].copy_from_slice(first);
        both[dim..].copy_from_slice(rest);
    });
    both
}

/// Scales each row of `rows` [n, dim] by its factor, in place.
pub fn scale_rows<E: Real>(rows: &mut [E], factors: &[E], dim: usize) {
    rows.par_chunks_exact_mut(dim).zip(factors).for_each(|(row, factor)| row.iter_mut().for_each(|v| *v *= *factor));
}

/// Row i's columns i own .. (i + 1) own of s [n, n own], over tau: [n, own].
pub fn own_columns<E: Real>(s: &[E], [n, own]: [usize; 2], tau: E) -> Vec<E> {
    (0..n).flat_map(|i| &s[i * (n * own + own)..][..own]).map(|s| *s / tau).collect()
}

/// Adds to the gradient of s.
pub fn own_columns_backward<E: Real>(gy: &[E], [n, own]: [usize; 2], tau: E, gs: &mut [E]) {
    for (i, gy) in gy.chunks_exact(own).enumerate() {
        for (gs, gy) in gs[i * (n * own + own)..].iter_mut().zip(gy) {
            *gs += *gy / tau;
        }
    }
}

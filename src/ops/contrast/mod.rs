//! Contrastive logits: which of a row are an anchor's own, and what their candidates are made of.
//!
//! The matrix of logits is the largest that a loss touches. On the CPU each operation passes over it once, on all threads;
//! on a GPU it is never there as a whole.

pub mod cuda;

use rayon::prelude::*;

use super::Real;

/// Which candidates are an anchor's own: those of row (anchor + shift) mod N, where there are N rows of `own` candidates.
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

    /// The same for those anchors that begin with number `first`.
    pub fn from(self, first: usize) -> Self {
        Self { shift: self.shift + first, ..self }
    }

    /// The first own candidate of an anchor, among `candidates`.
    fn first(self, anchor: usize, candidates: usize) -> usize {
        (anchor + self.shift) * self.own % candidates
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

/// The logits of each anchor's own candidates [n, own], where s [n, candidates] are tau times the logits.
pub fn own_columns<E: Real>(s: &[E], candidates: usize, pairs: Pairs, tau: E) -> Vec<E> {
    let rows = s.chunks_exact(candidates).enumerate();
    rows.flat_map(|(i, s)| &s[pairs.first(i, candidates)..][..pairs.own]).map(|s| *s / tau).collect()
}

/// Adds to the gradient of s.
pub fn own_columns_backward<E: Real>(gy: &[E], candidates: usize, pairs: Pairs, tau: E, gs: &mut [E]) {
    for (i, (gs, gy)) in gs.chunks_exact_mut(candidates).zip(gy.chunks_exact(pairs.own)).enumerate() {
        for (gs, gy) in gs[pairs.first(i, candidates)..].iter_mut().zip(gy) {
            *gs += *gy / tau;
        }
    }
}

//! Contrastive logits: which candidates belong to an anchor, and operations that build candidates.
//!
//! The matrix of logits is the largest matrix of a loss. On the CPU each operation passes over it once, on all threads. A GPU
//! never stores it as a whole.

pub mod cuda;

use rayon::prelude::*;

use super::Real;

/// Which candidates are an anchor's own. The candidates form N groups of `own` consecutive candidates; group (a + shift) mod N
/// belongs to anchor a.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairs {
    pub own: usize,
    pub shift: usize,
    /// Whether anchors and candidates are the same rows. A row is then no candidate of itself.
    pub alone: bool,
}

impl Pairs {
    /// Candidates in the order of their anchors: those of the first anchor, then those of the second, and so on.
    pub fn grouped(own: usize) -> Self {
        Self { own, shift: 0, alone: false }
    }

    /// The same pairs if the first anchor passed is the anchor with number `first`.
    pub fn from(self, first: usize) -> Self {
        Self { shift: self.shift + first, ..self }
    }

    /// Index of the first own candidate of an anchor, among `candidates` candidates.
    fn first(self, anchor: usize, candidates: usize) -> usize {
        (anchor + self.shift) * self.own % candidates
    }

    /// Pairs for anchors and candidates that are both the two views of n images, one view after the other. An anchor's own
    /// candidate is the other view of its image.
    pub fn of_views(n: usize) -> Self {
        Self { own: 1, shift: n, alone: true }
    }
}

/// For each i, row i of a [n, dim], then rows i k .. (i + 1) k of b [n k, dim]: [n (k + 1), dim].
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

/// The logits of each anchor's own candidates [n, own], from s [n, candidates], which is tau times the logits.
pub fn own_columns<E: Real>(s: &[E], candidates: usize, pairs: Pairs, tau: E) -> Vec<E> {
    let rows = s.chunks_exact(candidates).enumerate();
    rows.flat_map(|(i, s)| &s[pairs.first(i, candidates)..][..pairs.own]).map(|s| *s / tau).collect()
}

/// Backward pass of [`own_columns`]: adds to gs, the gradient of s, from gy, that of the result.
pub fn own_columns_backward<E: Real>(gy: &[E], candidates: usize, pairs: Pairs, tau: E, gs: &mut [E]) {
    for (i, (gs, gy)) in gs.chunks_exact_mut(candidates).zip(gy.chunks_exact(pairs.own)).enumerate() {
        for (gs, gy) in gs[pairs.first(i, candidates)..].iter_mut().zip(gy) {
            *gs += *gy / tau;
        }
    }
}

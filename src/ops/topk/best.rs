//! The k best of a stream of scores.

use std::cmp::Ordering;

use crate::ops::Real;

/// Scores that are compared with the floor at once; a multiple of any vector width.
const CHUNK: usize = 64;

/// Keeps at least the `k` best (score, row) seen so far. It collects up to `2 k`, then drops the worse half and raises the
/// floor: a selection per `k` arrivals is cheaper than keeping an order at each.
#[derive(Clone)]
pub struct Best<E> {
    k: usize,
    /// The k-th best at the last selection; only what exceeds it can matter, as equal ones come later and lose the tie.
    floor: Option<E>,
    kept: Vec<(E, usize)>,
}

impl<E: Real> Best<E> {
    /// Nothing seen yet; `k` is at least 1.
    pub fn new(k: usize) -> Self {
        Self { k, floor: None, kept: Vec::with_capacity(2 * k) }
    }

    /// Takes the scores of the rows from `first` on, which must come after all rows seen.
    pub fn offer(&mut self, first: usize, scores: &[E], excluded: impl Fn(usize) -> bool) {
        for (chunk, start) in scores.chunks(CHUNK).zip((first..).step_by(CHUNK)) {
            // No early exit: without one the loop becomes vector instructions.
            if self.floor.is_some_and(|floor| !chunk.iter().fold(false, |any, &score| any | (score > floor))) {
                continue;
            }
            for (&score, row) in chunk.iter().zip(start..) {
                if self.floor.is_none_or(|floor| score > floor) && !excluded(row) {
                    self.kept.push((if score.is_nan() { E::neg_infinity() } else { score }, row));
                    if self.kept.len() == 2 * self.k {
                        self.select();
                        self.floor = self.kept.last().map(|worst| worst.0);
                    }
                }
            }
        }
    }

    /// The best of both.
    pub fn merge(mut self, other: Self) -> Self {
        self.kept.extend(other.kept);
        self.select();
        self
    }

    /// At most `k`, best first.
    pub fn into_sorted(mut self) -> Vec<(E, usize)> {
        self.select();
        self.kept.sort_unstable_by(better);
        self.kept
    }

    /// Drops all but the `k` best; the worst of these is then the last.
    fn select(&mut self) {
        if self.kept.len() > self.k {
            self.kept.select_nth_unstable_by(self.k - 1, better);
            self.kept.truncate(self.k);
        }
    }
}

/// Larger scores first, then lower rows. NaN was replaced on arrival.
fn better<E: Real>(a: &(E, usize), b: &(E, usize)) -> Ordering {
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

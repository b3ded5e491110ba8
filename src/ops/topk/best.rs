//! The k best of streams of scores.

use std::cmp::Ordering;

use crate::ops::{Real, simd::vectorized};

/// Queries whose scores are compared with their floors at once; a multiple of any vector width.
const CHUNK: usize = 64;
/// Where one of them exceeds its floor, it is searched for among so many.
const PART: usize = 16;

/// Keeps at least the `k` best (score, row) seen so far. It collects up to `2 k`, then drops the worse half: a selection
/// per `k` arrivals is cheaper than keeping an order at each.
#[derive(Clone)]
pub struct Best<E> {
    k: usize,
    kept: Vec<(E, usize)>,
}

/// The bests of several queries, and per query the k-th best at its last selection: only what exceeds that floor can
/// matter, as equal ones come later and lose the tie. Before the first selection it is NaN, which nothing falls below.
#[derive(Clone)]
pub struct Bests<E> {
    bests: Vec<Best<E>>,
    floors: Vec<E>,
}

impl<E: Real> Bests<E> {
    /// Nothing seen yet; `k` is at least 1.
    pub fn new(queries: usize, k: usize) -> Self {
        let best = Best { k, kept: Vec::with_capacity(2 * k) };
        Self { bests: vec![best; queries], floors: vec![E::nan(); queries] }
    }

    #[allow(clippy::neg_cmp_op_on_partial_ord, reason = "a floor that is NaN lets everything pass")]
    /// Takes `scores` [rows, width], of which a row begins with the scores of all queries with one bank row. The first
    /// is that of bank row `first`; bank rows must come in order.
    pub fn offer(&mut self, first: usize, scores: &[E], width: usize, excluded: impl Fn(usize, usize) -> bool) {
        let queries = self.bests.len();
        for (row, scores) in scores.chunks_exact(width).enumerate() {
            for (start, scores) in (0..).step_by(CHUNK).zip(scores[..queries].chunks(CHUNK)) {
                if !reaches(scores, &self.floors[start..start + scores.len()]) {
                    continue;
                }
                for (start, scores) in (start..).step_by(PART).zip(scores.chunks(PART)) {
                    if !reaches(scores, &self.floors[start..start + scores.len()]) {
                        continue;
                    }
                    for (query, score) in (start..).zip(scores) {
                        if !(*score <= self.floors[query]) && !excluded(query, first + row) {
                            self.take(query, *score, first + row);
                        }
                    }
                }
            }
        }
    }

    fn take(&mut self, query: usize, score: E, row: usize) {
        let best = &mut self.bests[query];
        best.kept.push((if score.is_nan() { E::neg_infinity() } else { score }, row));
        if best.kept.len() == 2 * best.k {
            best.select();
            self.floors[query] = best.kept[best.k - 1].0;
        }
    }

    /// The best of both.
    pub fn merge(self, other: Self) -> Self {
        let bests = self.bests.into_iter().zip(other.bests).map(|(left, right)| left.merge(right)).collect();
        Self { bests, floors: self.floors }
    }

    /// Per query at most `k`, best first.
    pub fn into_sorted(self) -> impl Iterator<Item = Vec<(E, usize)>> {
        self.bests.into_iter().map(Best::into_sorted)
    }
}

/// Whether a score is not below its floor. No early exit: without one the loop becomes vector instructions.
#[allow(clippy::neg_cmp_op_on_partial_ord, reason = "a floor that is NaN lets everything pass")]
fn reaches<E: Real>(scores: &[E], floors: &[E]) -> bool {
    vectorized(
        #[inline(always)]
        || {
            let mut any = false;
            for i in 0..scores.len() {
                any |= !(scores[i] <= floors[i]);
            }
            any
        },
    )
}

impl<E: Real> Best<E> {
    /// The best of both.
    fn merge(mut self, other: Self) -> Self {
        self.kept.extend(other.kept);
        self.select();
        self
    }

    /// At most `k`, best first.
    fn into_sorted(mut self) -> Vec<(E, usize)> {
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

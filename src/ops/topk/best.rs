//! Keeps the k best of a stream of scores for each query.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::ops::{Real, reductions::WHOLE_VECTORS, simd::vectorized};

/// Number of queries whose scores are compared with their floors at once.
const CHUNK: usize = 64;

/// Keeps at least the `k` best pairs (score, row) so far. It collects up to `2 k` pairs, then drops the worse half: one selection
/// per `k` new pairs is cheaper than keeping the pairs sorted.
#[derive(Clone)]
pub struct Best<E> {
    k: usize,
    kept: Vec<(E, usize)>,
}

/// The best pairs of several queries, and a floor per query: the k-th best score at its last selection, or a higher floor from
/// another run. Only a score above the floor can be among the best, because an equal score comes from a later row and loses the
/// tie. Before the first selection the floor is NaN, which every score passes.
#[derive(Clone)]
pub struct Bests<E> {
    bests: Vec<Best<E>>,
    /// The floors of the queries, then infinite floors that fill the last vector.
    floors: Vec<E>,
}

impl<E: Real> Bests<E> {
    /// An empty collection for `queries` queries. `k` is at least 1.
    pub fn new(queries: usize, k: usize) -> Self {
        let best = Best { k, kept: Vec::with_capacity(2 * k) };
        let mut floors = vec![E::nan(); queries];
        floors.resize(queries.next_multiple_of(WHOLE_VECTORS), E::infinity());
        Self { bests: vec![best; queries], floors }
    }

    /// Takes `scores` [rows, width]. Each row holds the scores of all queries with one bank row, padded to whole vectors. The
    /// first row belongs to bank row `first`. Bank rows must arrive in ascending order.
    pub fn offer(&mut self, first: usize, scores: &[E], width: usize, excluded: impl Fn(usize, usize) -> bool) {
        assert_eq!(self.floors.len(), width);
        vectorized(
            #[inline(always)]
            || {
                for (row, scores) in scores.chunks_exact(width).enumerate() {
                    let (chunks, rest) = scores.as_chunks::<CHUNK>();
                    for (i, chunk) in chunks.iter().enumerate() {
                        let start = i * CHUNK;
                        if reaches(chunk, self.floors[start..].first_chunk().expect("a floor for each score")) {
                            self.scan(start, chunk, first + row, &excluded);
                        }
                    }
                    self.scan(chunks.len() * CHUNK, rest, first + row, &excluded);
                }
            },
        );
    }

    /// Takes the `scores` that exceed their floors. They are the scores of the queries from `start` on with bank row `row`.
    #[inline(always)]
    fn scan(&mut self, start: usize, scores: &[E], row: usize, excluded: &impl Fn(usize, usize) -> bool) {
        for (i, part) in scores.as_chunks::<WHOLE_VECTORS>().0.iter().enumerate() {
            let start = start + i * WHOLE_VECTORS;
            let hits = hits(part, self.floors[start..].first_chunk().expect("a floor for each score"));
            if hits != 0 {
                self.take_hits(start, part, hits, row, excluded);
            }
        }
    }

    #[inline(never)]
    fn take_hits(
        &mut self,
        start: usize,
        scores: &[E],
        mut hits: u32,
        row: usize,
        excluded: &impl Fn(usize, usize) -> bool,
    ) {
        while hits != 0 {
            let i = hits.trailing_zeros() as usize;
            hits &= hits - 1;
            let query = start + i;
            if query < self.bests.len() && !excluded(query, row) {
                self.take(query, scores[i], row);
            }
        }
    }

    fn take(&mut self, query: usize, score: E, row: usize) {
        let best = &mut self.bests[query];
        best.kept.push((if score.is_nan() { E::neg_infinity() } else { score }, row));
        if best.kept.len() == 2 * best.k {
            best.select();
            // A floor from another run may be higher. `max` ignores a floor that is NaN.
            self.floors[query] = best.kept[best.k - 1].0.max(self.floors[query]);
        }
    }

    /// Raises the shared `floors` to this run's floors, then this run's floors to just below the shared ones.
    pub fn exchange(&mut self, floors: &mut Floors<E>) {
        for (own, shared) in self.floors.iter_mut().zip(&mut floors.0) {
            *shared = shared.max(*own);
            *own = own.max(below(*shared));
        }
    }

    /// Merges the best pairs of all runs: at most `k` per query, best first.
    pub fn merge(parts: Vec<Self>) -> Vec<Vec<(E, usize)>> {
        let queries = parts.first().map_or(0, |part| part.bests.len());
        (0..queries).into_par_iter().map(|query| Best::merge(parts.iter().map(|part| &part.bests[query]))).collect()
    }
}

/// Per query a score that at least `k` rows of the bank are known to reach. NaN if no such score is known.
pub struct Floors<E>(Vec<E>);

impl<E: Real> Floors<E> {
    /// No floor is known yet.
    pub fn none(queries: usize) -> Self {
        Self(vec![E::nan(); queries])
    }
}

/// A number just below `floor`: a row whose score equals another run's floor may win the tie by its lower number, so it has to
/// pass. NaN if `floor` is not finite.
fn below<E: Real>(floor: E) -> E {
    if floor.is_finite() { floor - (floor.abs() * E::epsilon() + E::min_positive_value()) } else { E::nan() }
}

/// Whether a score exceeds its floor.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord, reason = "a floor that is NaN lets everything pass")]
fn passes<E: Real>(score: E, floor: E) -> bool {
    !(score <= floor)
}

/// Whether any score exceeds its floor. The loop has no early exit, so that it compiles to vector instructions.
#[inline(always)]
fn reaches<E: Real, const N: usize>(scores: &[E; N], floors: &[E; N]) -> bool {
    let mut any = false;
    for i in 0..N {
        any |= passes(scores[i], floors[i]);
    }
    any
}

/// Bit i says whether score i exceeds its floor.
#[inline(always)]
fn hits<E: Real, const N: usize>(scores: &[E; N], floors: &[E; N]) -> u32 {
    const { assert!(N <= 32) };
    let mut hits = 0;
    for i in 0..N {
        hits |= u32::from(passes(scores[i], floors[i])) << i;
    }
    hits
}

impl<E: Real> Best<E> {
    /// Merges the pairs of all `parts`: at most `k`, best first.
    fn merge<'a>(parts: impl Iterator<Item = &'a Self>) -> Vec<(E, usize)> {
        let mut all = Self { k: 0, kept: Vec::new() };
        for part in parts {
            all.k = part.k;
            all.kept.extend_from_slice(&part.kept);
        }
        all.select();
        all.kept.sort_unstable_by(better);
        all.kept
    }

    /// Drops all pairs except the `k` best. The worst of these is then the last one.
    fn select(&mut self) {
        if self.kept.len() > self.k {
            self.kept.select_nth_unstable_by(self.k - 1, better);
            self.kept.truncate(self.k);
        }
    }
}

/// Orders larger scores first, then lower rows. No score is NaN: `Bests::take` replaces NaN.
fn better<E: Real>(a: &(E, usize), b: &(E, usize)) -> Ordering {
    if a.0 == b.0 {
        a.1.cmp(&b.1)
    } else if a.0 > b.0 {
        Ordering::Less
    } else {
        Ordering::Greater
    }
}

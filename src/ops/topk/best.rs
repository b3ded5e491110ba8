//! The k best of streams of scores.

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::ops::{Real, reductions::WHOLE_VECTORS, simd::vectorized};

/// Queries whose scores are compared with their floors at once.
const CHUNK: usize = 64;

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
    /// Those of the queries, then what makes them whole vectors.
    floors: Vec<E>,
}

impl<E: Real> Bests<E> {
    /// Nothing seen yet; `k` is at least 1.
    pub fn new(queries: usize, k: usize) -> Self {
        let best = Best { k, kept: Vec::with_capacity(2 * k) };
        let mut floors = vec![E::nan(); queries];
        floors.resize(queries.next_multiple_of(WHOLE_VECTORS), E::infinity());
        Self { bests: vec![best; queries], floors }
    }

    /// Takes `scores` [rows, width], of which a row begins with the scores of all queries with one bank row; the width is
    /// that of all queries in whole vectors. The first is that of bank row `first`; bank rows must come in order.
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

    /// Takes those `scores` of queries from `start` on with bank row `row` that exceed their floors.
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
            // One taken over may be higher; a NaN never is.
            self.floors[query] = best.kept[best.k - 1].0.max(self.floors[query]);
        }
    }

    /// Gives the own floors to `floors`, and takes over those that are higher.
    pub fn exchange(&mut self, floors: &mut Floors<E>) {
        for (own, shared) in self.floors.iter_mut().zip(&mut floors.0) {
            *shared = shared.max(*own);
            *own = own.max(below(*shared));
        }
    }

    /// The best of all of them: per query at most `k`, best first.
    pub fn merge(parts: Vec<Self>) -> Vec<Vec<(E, usize)>> {
        let queries = parts.first().map_or(0, |part| part.bests.len());
        (0..queries).into_par_iter().map(|query| Best::merge(parts.iter().map(|part| &part.bests[query]))).collect()
    }
}

/// Per query a score that `k` rows are known to reach, wherever they lie; NaN where none is known.
pub struct Floors<E>(Vec<E>);

impl<E: Real> Floors<E> {
    /// Nothing known.
    pub fn none(queries: usize) -> Self {
        Self(vec![E::nan(); queries])
    }
}

/// Less than `floor`, as a row that equals another run's floor may come first by its number; NaN where there is nothing less.
fn below<E: Real>(floor: E) -> E {
    if floor.is_finite() { floor - (floor.abs() * E::epsilon() + E::min_positive_value()) } else { E::nan() }
}

/// Whether a score exceeds its floor.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord, reason = "a floor that is NaN lets everything pass")]
fn passes<E: Real>(score: E, floor: E) -> bool {
    !(score <= floor)
}

/// Whether any score exceeds its floor. No early exit: without one the loop becomes vector instructions.
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
    /// The best of all of them: at most `k`, best first.
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
    if a.0 == b.0 {
        a.1.cmp(&b.1)
    } else if a.0 > b.0 {
        Ordering::Less
    } else {
        Ordering::Greater
    }
}

//! Finds the k largest dot products of each query with the rows of a bank, without storing all dot products.
//!
//! The bank is cut into blocks of rows. One matrix product computes the dot products of a block, in full precision or with
//! factors rounded to bf16. Each score is then compared with the k-th best score of its query so far. Almost all scores are lower
//! and cost only this comparison.
//!
//! A score is one sum in the order of the dimensions. Which k rows win depends on the scores alone, and ties go to the lower row.
//! So neither the number of threads nor the assignment of blocks to threads changes a bit of the result.

mod bank;
mod best;
pub mod cuda;

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use rayon::prelude::*;

pub use self::bank::Bank;
use self::best::{Bests, Floors};
use super::{
    Real,
    matmul::{Left, MatmulPrecision, Operand, Panels, Start, Strided, WithOperand, elements, multiply},
    matrix::Matrix,
    parts::Threads,
    reductions::WHOLE_VECTORS,
};

/// Queries per matrix product. Each block of queries reads the whole bank. A packed block must stay in a core's cache.
const QUERY_BLOCK: usize = 256;
/// Bank rows per matrix product. The rows and their scores must stay in the cache, too.
const BANK_BLOCK: usize = 128;
/// Number of blocks after which a thread exchanges its floors (see [`Floors`]) with the other threads.
const EXCHANGE: usize = 4;

/// The rows that [`top_k`] found, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct TopK<E> {
    /// Rows per query.
    pub k: usize,
    /// Row in the bank, [queries, k].
    pub indices: Vec<usize>,
    /// Dot product with that row, [queries, k].
    pub scores: Vec<E>,
}

/// The `k` rows of `bank` [m, dim] with the largest dot product with each row of `queries` [n, dim], in descending order. Among
/// equal scores the lower row comes first. `matmul` is the precision of the factors; bf16 is used only if `dim` is a multiple of
/// `WHOLE_VECTORS`.
///
/// `excluded(query, row)` rules a row out for a query. It is called only for rows that may be among the best so far, and must
/// always return the same answer.
///
/// The result's `k` is smaller than requested if some query has fewer rows that are not excluded. The smallest number of rows of
/// any query then applies to all queries. A NaN score counts as negative infinity.
///
/// # Panics
/// When `dim` is 0 or does not divide the lengths of `queries` and `bank`.
pub fn top_k<E: Real>(
    queries: &[E],
    bank: &[E],
    dim: usize,
    k: usize,
    matmul: MatmulPrecision,
    excluded: impl Fn(usize, usize) -> bool + Sync,
) -> TopK<E> {
    assert!(dim > 0 && bank.len().is_multiple_of(dim));
    let matmul = if dim.is_multiple_of(WHOLE_VECTORS) { matmul } else { MatmulPrecision::Full };
    search(queries, Factors::Plain(bank), [bank.len() / dim, dim], k, matmul, excluded)
}

/// The factors of a bank's rows: unchanged, or packed in the layout of the matrix product.
#[derive(Clone, Copy)]
enum Factors<'a, E> {
    Plain(&'a [E]),
    Packed(&'a [E]),
}

fn search<E: Real>(
    queries: &[E],
    bank: Factors<E>,
    [rows, dim]: [usize; 2],
    k: usize,
    matmul: MatmulPrecision,
    excluded: impl Fn(usize, usize) -> bool + Sync,
) -> TopK<E> {
    assert!(queries.len().is_multiple_of(dim));
    let k = k.min(rows);
    if k == 0 {
        return TopK { k, indices: Vec::new(), scores: Vec::new() };
    }
    let found: Vec<Vec<(E, usize)>> = queries
        .par_chunks(QUERY_BLOCK * dim)
        .enumerate()
        .flat_map_iter(|(block, queries)| {
            let first = block * QUERY_BLOCK;
            let excluded = |query, row| excluded(first + query, row);
            matmul.run(Search { queries, bank, rows, dim, k, excluded })
        })
        .collect();
    let k = found.iter().map(Vec::len).min().unwrap_or(k);
    let rows = || found.iter().flat_map(|rows| &rows[..k]);
    TopK { k, indices: rows().map(|row| row.1).collect(), scores: rows().map(|row| row.0).collect() }
}

/// The search for one block of queries. It finds at most `k` rows per query, best first. The threads share the blocks of the
/// bank.
struct Search<'a, E, F> {
    queries: &'a [E],
    bank: Factors<'a, E>,
    rows: usize,
    dim: usize,
    k: usize,
    excluded: F,
}

impl<E: Real, F: Fn(usize, usize) -> bool + Sync> WithOperand<E> for Search<'_, E, F> {
    type Output = Vec<Vec<(E, usize)>>;

    fn with<P: Operand<E>>(self) -> Self::Output {
        let Self { queries, bank, rows, dim, k, excluded } = self;
        let n = queries.len() / dim;
        // The matrix product computes whole vectors of queries.
        let width = n.next_multiple_of(WHOLE_VECTORS);
        let mut padded = queries.to_vec();
        padded.resize(width * dim, E::zero());
        E::with_scratch(elements::<E, P>(dim) * width, |memory| {
            let queries = Panels::pack::<P>(Matrix::new(&padded, width, dim).t(), memory, Threads::All);
            let score = |block: usize, bests: &mut Bests<E>, scores: &mut [E]| {
                let range = block * BANK_BLOCK..((block + 1) * BANK_BLOCK).min(rows);
                let scores = &mut scores[..range.len() * width];
                match bank {
                    Factors::Plain(bank) => {
                        let rows = &bank[range.start * dim..range.end * dim];
                        Left::with_rows::<P>(rows, dim, |rows| multiply::<E, P>(rows, queries, scores, Start::Zero));
                    }
                    Factors::Packed(bank) => {
                        let row = elements::<E, P>(dim);
                        let factors = Strided { data: &bank[range.start * row..], row, column: 1 };
                        multiply::<E, P>(Left { factors, rows: range.len() }, queries, scores, Start::Zero);
                    }
                }
                bests.offer(range.start, scores, width, &excluded);
            };
            // There is one run per thread, not per block: a run starts without floors, so it has to look at every score at first.
            // Each run takes the next block that no other run has taken, and exchanges floors with the other runs now and then.
            let blocks = rows.div_ceil(BANK_BLOCK);
            let runs = rayon::current_num_threads().min(blocks);
            let (next, floors) = (AtomicUsize::new(0), Mutex::new(Floors::none(n)));
            let found = (0..runs).into_par_iter().with_max_len(1).map(|_| {
                let (mut bests, mut scores) = (Bests::new(n, k), vec![E::zero(); BANK_BLOCK * width]);
                for taken in 1.. {
                    let block = next.fetch_add(1, Ordering::Relaxed);
                    if block >= blocks {
                        break;
                    }
                    score(block, &mut bests, &mut scores);
                    if runs > 1 && taken % EXCHANGE == 0 {
                        bests.exchange(&mut floors.lock().unwrap_or_else(PoisonError::into_inner));
                    }
                }
                bests
            });
            Bests::merge(found.collect())
        })
    }
}

#[cfg(test)]
mod tests;

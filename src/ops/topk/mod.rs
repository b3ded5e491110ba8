//! The k largest dot products of each query with the rows of a bank, without ever holding all of them.
//!
//! The bank is cut into blocks of rows. Each block's dot products come from one matrix product, in full precision or of
//! factors rounded to bf16, and are scanned against every query's running k-th best; almost all of them fall below it and
//! cost one comparison. A score is one sum in the order of the dimensions, and which k win depends on the scores alone (ties
//! go to the lower row), so that neither the number of threads nor who computed which block can change a bit of the result.

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

/// Queries per matrix product. Every block of them reads the whole bank; packed, they must stay in a core's cache.
const QUERY_BLOCK: usize = 256;
/// Bank rows per matrix product. They and their scores must stay in the cache too.
const BANK_BLOCK: usize = 128;
/// Blocks after which a thread takes over what the others have found out.
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

/// The `k` rows of `bank` [m, dim] with the largest dot product with each row of `queries` [n, dim], in descending order;
/// of equal ones the lower row comes first. Factors are read as `matmul` says, in bf16 only where `dim` comes in whole
/// vectors.
///
/// `excluded(query, row)` rules a row out for a query. It is asked only about rows that reach the best found so far, and
/// must always give the same answer.
///
/// The result's `k` is smaller than asked when some query has fewer rows that are not excluded: it is the number that the
/// worst-off query has, for all queries. NaN counts as negative infinity.
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

/// The factors of a bank's rows: as they are, or packed as the products want them.
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

/// The search for one block of queries: per query at most `k`, best first. Blocks of the bank are shared out among the threads.
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
        // Products come in whole vectors of queries.
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
            // One run for each thread, since a run begins without floors, below which nothing is looked at. Each takes the
            // blocks that no other took, and now and then the floors that all have reached.
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

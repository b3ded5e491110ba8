//! The k largest dot products of each query with the rows of a bank, without ever holding all of them.
//!
//! The bank is cut into blocks of rows. Each block's dot products come from one matrix product and are scanned against
//! every query's running k-th best; almost all of them fall below it and cost one comparison. Scores depend on the blocks
//! alone, and which k win depends on the scores alone (ties go to the lower row), so that neither the number of threads
//! nor who computed which block can change a bit of the result.

mod best;
#[cfg(any(test, feature = "cuda"))]
pub mod cuda;

use rayon::prelude::*;

use self::best::Best;
use super::{
    Real,
    gemm::{Matrix, Threads, gemm},
};

/// Queries per matrix product. More amortise the packing of the bank's rows; the scores of a block must stay in cache.
const QUERY_BLOCK: usize = 256;
/// Bank rows per matrix product.
const BANK_BLOCK: usize = 512;

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
/// of equal ones the lower row comes first.
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
    excluded: impl Fn(usize, usize) -> bool + Sync,
) -> TopK<E> {
    assert!(dim > 0 && queries.len().is_multiple_of(dim) && bank.len().is_multiple_of(dim));
    let k = k.min(bank.len() / dim);
    if k == 0 {
        return TopK { k, indices: Vec::new(), scores: Vec::new() };
    }
    let found: Vec<Vec<(E, usize)>> = queries
        .par_chunks(QUERY_BLOCK * dim)
        .enumerate()
        .flat_map_iter(|(block, queries)| {
            let first = block * QUERY_BLOCK;
            search(queries, bank, dim, k, |query, row| excluded(first + query, row)).into_iter().map(Best::into_sorted)
        })
        .collect();
    let k = found.iter().map(Vec::len).min().unwrap_or(k);
    let rows = || found.iter().flat_map(|rows| &rows[..k]);
    TopK { k, indices: rows().map(|row| row.1).collect(), scores: rows().map(|row| row.0).collect() }
}

/// The best rows for one block of queries. Blocks of the bank are shared out among the threads; whoever has several in
/// a row goes on with the same running bests.
fn search<E: Real>(
    queries: &[E],
    bank: &[E],
    dim: usize,
    k: usize,
    excluded: impl Fn(usize, usize) -> bool + Sync,
) -> Vec<Best<E>> {
    let n = queries.len() / dim;
    bank.par_chunks(BANK_BLOCK * dim)
        .enumerate()
        .fold(
            || (vec![Best::new(k); n], Vec::new()),
            |(mut bests, mut scores), (block, rows)| {
                let m = rows.len() / dim;
                scores.resize(n * m, E::zero());
                let (q, r) = (Matrix::new(queries, n, dim), Matrix::new(rows, m, dim));
                gemm(q, r.t(), E::zero(), &mut scores, Threads::One);
                for (query, (best, scores)) in bests.iter_mut().zip(scores.chunks_exact(m)).enumerate() {
                    best.offer(block * BANK_BLOCK, scores, |row| excluded(query, row));
                }
                (bests, scores)
            },
        )
        .map(|(bests, _)| bests)
        .reduce_with(|left, right| left.into_iter().zip(right).map(|(l, r)| l.merge(r)).collect())
        .expect("the bank has at least one row")
}

#[cfg(test)]
mod tests;

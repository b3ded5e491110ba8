//! The search of the queue: the exact K largest dot products of each query with its rows.

use super::{Options, Workload, rows::normal};
use crate::ops::{normalize::normalize_rows, topk::top_k};

/// Queries, rows and width: a batch of 256 at the paper's queue.
const QUERIES: usize = 256;
const ROWS: usize = 131_072;
const DIM: usize = 256;
const K: usize = 30;

pub(super) fn prepare(options: &Options) -> Workload {
    let (length, k) = (options.queue_length.unwrap_or(ROWS), options.k.unwrap_or(K));
    let unit = |n, seed| {
        let mut rows = normal(n, DIM, seed);
        normalize_rows(&mut rows, DIM);
        rows
    };
    let (queries, bank) = (unit(QUERIES, 0), unit(length, 1));
    let products = options.precision.products();
    let what = format!("the {k} nearest of {length} rows to each of {QUERIES} queries, width {DIM}");
    Workload::new(what, None, move || {
        std::hint::black_box(top_k(&queries, &bank, DIM, k, products, |_, _| false));
        Ok(())
    })
}

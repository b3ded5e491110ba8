//! Measures the search in the queue: the exact K largest dot products of each query with its rows.

use super::{Options, Workload, rows::normal};
use crate::{
    ops::{
        normalize::normalize_rows,
        topk::{Bank, cuda::BankGpu},
    },
    train::Device,
};

/// Queries, rows and width: a batch of 256 at the paper's queue.
const QUERIES: usize = 256;
const ROWS: usize = 131_072;
const DIM: usize = 256;
const K: usize = 30;

/// # Errors
/// When the device fails.
pub(super) fn prepare(options: &Options) -> anyhow::Result<Workload> {
    let (length, k) = (options.queue_length.unwrap_or(ROWS), options.k.unwrap_or(K));
    let count = options.queries.unwrap_or(QUERIES);
    let unit = |n, seed| {
        let mut rows = normal(n, DIM, seed);
        normalize_rows(&mut rows, DIM);
        rows
    };
    let (queries, bank) = (unit(count, 0), unit(length, 1));
    let matmul = options.precision.matmul();
    let what = format!("the {k} nearest of {length} rows to each of {count} queries, width {DIM}");
    let Some(gpu) = Device::chosen().gpu()? else {
        let bank = Bank::new(bank, DIM, matmul);
        return Ok(Workload::new(what, None, move || {
            std::hint::black_box(bank.top_k(&queries, k, |_, _| false));
            Ok(())
        }));
    };
    // Queries and rows lie on the device; what is found is read, which waits for it.
    let none = vec![-1; length];
    let bank = BankGpu::new(&gpu, DIM, &bank, &vec![1.0; length], [&none; 3])?;
    let queries = gpu.upload(&queries)?;
    Ok(Workload::new(what, None, move || {
        std::hint::black_box(bank.search(queries.view(), count, k, None)?.read()?);
        Ok(())
    }))
}

//! Measures the search in the queue: finds for each query the exact K rows with the largest dot products.

use super::{Options, Workload, rows::normal};
use crate::{
    ops::{
        normalize::normalize_rows,
        topk::{Bank, cuda::BankGpu},
    },
    train::Device,
};

/// Default numbers of queries and rows, and the width: a batch of 256 and the queue of the paper.
const QUERIES: usize = 256;
const ROWS: usize = 131_072;
const DIM: usize = 256;
const K: usize = 30;

/// Prepares the search on the process's device.
///
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
    // Queries and rows are already on the device. Reading the result waits until the search has finished.
    let none = vec![-1; length];
    let bank = BankGpu::new(&gpu, DIM, &bank, &vec![1.0; length], [&none; 3])?;
    let queries = gpu.upload(&queries)?;
    Ok(Workload::new(what, None, move || {
        std::hint::black_box(bank.search(queries.view(), count, k, None)?.read()?);
        Ok(())
    }))
}

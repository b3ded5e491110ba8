//! The search of the kNN stage: on the GPU of the process if it has one, else on the CPU.

use crate::ops::{
    cuda::{Gpu, GpuError},
    matmul::MatmulPrecision,
    topk::{
        TopK,
        cuda::{BankGpu, MOST},
        top_k,
    },
};

/// Rows [m, dim] of unit length that are searched in several calls.
pub enum Bank<'a> {
    Cpu { rows: &'a [f32], dim: usize },
    Gpu { gpu: &'a Gpu, bank: BankGpu, dim: usize },
}

impl<'a> Bank<'a> {
    /// A bank for searches for up to `most` rows. It is on `gpu` if there is one whose memory holds the rows, and which finds as
    /// many.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn new(gpu: Option<&'a Gpu>, rows: &'a [f32], dim: usize, most: usize) -> Result<Self, GpuError> {
        let cpu = Bank::Cpu { rows, dim };
        let Some(gpu) = gpu.filter(|_| most <= MOST) else { return Ok(cpu) };
        // The search of a queue knows lengths and marks of its rows. These have none.
        let (lengths, none) = (vec![1.0; rows.len() / dim], vec![-1; rows.len() / dim]);
        match BankGpu::new(gpu, dim, rows, &lengths, [&none; 3]) {
            Ok(bank) => Ok(Bank::Gpu { gpu, bank, dim }),
            Err(GpuError::Memory { .. }) => Ok(cpu),
            Err(error) => Err(error),
        }
    }

    /// The `k` rows nearest to each of `queries` [n, dim].
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn top_k(&self, queries: &[f32], k: usize) -> Result<TopK<f32>, GpuError> {
        match self {
            Bank::Cpu { rows, dim } => Ok(top_k(queries, rows, *dim, k, MatmulPrecision::Full, |_, _| false)),
            Bank::Gpu { gpu, bank, dim } => {
                let queries_gpu = gpu.upload(queries)?;
                bank.search(queries_gpu.view(), queries.len() / dim, k, None)?.read()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{cuda::testing::on_every_gpu, normalize::normalize_rows};

    #[test]
    fn a_gpu_finds_the_rows_that_the_cpu_finds() {
        let ramp = |n: usize, step: f64| {
            let mut rows: Vec<f32> = (0..n * 12).map(|i| (i as f64 * i as f64 * step).sin() as f32).collect();
            normalize_rows(&mut rows, 12);
            rows
        };
        let (rows, queries) = (ramp(300, 0.011), ramp(40, 0.37));
        let expected = Bank::new(None, &rows, 12, 20).unwrap().top_k(&queries, 20).unwrap();
        on_every_gpu(|gpu| {
            let bank = Bank::new(Some(gpu), &rows, 12, 20).unwrap();
            assert!(matches!(bank, Bank::Gpu { .. }));
            let found = bank.top_k(&queries, 20).unwrap();
            assert_eq!((found.k, &found.indices), (20, &expected.indices));
            assert!(found.scores.iter().zip(&expected.scores).all(|(a, b)| (a - b).abs() < 1e-6));
            assert!(matches!(Bank::new(Some(gpu), &rows, 12, MOST + 1), Ok(Bank::Cpu { .. })), "a GPU finds fewer");
            found.indices
        });
    }
}

//! The search on a GPU, where the bank lies.

use super::TopK;
use crate::ops::cuda::{Arg, Buffer, Gpu, GpuError, Source, THREADS, one_each};

/// The kernels.
pub static SOURCE: Source =
    Source { name: "topk", defines: "", text: include_str!("topk.cu"), kernels: &["top_k", "top_k_merge", "enqueue"] };

/// Queries per block.
const TILE: usize = 64;
/// Blocks that keep a GPU busy.
const BUSY: usize = 528;
/// Most slices of the bank, and fewest rows in one. Slices change no result.
const SLICES: usize = 64;
const SLICE_ROWS: usize = 256;

/// A bank of rows [length, dim] on a GPU, and the sample that each row came from.
#[derive(Debug)]
pub struct BankGpu {
    gpu: Gpu,
    dim: usize,
    length: usize,
    rows: Buffer,
    samples: Buffer,
}

impl BankGpu {
    /// Copies a bank to the GPU.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(gpu: &Gpu, dim: usize, rows: &[f32], samples: &[i64]) -> Result<Self, GpuError> {
        assert_eq!(rows.len(), samples.len() * dim);
        let (rows, samples_gpu) = (gpu.upload(rows)?, gpu.upload(samples)?);
        Ok(Self { gpu: gpu.clone(), dim, length: samples.len(), rows, samples: samples_gpu })
    }

    /// Overwrites the rows from `first` on.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write(&self, first: usize, rows: &[f32], samples: &[i64]) -> Result<(), GpuError> {
        assert!(rows.len() == samples.len() * self.dim && first + samples.len() <= self.length);
        self.gpu.write(self.rows.at() + (first * self.dim * 4) as u64, rows)?;
        self.gpu.write(self.samples.at() + (first * 8) as u64, samples)
    }

    /// What [`super::top_k`] finds, with `exclude` the sample of each query, whose own rows are left out. Queries
    /// [n, dim] lie at an address of the device. Waits for the result.
    ///
    /// # Errors
    /// When the device fails.
    pub fn search(&self, queries: u64, n: usize, k: usize, exclude: Option<&[i64]>) -> Result<TopK<f32>, GpuError> {
        let k = k.min(self.length);
        if k == 0 || n == 0 {
            return Ok(TopK { k: 0, indices: Vec::new(), scores: Vec::new() });
        }
        let blocks = n.div_ceil(TILE);
        let wanted = (BUSY / blocks).clamp(1, SLICES).min(self.length.div_ceil(SLICE_ROWS));
        let slice_rows = self.length.div_ceil(wanted).next_multiple_of(TILE);
        let slices = self.length.div_ceil(slice_rows);
        let gpu = &self.gpu;
        let take = |bytes: usize| gpu.take(bytes);
        let (scores, rows, counts) = (take(slices * n * k * 4)?, take(slices * n * k * 4)?, take(slices * n * 4)?);
        let exclude = exclude.map(|samples| gpu.upload(samples)).transpose()?;
        let query_samples = exclude.as_ref().map_or(0, Buffer::at);
        let [n_arg, m, dim, k_arg, slice_rows] = [n, self.length, self.dim, k, slice_rows].map(Arg::count);
        let (query_samples, samples) = (Arg::At(query_samples), self.samples.arg());
        let lists = [scores.arg(), rows.arg(), counts.arg()];
        let problem = [Arg::At(queries), self.rows.arg(), n_arg, m, dim, k_arg, slice_rows, query_samples, samples];
        gpu.launch(&SOURCE, "top_k", [blocks, slices, 1], &[&problem[..], &lists].concat())?;
        let best = (take(n * k * 4)?, take(n * k * 4)?, take(n * 4)?);
        let results = [best.0.arg(), best.1.arg(), best.2.arg()];
        let args = [&[n_arg, k_arg, Arg::count(slices)][..], &lists, &results].concat();
        gpu.launch(&SOURCE, "top_k_merge", one_each(n), &args)?;

        let (scores, rows, counts): (Vec<f32>, Vec<i32>, Vec<i32>) = (best.0.read()?, best.1.read()?, best.2.read()?);
        // The worst-off query sets how many all get.
        let least = counts.iter().map(|count| *count as usize).min().unwrap_or(k);
        let of_each = |list: &[i32]| list.chunks(k).flat_map(|row| &row[..least]).map(|r| *r as usize).collect();
        let indices = of_each(&rows);
        let scores = scores.chunks(k).flat_map(|row| &row[..least]).copied().collect();
        Ok(TopK { k: least, indices, scores })
    }

    /// As [`BankGpu::search`], for queries of the host.
    ///
    /// # Errors
    /// When the device fails.
    pub fn search_for(&self, queries: &[f32], k: usize, exclude: Option<&[i64]>) -> Result<TopK<f32>, GpuError> {
        let n = queries.len() / self.dim;
        self.search(self.gpu.upload(queries)?.at(), n, k, exclude)
    }
}

const _: () = assert!(THREADS == 256); // the kernel's tiles are cut for it

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{cuda::testing::on_every_gpu, topk::top_k};

    fn ramp(n: usize, step: f64) -> Vec<f32> {
        (0..n).map(|i| (i as f64 * i as f64 * step).sin() as f32).collect()
    }

    #[test]
    fn finds_what_the_cpu_finds() {
        for (n, m, dim, k, own) in
            [(3, 70, 5, 7, false), (70, 1000, 20, 30, true), (130, 600, 16, 3, false), (2, 40, 8, 40, true)]
        {
            let (queries, bank) = (ramp(n * dim, 0.37), ramp(m * dim, 0.011));
            let bank_samples: Vec<i64> = (0..m as i64).map(|i| i % 50).collect();
            let samples: Vec<i64> = (0..n as i64).collect();
            let out = |q: usize, r: usize| own && samples[q] == bank_samples[r];
            let expected = top_k(&queries, &bank, dim, k, crate::ops::product::Products::Full, out);
            on_every_gpu(|gpu| {
                let gpu_bank = BankGpu::new(gpu, dim, &bank, &bank_samples).unwrap();
                let found = gpu_bank.search_for(&queries, k, own.then_some(&samples[..])).unwrap();
                assert_eq!(found.k, expected.k);
                for (i, (a, b)) in found.scores.iter().zip(&expected.scores).enumerate() {
                    // Sums of 20 products of magnitude 1 in another order.
                    assert!((a - b).abs() < 1e-5, "{n}x{m}: score {i}: {a} instead of {b}");
                    let score = |row: usize| -> f32 {
                        let query = &queries[i / found.k * dim..][..dim];
                        query.iter().zip(&bank[row * dim..][..dim]).map(|(q, b)| q * b).sum()
                    };
                    assert!((score(found.indices[i]) - b).abs() < 1e-5, "row {} is not the one", found.indices[i]);
                    assert!(!out(i / found.k, found.indices[i]));
                }
                (found.indices, found.scores)
            });
        }
    }

    /// Small integers: every product is exact and many coincide, so that rows must agree, ties and all.
    #[test]
    fn equal_scores_go_to_the_lower_row_and_written_rows_count() {
        let bank: Vec<f32> = ramp(1500, 0.3).iter().map(|v| (v * 3.0).round()).collect();
        let queries = [1.0, 2.0, -1.0, 0.0, 0.0, 0.0];
        let samples = vec![0i64; 750];
        let expected = top_k(&queries, &bank, 2, 100, crate::ops::product::Products::Full, |_, _| false);
        on_every_gpu(|gpu| {
            let zeros = BankGpu::new(gpu, 2, &[0.0; 1500], &samples).unwrap();
            zeros.write(0, &bank[..700], &samples[..350]).unwrap();
            zeros.write(350, &bank[700..], &samples[350..]).unwrap();
            let found = zeros.search_for(&queries, 100, None).unwrap();
            assert_eq!(found, expected);
            found.indices
        });
    }
}

//! Top-k search in a bank on a GPU, and copies of the rows that it finds.

use super::TopK;
use crate::ops::{
    cuda::{Arg, Buffer, Gpu, GpuError, Kind, Source, THREADS, View},
    normalize,
};

const KERNELS: &[&str] = &["top_k_1", "top_k_4", "top_k_32", "top_k_merge", "gather"];

/// The kernels.
pub static SOURCE: Source = Source {
    name: "topk",
    defines: "#define MATH 0",
    text: concat!(include_str!("../cuda/matmul.cuh"), include_str!("../cuda/pipeline.cuh"), include_str!("topk.cu")),
    kernels: KERNELS,
};

/// Queries per block, and bank rows that a block multiplies at a time.
const QUERIES: usize = 128;
const ROWS: usize = 64;
/// Number of blocks that keeps a GPU busy.
const BUSY: usize = 264;
/// Maximum number of slices of the bank, and minimum number of rows per slice. Slices do not change results.
const SLICES: usize = 128;
const SLICE_ROWS: usize = 512;
/// Warps per block. In the merge each warp has one query.
const WARPS: usize = THREADS / 32;
/// Maximum number of rows that a search finds: the capacity of a warp.
pub const MOST: usize = 1024;

/// Number of integers that are stored with each row: its sample, and two more.
pub const MARKS: usize = 3;

/// A bank of rows [length, dim] of unit length on a GPU.
#[derive(Debug)]
pub struct BankGpu {
    gpu: Gpu,
    dim: usize,
    length: usize,
    rows: Buffer,
    /// Length of each row before it was normalised.
    norms: Buffer,
    /// [MARKS, length]
    marks: Buffer,
}

/// The result of a search, on the GPU.
#[derive(Debug)]
pub struct FoundGpu {
    n: usize,
    pub k: usize,
    /// Dot products [n, k], best first. `rows` [n, k] are their bank rows, and `counts` [n] the number of rows per query.
    pub scores: Buffer,
    rows: Buffer,
    counts: Buffer,
}

/// Copies of the rows that a search found, on the GPU.
#[derive(Debug)]
pub struct GatheredGpu {
    /// [n k, dim]
    pub vectors: Buffer,
    /// [n k]
    pub norms: Buffer,
    /// [MARKS, n k]
    pub marks: Buffer,
}

impl BankGpu {
    /// Copies a bank to the GPU: rows [length, dim], the length of each row before it was normalised, and its marks.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(gpu: &Gpu, dim: usize, rows: &[f32], norms: &[f32], marks: [&[i64]; MARKS]) -> Result<Self, GpuError> {
        let length = norms.len();
        assert!(rows.len() == length * dim && marks.iter().all(|mark| mark.len() == length));
        let (rows, norms, marks) = (gpu.upload(rows)?, gpu.upload(norms)?, gpu.upload(&marks.concat())?);
        Ok(Self { gpu: gpu.clone(), dim, length, rows, norms, marks })
    }

    /// Normalises `rows`, which may have any length, and overwrites the bank's rows from `first` on with them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write(&self, first: usize, rows: View, marks: [&[i64]; MARKS]) -> Result<(), GpuError> {
        let count = marks[0].len();
        assert!(first + count <= self.length && marks.iter().all(|mark| mark.len() == count));
        let to = self.rows.view().part(first * self.dim..(first + count) * self.dim);
        let norms = self.norms.view().part(first..first + count);
        normalize::cuda::forward(&self.gpu, rows, [count, self.dim], to, Some(norms))?;
        for (i, mark) in marks.iter().enumerate() {
            let start = i * self.length + first;
            self.gpu.write(self.marks.view().part(start..start + count), mark)?;
        }
        Ok(())
    }

    /// The rows of the bank, [length, dim].
    pub fn rows(&self) -> View<'_> {
        self.rows.view()
    }

    /// All rows and their lengths before they were normalised. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self) -> Result<(Vec<f32>, Vec<f32>), GpuError> {
        Ok((self.rows.read()?, self.norms.read()?))
    }

    /// Searches like [`super::top_k`], for n queries [n, dim]. `exclude` is the sample of each query: bank rows of the same
    /// sample are left out.
    ///
    /// # Errors
    /// When the device fails.
    pub fn search(&self, queries: View, n: usize, k: usize, exclude: Option<&[i64]>) -> Result<FoundGpu, GpuError> {
        let k = k.min(self.length);
        assert!(k > 0 && n > 0, "there is something to look for");
        if k > MOST {
            let why = format!("{k} neighbours are wanted; a GPU finds at most {MOST}");
            return Err(GpuError::Failed { what: "the search".into(), why });
        }
        let blocks = n.div_ceil(QUERIES);
        let wanted = (BUSY / blocks).clamp(1, SLICES).min(self.length.div_ceil(SLICE_ROWS));
        let slice_rows = self.length.div_ceil(wanted).next_multiple_of(ROWS);
        let slices = self.length.div_ceil(slice_rows);
        let gpu = &self.gpu;
        let take = |slices: usize| -> Result<[Buffer; 3], GpuError> {
            let (found, queries) = (slices * n * k, slices * n);
            Ok([gpu.take(Kind::F32, found)?, gpu.take(Kind::I32, found)?, gpu.take(Kind::I32, queries)?])
        };
        let lists = take(slices)?;
        let exclude = exclude.map(|samples| gpu.upload(samples)).transpose()?;
        let query_samples = Arg::optional(exclude.as_ref().map(Buffer::view), Kind::I64, n);
        let [n_arg, m, dim, k_arg, slice_rows] = [n, self.length, self.dim, k, slice_rows].map(Arg::count);
        let (queries, samples) = (queries.arg(Kind::F32, n * self.dim), self.marks.arg());
        let list_args = lists.each_ref().map(Buffer::arg);
        let problem = [queries, self.rows.arg(), n_arg, m, dim, k_arg, slice_rows, query_samples, samples];
        let kernel = match k {
            0..=32 => "top_k_1",
            33..=128 => "top_k_4",
            _ => "top_k_32",
        };
        // SAFETY: the bank has m rows, and `lists` has a list for every query of every slice.
        unsafe { gpu.launch(&SOURCE, kernel, [blocks, slices, 1], &[&problem[..], &list_args].concat()) }?;
        let [scores, rows, counts] = take(1)?;
        let results = [scores.arg(), rows.arg(), counts.arg()];
        let args = [&[n_arg, k_arg, Arg::count(slices)][..], &list_args, &results].concat();
        // SAFETY: `lists` has the same sizes as above, and the results have a list for every query.
        unsafe { gpu.launch(&SOURCE, "top_k_merge", [n.div_ceil(WARPS), 1, 1], &args) }?;
        Ok(FoundGpu { n, k, scores, rows, counts })
    }

    /// Copies the rows that were found, with their current values. Every query must have found k rows.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn gather(&self, found: &FoundGpu) -> Result<GatheredGpu, GpuError> {
        let rows = found.n * found.k;
        let take = |kind: Kind, values: usize| self.gpu.take(kind, rows * values);
        let (vectors, norms, marks) = (take(Kind::F32, self.dim)?, take(Kind::F32, 1)?, take(Kind::I64, MARKS)?);
        let to = GatheredGpu { vectors, norms, marks };
        let bank = [self.rows.arg(), self.norms.arg(), self.marks.arg()];
        let sizes = [self.length, self.dim, MARKS].map(Arg::count);
        let results = [to.vectors.arg(), to.norms.arg(), to.marks.arg()];
        let args = [&[found.rows.arg()][..], &bank, &sizes, &results].concat();
        // SAFETY: every row that was found is a row of the bank, and has a place in the results.
        unsafe { self.gpu.launch(&SOURCE, "gather", [rows, 1, 1], &args) }?;
        Ok(to)
    }
}

impl FoundGpu {
    /// Reads the result in the form of [`super::top_k`]. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self) -> Result<TopK<f32>, GpuError> {
        let (scores, rows, counts): (Vec<f32>, Vec<i32>, Vec<i32>) =
            (self.scores.read()?, self.rows.read()?, self.counts.read()?);
        // The query with the fewest rows sets the number of rows of all queries.
        let least = counts.iter().map(|count| *count as usize).min().unwrap_or(self.k);
        let of_each = |list: &[i32]| list.chunks(self.k).flat_map(|row| &row[..least]).map(|r| *r as usize).collect();
        let indices = of_each(&rows);
        let scores = scores.chunks(self.k).flat_map(|row| &row[..least]).copied().collect();
        Ok(TopK { k: least, indices, scores })
    }
}

const _: () = assert!(THREADS == 256); // the kernel's tiles are cut for it

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{cuda::testing::on_every_gpu, golden::assert_close, topk::top_k};

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
            let expected = top_k(&queries, &bank, dim, k, crate::ops::matmul::MatmulPrecision::Full, out);
            on_every_gpu(|gpu| {
                let (norms, none) = (vec![1.0; m], vec![-1; m]);
                let gpu_bank = BankGpu::new(gpu, dim, &bank, &norms, [&bank_samples, &none, &none]).unwrap();
                let queries_gpu = gpu.upload(&queries).unwrap();
                let found = gpu_bank.search(queries_gpu.view(), n, k, own.then_some(&samples[..])).unwrap();
                let found = found.read().unwrap();
                assert_eq!(found.k, expected.k);
                for (i, (a, b)) in found.scores.iter().zip(&expected.scores).enumerate() {
                    // The GPU adds the up to 20 products, of magnitude 1, in another order.
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

    /// Small integers: every product is exact and many scores are equal, so that the rows must agree, including ties.
    #[test]
    fn equal_scores_go_to_the_lower_row() {
        let bank: Vec<f32> = ramp(1500, 0.3).iter().map(|v| (v * 3.0).round()).collect();
        let queries = [1.0, 2.0, -1.0, 0.0, 0.0, 0.0];
        let (norms, none) = (vec![1.0; 750], vec![0i64; 750]);
        let expected = top_k(&queries, &bank, 2, 100, crate::ops::matmul::MatmulPrecision::Full, |_, _| false);
        on_every_gpu(|gpu| {
            let bank = BankGpu::new(gpu, 2, &bank, &norms, [&none; MARKS]).unwrap();
            let found = bank.search(gpu.upload(&queries).unwrap().view(), 3, 100, None).unwrap().read().unwrap();
            assert_eq!(found, expected);
            found.indices
        });
    }

    #[test]
    fn written_rows_have_unit_length_and_are_gathered_with_what_is_known_of_them() {
        on_every_gpu(|gpu| {
            let none = [-1i64; 5];
            let bank = BankGpu::new(gpu, 2, &[0.0; 10], &[1.0; 5], [&none; MARKS]).unwrap();
            let rows = gpu.upload(&[3.0f32, 4.0, 0.0, 2.0]).unwrap();
            bank.write(2, rows.view(), [&[7, 8], &[70, 80], &[5, 6]]).unwrap();
            let queries = gpu.upload(&[1.0f32, 0.0, 0.0, 1.0]).unwrap();
            let found = bank.search(queries.view(), 2, 2, Some(&[0, 8])).unwrap();
            let gathered = bank.gather(&found).unwrap();
            // The second query's own row is left out; then come rows of zeros, from the lowest on.
            let scores: Vec<f32> = found.scores.read().unwrap();
            assert_close("scores", &scores, &[0.6, 0.0, 0.8, 0.0], 1e-6);
            let vectors: Vec<f32> = gathered.vectors.read().unwrap();
            assert_close("vectors", &vectors, &[0.6, 0.8, 0.0, 0.0, 0.6, 0.8, 0.0, 0.0], 1e-6);
            assert_close("norms", &gathered.norms.read::<f32>().unwrap(), &[5.0, 1.0, 5.0, 1.0], 1e-6);
            let marks: Vec<i64> = gathered.marks.read().unwrap();
            assert_eq!(marks, [7, -1, 7, -1, 70, -1, 70, -1, 5, -1, 5, -1]);
            let (rows, norms) = bank.read().unwrap();
            assert_close("rows", &rows, &[0.0, 0.0, 0.0, 0.0, 0.6, 0.8, 0.0, 1.0, 0.0, 0.0], 1e-6);
            assert_close("all norms", &norms, &[1.0, 1.0, 5.0, 2.0, 1.0], 1e-6);
            vectors
        });
    }
}

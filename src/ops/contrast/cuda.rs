//! Contrastive logits on a GPU without storing their matrix.
//!
//! A scratch buffer holds the logits of one chunk of candidates at a time. The forward pass sums over the chunk. The backward
//! pass computes the chunk again for its gradient.

use super::Pairs;
use crate::ops::{
    conv2d::{
        Conv2d, Size,
        cuda::{Math, OnGpu},
    },
    cuda::{Arg, Buffer, Gpu, GpuError, Kind, Source, THREADS, View, one_each},
    matmul::MatmulPrecision,
};

/// The kernels.
pub static SOURCE: Source = Source {
    name: "contrast",
    defines: "",
    text: include_str!("contrast.cu"),
    kernels: &["contrast_sums", "contrast_combine", "contrast_slopes", "interleave", "scale_rows"],
};

/// Candidates per partial sum. The number is fixed, so that results do not depend on the chunks.
const PART: usize = 256;
/// Target size of the scratch buffer in elements: 32 MiB, which fit in the cache of a large GPU.
const SCRATCH: usize = 8 << 20;
/// Maximum number of blocks of an element-wise pass.
const BLOCKS: usize = 4096;

/// Logits of anchors [n, dim] and candidates [m, dim] (f32), all rows at unit length.
#[derive(Clone, Copy, Debug)]
pub struct ContrastGpu<'a> {
    pub gpu: &'a Gpu,
    pub math: Math,
    pub n: usize,
    pub m: usize,
    pub dim: usize,
    pub pairs: Pairs,
    pub tau: f32,
    /// Candidates per chunk, a multiple of [`PART`].
    chunk: usize,
}

impl<'a> ContrastGpu<'a> {
    /// Contrastive logits of the sizes `shape`: n, m and dim.
    pub fn new(gpu: &'a Gpu, math: Math, shape: [usize; 3], pairs: Pairs, tau: f32) -> Self {
        let [n, m, dim] = shape;
        let chunk = (SCRATCH / n / PART).max(1) * PART;
        Self { gpu, math, n, m, dim, pairs, tau, chunk }
    }

    /// Computes all [n], the log of the sum of exp over all logits of each anchor, and own [n, own], the logits of its own
    /// candidates.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, inputs: [View; 2], [all, own]: [View; 2]) -> Result<(), GpuError> {
        let count = self.m.div_ceil(PART);
        let parts = self.gpu.take(Kind::F32, count * 2 * self.n)?;
        let [all, own] = [all.arg(Kind::F32, self.n), own.arg(Kind::F32, self.n * self.pairs.own)];
        let scratch = self.scratch()?;
        let [n, part_rows] = [self.n, PART].map(Arg::count);
        for (first, rows) in self.chunks() {
            self.products(inputs, first, rows, &scratch)?;
            let grid = [self.n.div_ceil(32), rows.div_ceil(PART), 1];
            let chunk = [scratch.arg(), Arg::count(rows), Arg::count(first), part_rows];
            let args = [&chunk[..], &self.numbers(), &[parts.arg(), own]].concat();
            // SAFETY: the chunk fits in the scratch buffer, and each of its parts has two rows in `parts`.
            unsafe { self.gpu.launch(&SOURCE, "contrast_sums", grid, &args) }?;
        }
        let args = [parts.arg(), Arg::count(count), n, Arg::Float(1.0 / self.tau), all];
        // SAFETY: `parts` has two rows for each of `count` parts, and `all` has a value for each anchor.
        unsafe { self.gpu.launch(&SOURCE, "contrast_combine", one_each(self.n), &args) }
    }

    /// Adds to the gradients of the anchors and, if given, of the candidates. It computes them from `all` and the gradients of
    /// all and own.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(
        &self,
        inputs: [View; 2],
        all: View,
        [g_all, g_own]: [View; 2],
        g_anchors: View,
        g_candidates: Option<View>,
    ) -> Result<(), GpuError> {
        let [all, g_all] = [all, g_all].map(|view| view.arg(Kind::F32, self.n));
        let g_own = g_own.arg(Kind::F32, self.n * self.pairs.own);
        let scratch = self.scratch()?;
        for (first, rows) in self.chunks() {
            self.products(inputs, first, rows, &scratch)?;
            let blocks = (rows * self.n).div_ceil(THREADS).min(BLOCKS);
            let chunk = [scratch.arg(), Arg::count(rows), Arg::count(first)];
            let args = [&chunk[..], &self.numbers(), &[all, g_all, g_own]].concat();
            // SAFETY: the chunk fits in the scratch buffer, and the other views have their values for each anchor.
            unsafe { self.gpu.launch(&SOURCE, "contrast_slopes", [blocks, 1, 1], &args) }?;
            let ((layer, on), [anchors, candidates]) = (self.layer(rows), inputs);
            let chunk = first * self.dim..(first + rows) * self.dim;
            // Sums over candidates in parts, as gradients of convolution weights are summed over pixels.
            layer.backward_weight_gpu(on, candidates.part(chunk.clone()), scratch.view(), g_anchors)?;
            if let Some(g_candidates) = g_candidates {
                layer.backward_data_gpu(on, scratch.view(), anchors, g_candidates.part(chunk), true)?;
            }
        }
        Ok(())
    }

    fn scratch(&self) -> Result<Buffer, GpuError> {
        self.gpu.take(Kind::F32, self.chunk.min(self.m) * self.n)
    }

    /// First candidate and number of candidates of each chunk.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let (m, chunk) = (self.m, self.chunk);
        (0..m).step_by(chunk).map(move |first| (first, chunk.min(m - first)))
    }

    /// A linear layer whose weights are the anchors and whose inputs are `rows` candidates: a 1x1 convolution of images of one
    /// pixel.
    fn layer(&self, rows: usize) -> (Conv2d, OnGpu<'a>) {
        let conv =
            Conv2d { kernel: 1, stride: 1, padding: 0, input: self.dim, output: self.n, matmul: MatmulPrecision::Full };
        (conv, OnGpu { gpu: self.gpu, math: self.math, size: Size { n: rows, h: 1, w: 1 }, parts: 1 })
    }

    /// Computes the dot products s [rows, n] of `rows` candidates, from `first` on, and all anchors.
    fn products(
        &self,
        [anchors, candidates]: [View; 2],
        first: usize,
        rows: usize,
        s: &Buffer,
    ) -> Result<(), GpuError> {
        let ((layer, on), chunk) = (self.layer(rows), first * self.dim..(first + rows) * self.dim);
        layer.forward_gpu(on, candidates.part(chunk), anchors, s.view(), false)
    }

    fn numbers(&self) -> [Arg; 5] {
        let Pairs { own, shift, alone } = self.pairs;
        let [n, own, shift] = [self.n, own, shift].map(Arg::count);
        [n, own, shift, Arg::Int(alone.into()), Arg::Float(1.0 / self.tau)]
    }
}

/// out [n (k + 1), dim]: for each i, row i of a [n, dim], then rows i k .. (i + 1) k of b [n k, dim].
///
/// # Errors
/// When the device fails.
pub fn interleave(gpu: &Gpu, [a, b]: [View; 2], [n, k, dim]: [usize; 3], out: View) -> Result<(), GpuError> {
    let len = n * (k + 1) * dim;
    let [a, b, out] = [(a, n * dim), (b, n * k * dim), (out, len)].map(|(view, len)| view.arg(Kind::F32, len));
    let args = [a, b, Arg::count(k), Arg::count(dim), Arg::count(len), out];
    // SAFETY: each view has the elements of its shape; `View::arg` checks this.
    unsafe { gpu.launch(&SOURCE, "interleave", one_each(len), &args) }
}

/// out [n, dim]: each row of `rows` [n, dim] times its factor.
///
/// # Errors
/// When the device fails.
pub fn scale_rows(gpu: &Gpu, [rows, factors]: [View; 2], [n, dim]: [usize; 2], out: View) -> Result<(), GpuError> {
    let len = n * dim;
    let [rows, factors, out] = [(rows, len), (factors, n), (out, len)].map(|(view, len)| view.arg(Kind::F32, len));
    let args = [rows, factors, Arg::count(dim), Arg::count(len), out];
    // SAFETY: each view has the elements of its shape; `View::arg` checks this.
    unsafe { gpu.launch(&SOURCE, "scale_rows", one_each(len), &args) }
}

#[cfg(test)]
mod tests {
    use dfdx::prelude::*;

    use super::{ContrastGpu, Kind, Math, PART, Pairs};
    use crate::ops::{
        contrast,
        cuda::testing::on_every_gpu,
        golden::assert_close,
        normalize::normalize_rows,
        tensor::{Matrix, Rows, TensorDevice},
    };

    /// Compares with the operation on the CPU: several chunks and parts, ragged ends, both layouts of pairs, and large logits.
    #[test]
    fn agrees_with_the_cpu() {
        let rows = |n: usize, dim: usize, step: f64| {
            let mut rows: Vec<f32> = (0..n * dim).map(|i| (i as f64 * i as f64 * step).sin() as f32).collect();
            normalize_rows(&mut rows, dim);
            rows
        };
        let device = Cpu::default();
        for (n, dim, pairs, tau, math, tolerance) in [
            (45, 20, Pairs::grouped(13), 0.1, Math::F32, 1e-5),
            // The operands have 10 bits of mantissa, and logits are divided by tau.
            (45, 20, Pairs::grouped(13), 0.1, Math::Tf32, 2e-2),
            // The last part contains no candidate except the last anchor itself.
            (257, 7, Pairs { own: 1, shift: 128, alone: true }, 0.02, Math::F32, 1e-4),
        ] {
            let m = n * pairs.own;
            let (anchors, candidates) = (rows(n, dim, 0.37), rows(m, dim, 0.011));
            let values = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin() as f32).collect::<Vec<_>>();
            let (g_all, g_own) = (values(n, 0.3), values(n * pairs.own, 1.3));
            let a: Matrix<f32, Cpu> = device.tensor_from_vec(anchors.clone(), (n, dim));
            let c: Matrix<f32, Cpu> = device.tensor_from_vec(candidates.clone(), (m, dim));
            let (all, own) = Cpu::contrast(
                Rows::of(a.clone()).unwrap().traced(),
                Rows::of(c.clone()).unwrap().traced(),
                pairs,
                f64::from(tau),
            )
            .unwrap();
            let expected = [all.as_vec(), own.as_vec()];
            let along_all = (all * device.tensor_from_vec(g_all.clone(), (n,))).sum::<Rank0, _>();
            let along_own = (own * device.tensor_from_vec(g_own.clone(), (n, pairs.own))).sum::<Rank0, _>();
            let gradients = (along_all + along_own).backward();
            let gradients = [gradients.get(&a).as_vec(), gradients.get(&c).as_vec()];
            on_every_gpu(|gpu| {
                let whole = ContrastGpu::new(gpu, math, [n, m, dim], pairs, tau);
                let in_chunks = ContrastGpu { chunk: PART, ..whole };
                let run = |contrast: ContrastGpu| {
                    let inputs = [&anchors, &candidates].map(|values| gpu.upload(values).unwrap());
                    let at = [inputs[0].view(), inputs[1].view()];
                    let (all, own) = (gpu.take(Kind::F32, n).unwrap(), gpu.take(Kind::F32, m).unwrap());
                    contrast.forward(at, [all.view(), own.view()]).unwrap();
                    let (g_all, g_own) = (gpu.upload(&g_all).unwrap(), gpu.upload(&g_own).unwrap());
                    let (ga, gc) = (gpu.zeros(Kind::F32, n * dim).unwrap(), gpu.zeros(Kind::F32, m * dim).unwrap());
                    contrast
                        .backward(at, all.view(), [g_all.view(), g_own.view()], ga.view(), Some(gc.view()))
                        .unwrap();
                    [all, own, ga, gc].map(|buffer| buffer.read::<f32>().unwrap())
                };
                let [all, own, ga, gc] = run(in_chunks);
                assert_close("all", &all, &expected[0], tolerance);
                assert_close("own", &own, &expected[1], tolerance);
                // The gradients are divided by tau and summed.
                assert_close("ga", &ga, &gradients[0], tolerance * 10.0);
                assert_close("gc", &gc, &gradients[1], tolerance * 10.0);
                let at_once = run(whole);
                assert!(at_once[0] == all && at_once[1] == own, "chunks change the sums");
                [all, own, ga, gc]
            });
        }
    }

    #[test]
    fn rows_are_interleaved_and_scaled_as_on_the_cpu() {
        let (n, k, dim) = (7, 3, 41);
        let values = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
        let (a, b, factors) = (values(n * dim, 0.7), values(n * k * dim, 0.3), values(n * k, 1.1));
        let mut scaled = b.clone();
        contrast::scale_rows(&mut scaled, &factors, dim);
        let expected = [contrast::interleave(&a, &b, [k, dim]), scaled];
        on_every_gpu(|gpu| {
            let [a, b, factors] = [&a, &b, &factors].map(|values| gpu.upload(values).unwrap());
            let [both, scaled] = [n * (k + 1) * dim, n * k * dim].map(|len| gpu.take(Kind::F32, len).unwrap());
            super::interleave(gpu, [a.view(), b.view()], [n, k, dim], both.view()).unwrap();
            super::scale_rows(gpu, [b.view(), factors.view()], [n * k, dim], scaled.view()).unwrap();
            let found = [both, scaled].map(|buffer| buffer.read::<f32>().unwrap());
            assert_eq!(found, expected);
            found
        });
    }
}

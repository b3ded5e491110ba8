//! Attention on a GPU. Tensors are in device memory, in the arithmetic's storage; queries, keys and values are side by side as
//! [samples, tokens, 3, heads, head width].

use super::Attention;
use crate::ops::{
    conv2d::cuda::Math,
    cuda::{Arg, Buffer, Gpu, GpuError, Kind, Source, View, joined},
};

const KERNELS: [&str; 7] = [
    "attention_forward_32",
    "attention_forward_64",
    "attention_along",
    "attention_queries_32",
    "attention_queries_64",
    "attention_keys_32",
    "attention_keys_64",
];

/// Further kernels of the 16-bit arithmetics.
const BY_WARPS: [&str; 6] = [
    "attention_warps_forward_32",
    "attention_warps_forward_64",
    "attention_warps_queries_32",
    "attention_warps_queries_64",
    "attention_warps_keys_32",
    "attention_warps_keys_64",
];
const KERNELS_OF_WARPS: [&str; 13] = joined(&KERNELS, &BY_WARPS);

const TEXT: &str = concat!(include_str!("../cuda/matmul.cuh"), include_str!("attention.cu"), include_str!("warps.cu"));

/// The kernels, once per arithmetic.
pub static SOURCES: [Source; 4] = [
    Source { name: "attention_f32", defines: "#define MATH 0", text: TEXT, kernels: &KERNELS },
    Source { name: "attention_tf32", defines: "#define MATH 1", text: TEXT, kernels: &KERNELS },
    Source { name: "attention_f16", defines: "#define MATH 2", text: TEXT, kernels: &KERNELS_OF_WARPS },
    Source { name: "attention_bf16", defines: "#define MATH 3", text: TEXT, kernels: &KERNELS_OF_WARPS },
];

/// Queries of a block in the forward pass.
const ROWS: usize = 64;
/// Queries or keys of a block in the kernels whose warps have rows of their own, in all passes.
const ROWS_OF_WARPS: usize = 128;
/// Queries of a block of the kernel `attention_along`: one per warp.
const WARPS: usize = 8;

/// A number of samples on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    pub gpu: &'a Gpu,
    pub math: Math,
    pub samples: usize,
}

/// Tensors of the forward pass that the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    pub qkv: View<'a>,
    /// The output.
    pub y: View<'a>,
    /// The logarithm of the summed exponentials of the logits, for each sample, head and query (f32).
    pub logs: View<'a>,
}

impl Attention {
    /// Takes memory for [`Attended::logs`].
    ///
    /// # Errors
    /// When memory runs out.
    pub fn take_logs(&self, on: Samples) -> Result<Buffer, GpuError> {
        on.gpu.take(Kind::F32, self.queries(on))
    }

    /// y = softmax(q k^T / sqrt(head width)) v, and `logs`, if given, as in [`Attended::logs`]. No matrix of attention weights
    /// is stored.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_gpu(&self, on: Samples, qkv: View, y: View, logs: Option<View>) -> Result<(), GpuError> {
        let logs = Arg::optional(logs, Kind::F32, self.queries(on));
        // SAFETY: all have the elements of their shape.
        unsafe { self.run(on, "forward", ROWS, &[qkv, y], &[self.parts(on, qkv, 3), self.parts(on, y, 1), logs]) }
    }

    /// Queries of all samples and heads.
    fn queries(&self, on: Samples) -> usize {
        on.samples * self.heads * self.tokens
    }

    /// An argument that has `parts` times the width per token.
    fn parts(&self, on: Samples, view: View, parts: usize) -> Arg {
        view.arg(on.math.scalar(), on.samples * self.tokens * self.width * parts)
    }

    /// Computes the gradient of `qkv` into `g_qkv` from `gy`, the gradient of y. The attention weights are recomputed tile by
    /// tile.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward_gpu(&self, on: Samples, of: Attended, gy: View, g_qkv: View) -> Result<(), GpuError> {
        let (along, count) = (self.take_logs(on)?, self.queries(on));
        let [tokens, heads, dim] = self.sizes();
        let views = [of.qkv, gy, g_qkv];
        let [qkv, g_qkv] = [of.qkv, g_qkv].map(|view| self.parts(on, view, 3));
        let [y, gy] = [of.y, gy].map(|view| self.parts(on, view, 1));
        let args = [tokens, heads, dim, Arg::count(count), y, gy, along.arg()];
        let grid = [count.div_ceil(WARPS), 1, 1];
        // SAFETY: all have the elements of their shape.
        unsafe { on.gpu.launch(on.math.source(&SOURCES), "attention_along", grid, &args) }?;
        let tile = if on.math.scalar().bytes() == 2 { 64 } else { 32 }; // the kernels' TILE
        for kernel in ["queries", "keys"] {
            let args = [qkv, gy, of.logs.arg(Kind::F32, count), along.arg(), g_qkv];
            // SAFETY: all have the elements of their shape.
            unsafe { self.run(on, kernel, tile, &views, &args) }?;
        }
        Ok(())
    }

    /// Runs a pass over `views` with the kernel for this arithmetic, head width and alignment.
    ///
    /// # Safety
    /// As for [`Gpu::launch`].
    unsafe fn run(&self, on: Samples, pass: &str, tile: usize, views: &[View], memory: &[Arg]) -> Result<(), GpuError> {
        let columns = if self.head_width() <= 32 { 32 } else { 64 };
        let of_warps = on.math.scalar().bytes() == 2
            && self.head_width() <= columns
            && self.head_width().is_multiple_of(8)
            && views.iter().all(|view| view.is_aligned(16));
        let (kernel, tile) = match of_warps {
            true => (format!("attention_warps_{pass}_{columns}"), ROWS_OF_WARPS),
            false => (format!("attention_{pass}_{columns}"), tile),
        };
        let grid = [on.samples * self.heads, self.tokens.div_ceil(tile), self.head_width().div_ceil(columns)];
        let [tokens, heads, dim] = self.sizes();
        let args = [&[tokens, heads, dim, Arg::Float(self.scale())], memory].concat();
        // SAFETY: as the caller promises.
        unsafe { on.gpu.launch(on.math.source(&SOURCES), &kernel, grid, &args) }
    }

    fn sizes(&self) -> [Arg; 3] {
        [self.tokens, self.heads, self.head_width()].map(Arg::count)
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::{
        attention::side_by_side,
        cuda::testing::{on_every_gpu, read, upload},
        golden::assert_close,
    };

    /// Narrow and wide heads, some that no load of 16 bytes divides, and one of two blocks of columns, the second of which is
    /// ragged; fewer tokens than a tile has, and several tiles and blocks with a ragged last one.
    const SHAPES: [(Attention, usize); 6] = [
        (Attention { tokens: 20, heads: 2, width: 20 }, 1),
        (Attention { tokens: 150, heads: 1, width: 40 }, 1),
        (Attention { tokens: 5, heads: 3, width: 24 }, 2),
        (Attention { tokens: 70, heads: 2, width: 64 }, 1),
        (Attention { tokens: 67, heads: 1, width: 64 }, 2),
        (Attention { tokens: 37, heads: 1, width: 84 }, 1),
    ];

    /// Tolerances for values around 1: f32 sums in another order; for tf32 and f16, operands of 11 bits each, including weights
    /// and gradients of the logits; f16 results are rounded once more. bf16 has three bits less.
    const MATHS: [(Math, f64); 4] = [(Math::F32, 5e-6), (Math::Tf32, 2e-3), (Math::F16, 3e-3), (Math::Bf16, 2.4e-2)];

    #[test]
    fn values_and_gradients_agree_with_the_cpus() {
        for (shape, samples) in SHAPES {
            let len = samples * shape.tokens * shape.width;
            let ramp = |n: usize, step: f32| {
                (0..n).map(|i| bf16::to_f32(bf16::from_f32((i as f32 * step).sin() * 1.5))).collect::<Vec<_>>()
            };
            let (qkv, gy) = (ramp(3 * len, 0.7), ramp(len, 0.37));
            let (mut y, mut g_qkv) = (vec![0.0; len], vec![0.0; 3 * len]);
            side_by_side::forward(&shape, &qkv, &mut y);
            side_by_side::backward(&shape, &qkv, &gy, &mut g_qkv);
            for (math, tolerance) in MATHS {
                on_every_gpu(|gpu| {
                    let up = |values: &[f32]| upload(gpu, math.scalar(), values);
                    let on = Samples { gpu, math, samples };
                    let (qkv, gy) = (up(&qkv), up(&gy));
                    let (y_gpu, alone) = (gy.take_alike().unwrap(), gy.take_alike().unwrap());
                    let logs = shape.take_logs(on).unwrap();
                    let of = Attended { qkv: qkv.view(), y: y_gpu.view(), logs: logs.view() };
                    shape.forward_gpu(on, of.qkv, of.y, Some(of.logs)).unwrap();
                    shape.forward_gpu(on, of.qkv, alone.view(), None).unwrap();
                    assert!(read(&y_gpu) == read(&alone));
                    let g_gpu = qkv.take_alike().unwrap();
                    shape.backward_gpu(on, of, gy.view(), g_gpu.view()).unwrap();
                    assert_close(&format!("{shape:?} {math:?} y"), &read(&y_gpu), &y, tolerance);
                    assert_close(&format!("{shape:?} {math:?} g"), &read(&g_gpu), &g_qkv, tolerance);
                    [read(&y_gpu), read(&g_gpu)]
                });
            }
        }
    }

    #[test]
    fn large_logits_do_not_overflow_and_a_nan_is_not_lost() {
        let shape = Attention { tokens: 40, heads: 1, width: 8 };
        let values = vec![100.0f32; 40 * 3 * 8];
        for math in [Math::F32, Math::F16] {
            on_every_gpu(|gpu| {
                let y = gpu.take(math.scalar(), 40 * 8).unwrap();
                let on = Samples { gpu, math, samples: 1 };
                let run = |values: &[f32]| -> Vec<f32> {
                    let qkv = upload(gpu, math.scalar(), values);
                    shape.forward_gpu(on, qkv.view(), y.view(), None).unwrap();
                    read(&y)
                };
                let found = run(&values);
                assert!(found.iter().all(|y| (y - 100.0).abs() < 1e-4), "{found:?}");
                let mut broken = values.clone();
                broken[8] = f32::NAN; // of the first token's key
                assert!(run(&broken).iter().all(|y| y.is_nan()));
            });
        }
    }
}

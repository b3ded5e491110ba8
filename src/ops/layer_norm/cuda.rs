//! Layer norm on a GPU. All views are of GPU memory; statistics, parameters and their gradients are f32.

use crate::ops::{
    cuda::{Arg, Buffer, Gpu, GpuError, Kind, Scalar, Source, View},
    reductions::cuda::{add_parts, pieces, shares},
};

const KERNELS: &[&str] = &["ln_forward", "ln_backward", "ln_backward_params"];
const TEXT: &str = concat!(
    include_str!("../cuda/storage.cuh"),
    include_str!("../cuda/parts.cuh"),
    include_str!("../cuda/rows.cuh"),
    include_str!("layer_norm.cu")
);

/// The kernels, compiled once per storage type.
pub static SOURCES: [Source; 3] = [
    Source { name: "layer_norm_f32", defines: "#define STORAGE 0", text: TEXT, kernels: KERNELS },
    Source { name: "layer_norm_f16", defines: "#define STORAGE 1", text: TEXT, kernels: KERNELS },
    Source { name: "layer_norm_bf16", defines: "#define STORAGE 2", text: TEXT, kernels: KERNELS },
];

/// Rows per block: one per warp.
const BLOCK_ROWS: usize = 8;

/// Rows [rows, dim] on a GPU and the parameters of their layer norm.
#[derive(Clone, Copy, Debug)]
pub struct NormRows<'a> {
    pub gpu: &'a Gpu,
    pub scalar: Scalar,
    pub rows: usize,
    pub dim: usize,
    /// [dim], f32
    pub weight: View<'a>,
    pub bias: View<'a>,
}

impl NormRows<'_> {
    /// Allocates memory for the statistics of the rows: mean and 1 / sqrt(var + eps) of each row.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn take_statistics(&self) -> Result<Buffer, GpuError> {
        self.gpu.take(Kind::F32, self.rows * 2)
    }

    /// y = the normalised rows of x. Writes the statistics of the rows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, x: View, statistics: View, y: View) -> Result<(), GpuError> {
        self.run(x, statistics, y, false)
    }

    /// y = the normalised rows of x. Reads the statistics of the rows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&self, x: View, statistics: View, y: View) -> Result<(), GpuError> {
        self.run(x, statistics, y, true)
    }

    fn run(&self, x: View, statistics: View, y: View, given: bool) -> Result<(), GpuError> {
        let [rows, dim] = [self.rows, self.dim].map(Arg::count);
        let [weight, bias] = [self.weight, self.bias].map(|view| self.of_columns(view));
        let (x, statistics, y) = (self.of_rows(x), self.statistics(statistics), self.of_rows(y));
        let args = [x, rows, dim, weight, bias, Arg::Int(given.into()), statistics, y];
        // SAFETY: each view has the elements of its shape; `View::arg` checks this.
        unsafe { self.gpu.launch(self.scalar.source(&SOURCES), "ln_forward", self.grid(), &args) }
    }

    fn of_rows(&self, view: View) -> Arg {
        view.arg(self.scalar, self.rows * self.dim)
    }

    fn of_columns(&self, view: View) -> Arg {
        view.arg(Kind::F32, self.dim)
    }

    fn statistics(&self, view: View) -> Arg {
        view.arg(Kind::F32, self.rows * 2)
    }

    /// gx = the gradient of x, from that of y, or gx += that gradient if `accumulate` is set. Adds to the gradients of weight and
    /// bias. The rows belong to a batch of `parts` parts.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(
        &self,
        [x, statistics]: [View; 2],
        gy: View,
        gx: View,
        accumulate: bool,
        parts: usize,
        g_params: [View; 2],
    ) -> Result<(), GpuError> {
        let source = self.scalar.source(&SOURCES);
        let tiles = pieces([self.rows, self.dim], parts);
        let (shares, across) = shares(self.scalar, self.dim, &[x, gy]);
        let sums = self.gpu.take(Kind::F32, tiles.count() * 2 * self.dim)?;
        let (x, statistics, gy) = (self.of_rows(x), self.statistics(statistics), self.of_rows(gy));
        let [rows, dim] = [self.rows, self.dim].map(Arg::count);
        let args = [x, statistics, gy, dim, shares, Arg::count(tiles.part), Arg::count(tiles.tile), sums.arg()];
        // SAFETY: each view has the elements of its shape; `View::arg` checks this. `sums` has two rows for each piece.
        unsafe { self.gpu.launch(source, "ln_backward_params", [across, tiles.count(), 1], &args) }?;
        for (i, to) in g_params.into_iter().enumerate() {
            let from = sums.view().part(i * self.dim..sums.view().len());
            add_parts(self.gpu, from, [parts, tiles.per_part()], 2 * self.dim, to.part(0..self.dim))?;
        }
        let (weight, gx) = (self.of_columns(self.weight), self.of_rows(gx));
        let args = [x, statistics, rows, dim, weight, gy, Arg::Int(accumulate.into()), gx];
        // SAFETY: each view has the elements of its shape; `View::arg` checks this.
        unsafe { self.gpu.launch(source, "ln_backward", self.grid(), &args) }
    }

    fn grid(&self) -> [usize; 3] {
        [self.rows.div_ceil(BLOCK_ROWS), 1, 1]
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::{
        cuda::testing::{on_every_gpu, read, upload},
        golden::assert_close,
        layer_norm::{self, Affine},
    };

    /// Several pieces of rows; a row has more elements than a warp has threads, and no multiple of them.
    const ROWS: usize = 261;
    const DIM: usize = 75;

    #[test]
    fn values_and_gradients_agree_with_the_cpus() {
        let ramp = |n: usize, step: f32| {
            (0..n).map(|i| bf16::to_f32(bf16::from_f32((i as f32 * step).sin()))).collect::<Vec<_>>()
        };
        // The mean is larger than the spread, as may happen in a residual stream.
        let x: Vec<f32> = ramp(ROWS * DIM, 0.7).iter().map(|v| bf16::to_f32(bf16::from_f32(v * 2.0 + 3.0))).collect();
        let (gy, before, weight, bias) =
            (ramp(ROWS * DIM, 0.37), ramp(ROWS * DIM, 0.11), ramp(DIM, 1.3), ramp(DIM, 0.2));
        let of_row = |row: &[f32]| {
            let mean = row.iter().sum::<f32>() / DIM as f32;
            let var = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / DIM as f32;
            [mean, 1.0 / (var + layer_norm::EPS as f32).sqrt()]
        };
        let statistics: Vec<[f32; 2]> = x.chunks_exact(DIM).map(of_row).collect();
        let (mut y, mut gx) = (vec![0.0; x.len()], before.clone());
        let (mut gw, mut gb) = (vec![0.0f32; DIM], vec![0.0f32; DIM]);
        layer_norm::forward(&x, Affine { weight: &weight, bias: &bias }, &mut y);
        layer_norm::backward(&x, &weight, &gy, &mut gx, [&mut gw, &mut gb]);
        [&mut gw, &mut gb].into_iter().flatten().for_each(|g| *g += 0.25);
        // f32: sums of 75 and 261 values have another order. y and gx have 11 bits in f16 and 8 in bf16.
        for (scalar, tolerance) in [(Scalar::F32, 2e-6), (Scalar::F16, 6e-4), (Scalar::Bf16, 5e-3)] {
            on_every_gpu(|gpu| {
                let up = |values: &[f32]| upload(gpu, scalar, values);
                let (weight, bias) = (gpu.upload(&weight).unwrap(), gpu.upload(&bias).unwrap());
                let on = NormRows { gpu, scalar, rows: ROWS, dim: DIM, weight: weight.view(), bias: bias.view() };
                let (x_gpu, gy, gx_gpu) = (up(&x), up(&gy), up(&before));
                let (y_gpu, again) = (x_gpu.take_alike().unwrap(), x_gpu.take_alike().unwrap());
                let found = on.take_statistics().unwrap();
                on.forward(x_gpu.view(), found.view(), y_gpu.view()).unwrap();
                on.apply(x_gpu.view(), found.view(), again.view()).unwrap();
                assert!(read(&y_gpu) == read(&again));
                let [gw_gpu, gb_gpu] = [(); 2].map(|()| gpu.upload(&[0.25f32; DIM]).unwrap());
                let g_params = [gw_gpu.view(), gb_gpu.view()];
                on.backward([x_gpu.view(), found.view()], gy.view(), gx_gpu.view(), true, 1, g_params).unwrap();
                let close = |what: &str, found: &[f32], expected: &[f32], tolerance: f64| {
                    assert_close(&format!("{scalar:?} {what}"), found, expected, tolerance);
                };
                close("statistics", &found.read::<f32>().unwrap(), statistics.as_flattened(), 1e-6);
                close("y", &read(&y_gpu), &y, tolerance);
                close("gx", &read(&gx_gpu), &gx, tolerance);
                close("gw", &gw_gpu.read::<f32>().unwrap(), &gw, 5e-6);
                close("gb", &gb_gpu.read::<f32>().unwrap(), &gb, 5e-6);
                let results = [read(&y_gpu), read(&gx_gpu), gw_gpu.read().unwrap()];
                on.backward([x_gpu.view(), found.view()], gy.view(), gx_gpu.view(), false, 1, g_params).unwrap();
                let alone: Vec<f32> = gx.iter().zip(&before).map(|(g, b)| g - b).collect();
                close("gx alone", &read(&gx_gpu), &alone, tolerance);
                results
            });
        }
    }
}

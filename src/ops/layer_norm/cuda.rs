//! Layer norm on a GPU. Addresses are of the device; statistics, parameters and their gradients are f32.

use crate::ops::{
    columns::cuda::{add_parts, parts},
    cuda::{Arg, Gpu, GpuError, Scalar, Source},
};

const KERNELS: &[&str] = &["ln_forward", "ln_backward", "ln_backward_params"];
const TEXT: &str = include_str!("layer_norm.cu");

/// The kernels, once per storage.
pub static SOURCES: [Source; 2] = [
    Source { name: "layer_norm_f32", defines: "#define HALF 0", text: TEXT, kernels: KERNELS },
    Source { name: "layer_norm_f16", defines: "#define HALF 1", text: TEXT, kernels: KERNELS },
];

/// Rows that a block has: one per warp.
const BLOCK_ROWS: usize = 8;

/// Rows [rows, dim] on a GPU with their norm's parameters.
#[derive(Clone, Copy, Debug)]
pub struct NormRows<'a> {
    pub gpu: &'a Gpu,
    pub scalar: Scalar,
    pub rows: usize,
    pub dim: usize,
    /// Addresses of weight and bias.
    pub weight: u64,
    pub bias: u64,
}

impl NormRows<'_> {
    /// Bytes of the rows' statistics: mean and 1 / sqrt(var + eps) of each.
    pub fn statistics_bytes(&self) -> usize {
        self.rows * 8
    }

    /// y = the normalised rows of x; their statistics are written.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, x: u64, statistics: u64, y: u64) -> Result<(), GpuError> {
        self.run(x, statistics, y, false)
    }

    /// y = the normalised rows of x, whose statistics are given.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&self, x: u64, statistics: u64, y: u64) -> Result<(), GpuError> {
        self.run(x, statistics, y, true)
    }

    fn run(&self, x: u64, statistics: u64, y: u64, given: bool) -> Result<(), GpuError> {
        let [x, weight, bias, statistics, y] = [x, self.weight, self.bias, statistics, y].map(Arg::At);
        let [rows, dim] = [self.rows, self.dim].map(Arg::count);
        let args = [x, rows, dim, weight, bias, Arg::Int(given.into()), statistics, y];
        self.gpu.launch(self.scalar.source(&SOURCES), "ln_forward", self.grid(), &args)
    }

    /// gx = the gradient of x from that of y, added where `accumulate`; adds to the gradients of weight and bias.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(
        &self,
        [x, statistics]: [u64; 2],
        gy: u64,
        gx: u64,
        accumulate: bool,
        g_params: [u64; 2],
    ) -> Result<(), GpuError> {
        let source = self.scalar.source(&SOURCES);
        let (part_rows, grid) = parts(self.rows, self.dim);
        let sums = self.gpu.take(grid[1] * 2 * self.dim * 4)?;
        let [x, statistics, gy, weight] = [x, statistics, gy, self.weight].map(Arg::At);
        let [rows, dim] = [self.rows, self.dim].map(Arg::count);
        let args = [x, statistics, gy, rows, dim, Arg::count(part_rows), sums.arg()];
        self.gpu.launch(source, "ln_backward_params", grid, &args)?;
        for (i, to) in g_params.into_iter().enumerate() {
            let from = sums.at() + (i * self.dim * 4) as u64;
            add_parts(self.gpu, from, [grid[1], 2 * self.dim], self.dim, to)?;
        }
        let args = [x, statistics, rows, dim, weight, gy, Arg::Int(accumulate.into()), Arg::At(gx)];
        self.gpu.launch(source, "ln_backward", self.grid(), &args)
    }

    fn grid(&self) -> [usize; 3] {
        [self.rows.div_ceil(BLOCK_ROWS), 1, 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        cuda::{
            Buffer,
            testing::{from_half, on_every_gpu, to_half},
        },
        golden::assert_close,
        layer_norm::{self, Affine},
    };

    /// Several parts of rows; more than a warp's and no whole number of them in a row.
    const ROWS: usize = 261;
    const DIM: usize = 75;

    #[test]
    fn values_and_gradients_agree_with_the_cpus() {
        let ramp =
            |n: usize, step: f32| (0..n).map(|i| from_half(to_half((i as f32 * step).sin()))).collect::<Vec<_>>();
        // A mean beside the spread, as a residual stream may have.
        let x: Vec<f32> = ramp(ROWS * DIM, 0.7).iter().map(|v| from_half(to_half(v * 2.0 + 3.0))).collect();
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
        // f32: sums of 75 and 261 values in another order; f16: y and gx have 11 bits.
        for (scalar, tolerance) in [(Scalar::F32, 2e-6), (Scalar::F16, 6e-4)] {
            on_every_gpu(|gpu| {
                let up = |values: &[f32]| match scalar {
                    Scalar::F32 => gpu.upload(values).unwrap(),
                    Scalar::F16 => gpu.upload(&values.iter().map(|v| to_half(*v)).collect::<Vec<_>>()).unwrap(),
                };
                let read = |buffer: &Buffer| -> Vec<f32> {
                    match scalar {
                        Scalar::F32 => buffer.read().unwrap(),
                        Scalar::F16 => buffer.read::<u16>().unwrap().into_iter().map(from_half).collect(),
                    }
                };
                let (weight, bias) = (gpu.upload(&weight).unwrap(), gpu.upload(&bias).unwrap());
                let on = NormRows { gpu, scalar, rows: ROWS, dim: DIM, weight: weight.at(), bias: bias.at() };
                let (x_gpu, gy, gx_gpu) = (up(&x), up(&gy), up(&before));
                let (y_gpu, again) = (gpu.take(x_gpu.bytes()).unwrap(), gpu.take(x_gpu.bytes()).unwrap());
                let found = gpu.take(on.statistics_bytes()).unwrap();
                on.forward(x_gpu.at(), found.at(), y_gpu.at()).unwrap();
                on.apply(x_gpu.at(), found.at(), again.at()).unwrap();
                assert!(read(&y_gpu) == read(&again));
                let [gw_gpu, gb_gpu] = [(); 2].map(|()| gpu.upload(&[0.25f32; DIM]).unwrap());
                let g_params = [gw_gpu.at(), gb_gpu.at()];
                on.backward([x_gpu.at(), found.at()], gy.at(), gx_gpu.at(), true, g_params).unwrap();
                let close = |what: &str, found: &[f32], expected: &[f32], tolerance: f64| {
                    assert_close(&format!("{scalar:?} {what}"), found, expected, tolerance);
                };
                close("statistics", &found.read::<f32>().unwrap(), statistics.as_flattened(), 1e-6);
                close("y", &read(&y_gpu), &y, tolerance);
                close("gx", &read(&gx_gpu), &gx, tolerance);
                close("gw", &gw_gpu.read::<f32>().unwrap(), &gw, 5e-6);
                close("gb", &gb_gpu.read::<f32>().unwrap(), &gb, 5e-6);
                let results = [read(&y_gpu), read(&gx_gpu), gw_gpu.read().unwrap()];
                on.backward([x_gpu.at(), found.at()], gy.at(), gx_gpu.at(), false, g_params).unwrap();
                let alone: Vec<f32> = gx.iter().zip(&before).map(|(g, b)| g - b).collect();
                close("gx alone", &read(&gx_gpu), &alone, tolerance);
                results
            });
        }
    }
}

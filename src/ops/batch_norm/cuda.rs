//! Batch normalisation on a GPU, fused with ReLU and residual. Addresses are of the device; statistics are f32.

use crate::ops::cuda::{Arg, Buffer, Gpu, GpuError, Scalar, Source, THREADS, one_each};

const KERNELS: &[&str] = &[
    "bn_moments",
    "bn_combine",
    "bn_eval",
    "bn_apply",
    "bn_backward_sums",
    "bn_backward_combine",
    "bn_backward_input",
    "narrow",
    "widen",
    "add",
];

const TEXT: &str = include_str!("batch_norm.cu");

/// The kernels, once per storage.
pub static SOURCES: [Source; 2] = [
    Source { name: "batch_norm_f32", defines: "#define HALF 0", text: TEXT, kernels: KERNELS },
    Source { name: "batch_norm_f16", defines: "#define HALF 1", text: TEXT, kernels: KERNELS },
];

/// Blocks that statistics are taken by, at most. Fixed, since sums are taken per block.
const PARTS: usize = 1024;
/// Fewest rows in a block's part.
const PART_ROWS: usize = 64;
/// Most blocks of an element-wise pass; their threads go on in strides.
const BLOCKS: usize = 4096;

/// Rows of channels on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub gpu: &'a Gpu,
    pub scalar: Scalar,
    pub rows: usize,
    pub channels: usize,
}

/// Addresses of a normalisation's parameters; 0 for what it has not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Params {
    pub weight: u64,
    pub bias: u64,
}

/// A batch's statistics on the device: mean, biased variance and 1 / sqrt(var + eps), [3, channels]; and the affine map that
/// normalises by them, scale and shift, [2, channels].
#[derive(Debug)]
pub struct MomentsGpu {
    pub moments: Buffer,
    pub affine: Buffer,
}

/// What is added before the ReLU; addresses.
#[derive(Clone, Copy, Debug)]
pub enum ResidualGpu {
    None,
    Plain(u64),
    /// A tensor and the affine map that is still to be applied to it.
    Normalised(u64, u64),
}

/// What the backward pass reads: x as it was normalised, its statistics, and the output where a ReLU followed.
#[derive(Clone, Copy, Debug)]
pub struct Normalised<'a> {
    pub x: u64,
    pub moments: &'a MomentsGpu,
    /// 0 without a ReLU.
    pub output: u64,
}

impl Rows<'_> {
    fn source(&self) -> &'static Source {
        match self.scalar {
            Scalar::F32 => &SOURCES[0],
            Scalar::F16 => &SOURCES[1],
        }
    }

    fn len(&self) -> usize {
        self.rows * self.channels
    }

    fn strided(&self) -> [usize; 3] {
        [self.len().div_ceil(THREADS).clamp(1, BLOCKS), 1, 1]
    }

    /// Rows per part, and the grid of blocks over channels and parts.
    fn parts(&self) -> (usize, [usize; 3]) {
        let columns = self.channels.div_ceil(32);
        let wanted = (PARTS / columns).max(1).min(self.rows.div_ceil(PART_ROWS));
        let part_rows = self.rows.div_ceil(wanted);
        (part_rows, [columns, self.rows.div_ceil(part_rows), 1])
    }

    /// Statistics of x, and the affine map by them and `params`. Running statistics (addresses, or 0) move.
    ///
    /// # Errors
    /// When the device fails.
    pub fn moments(&self, x: u64, params: Params, running: [u64; 2]) -> Result<MomentsGpu, GpuError> {
        let (gpu, source) = (self.gpu, self.source());
        let (part_rows, grid) = self.parts();
        let [rows, channels, part_rows] = [self.rows, self.channels, part_rows].map(Arg::count);
        let parts = gpu.take(grid[1] * 2 * self.channels * 4)?;
        gpu.launch(source, "bn_moments", grid, &[Arg::At(x), rows, channels, part_rows, parts.arg()])?;
        let found = MomentsGpu { moments: gpu.take(3 * self.channels * 4)?, affine: gpu.take(2 * self.channels * 4)? };
        let [weight, bias, mean, var] = [params.weight, params.bias, running[0], running[1]].map(Arg::At);
        let (moments, affine) = (found.moments.arg(), found.affine.arg());
        let args =
            [parts.arg(), Arg::count(grid[1]), rows, channels, part_rows, weight, bias, mean, var, moments, affine];
        gpu.launch(source, "bn_combine", one_each(self.channels), &args)?;
        Ok(found)
    }

    /// The affine map by running statistics (eval mode).
    ///
    /// # Errors
    /// When the device fails.
    pub fn eval(&self, params: Params, [mean, var]: [u64; 2]) -> Result<Buffer, GpuError> {
        let affine = self.gpu.take(2 * self.channels * 4)?;
        let [mean, var, weight, bias] = [mean, var, params.weight, params.bias].map(Arg::At);
        let args = [Arg::count(self.channels), mean, var, weight, bias, affine.arg()];
        self.gpu.launch(self.source(), "bn_eval", one_each(self.channels), &args)?;
        Ok(affine)
    }

    /// out = x by the affine map, plus the residual, through a ReLU or not.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&self, x: u64, affine: u64, residual: ResidualGpu, relu: bool, out: u64) -> Result<(), GpuError> {
        let (r, r_affine) = match residual {
            ResidualGpu::None => (0, 0),
            ResidualGpu::Plain(r) => (r, 0),
            ResidualGpu::Normalised(r, affine) => (r, affine),
        };
        let [x, affine, r, r_affine, out] = [x, affine, r, r_affine, out].map(Arg::At);
        let args =
            [x, affine, r, r_affine, Arg::Int(relu.into()), Arg::count(self.channels), Arg::count(self.len()), out];
        self.gpu.launch(self.source(), "bn_apply", self.strided(), &args)
    }

    /// From the gradient `g` of the output (behind the ReLU, where there is one) to that of x in `gx`, added where
    /// `accumulate`; the gradients of weight and bias are added to `g_params`. `masked` (or 0) receives g before the ReLU.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(
        &self,
        of: Normalised,
        params: Params,
        g_params: Params,
        [g, masked, gx]: [u64; 3],
        accumulate: bool,
    ) -> Result<(), GpuError> {
        let (gpu, source) = (self.gpu, self.source());
        let (part_rows, grid) = self.parts();
        let [rows, channels, part_rows] = [self.rows, self.channels, part_rows].map(Arg::count);
        let parts = gpu.take(grid[1] * 2 * self.channels * 4)?;
        let (x, output, moments) = (Arg::At(of.x), Arg::At(of.output), of.moments.moments.arg());
        let args = [x, Arg::At(g), output, moments, rows, channels, part_rows, parts.arg()];
        gpu.launch(source, "bn_backward_sums", grid, &args)?;
        let coefficients = gpu.take(3 * self.channels * 4)?;
        let [weight, g_weight, g_bias] = [params.weight, g_params.weight, g_params.bias].map(Arg::At);
        let args =
            [parts.arg(), Arg::count(grid[1]), rows, channels, moments, weight, g_weight, g_bias, coefficients.arg()];
        gpu.launch(source, "bn_backward_combine", one_each(self.channels), &args)?;
        let (masked, gx, accumulate) = (Arg::At(masked), Arg::At(gx), Arg::Int(accumulate.into()));
        let args =
            [x, Arg::At(g), output, coefficients.arg(), channels, Arg::count(self.len()), masked, gx, accumulate];
        gpu.launch(source, "bn_backward_input", self.strided(), &args)
    }

    /// Copies `len` f32 values into this storage.
    ///
    /// # Errors
    /// When the device fails.
    pub fn narrow(gpu: &Gpu, scalar: Scalar, from: u64, len: usize, to: u64) -> Result<(), GpuError> {
        let rows = Rows { gpu, scalar, rows: len, channels: 1 };
        gpu.launch(rows.source(), "narrow", rows.strided(), &[Arg::At(from), Arg::count(len), Arg::At(to)])
    }

    /// to += from, `len` values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(gpu: &Gpu, scalar: Scalar, from: u64, len: usize, to: u64) -> Result<(), GpuError> {
        let rows = Rows { gpu, scalar, rows: len, channels: 1 };
        gpu.launch(rows.source(), "add", rows.strided(), &[Arg::At(from), Arg::count(len), Arg::At(to)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        batch_norm::{Affine, Moments, Relu, Residual, apply, backward_input, backward_sums},
        cuda::testing::on_every_gpu,
        golden::{Golden, assert_close},
    };

    /// f32 sums of 100 values, as on the CPU.
    const F32: f64 = 2e-6;

    fn parts(buffer: &Buffer) -> Vec<f32> {
        buffer.read().unwrap()
    }

    #[test]
    fn agrees_with_the_reference() {
        let golden = Golden::load("batchnorm2d");
        let [x, x2, cot] = ["in.x", "in.x2", "in.cot"].map(|name| golden.channels_last::<f32>(name));
        on_every_gpu(|gpu| {
            let rows = Rows { gpu, scalar: Scalar::F32, rows: x.len() / 3, channels: 3 };
            let upload = |name: &str| gpu.upload(&golden.get::<f32>(name)).unwrap();
            let (weight, bias, mean, var) =
                (upload("in.weight"), upload("in.bias"), upload("in.rmean"), upload("in.rvar"));
            let params = Params { weight: weight.at(), bias: bias.at() };
            let running = [mean.at(), var.at()];
            let (x_gpu, cot_gpu) = (gpu.upload(&x).unwrap(), gpu.upload(&cot).unwrap());
            let y = gpu.take(x_gpu.bytes()).unwrap();
            let close = |what: &str, actual: &[f32], expected: Vec<f32>| assert_close(what, actual, &expected, F32);

            let moments = rows.moments(x_gpu.at(), params, running).unwrap();
            rows.apply(x_gpu.at(), moments.affine.at(), ResidualGpu::None, false, y.at()).unwrap();
            close("y", &parts(&y), golden.channels_last("out.y"));
            close("rmean1", &parts(&mean), golden.get("out.rmean1"));
            close("rvar1", &parts(&var), golden.get("out.rvar1"));
            let second = gpu.upload(&x2).unwrap();
            Rows { rows: x2.len() / 3, ..rows }.moments(second.at(), params, running).unwrap();
            close("rmean2", &parts(&mean), golden.get("out.rmean2"));
            close("rvar2", &parts(&var), golden.get("out.rvar2"));
            let affine = rows.eval(params, running).unwrap();
            rows.apply(x_gpu.at(), affine.at(), ResidualGpu::None, false, y.at()).unwrap();
            close("y_eval", &parts(&y), golden.channels_last("out.y_eval"));

            let (gw, gb) = (gpu.zeros(12).unwrap(), gpu.zeros(12).unwrap());
            let gx = gpu.take(cot_gpu.bytes()).unwrap();
            let of = Normalised { x: x_gpu.at(), moments: &moments, output: 0 };
            let g_params = Params { weight: gw.at(), bias: gb.at() };
            rows.backward(of, params, g_params, [cot_gpu.at(), 0, gx.at()], false).unwrap();
            close("grad.weight", &parts(&gw), golden.get("grad.weight"));
            close("grad.bias", &parts(&gb), golden.get("grad.bias"));
            close("grad.x", &parts(&gx), golden.channels_last("grad.x"));
            [parts(&y), parts(&gx), parts(&gw)]
        });
    }

    /// Many parts and channels that fill no block; both kinds of residual; the ReLU's mask in the backward pass.
    #[test]
    fn fused_passes_agree_with_the_cpus() {
        let (n, channels) = (700, 37);
        let ramp = |step: f64| (0..n * channels).map(|i| (i as f64 * step).sin() as f32 + 3.0).collect::<Vec<_>>();
        let (x, shortcut) = (ramp(0.7), ramp(0.31));
        let g: Vec<f32> = ramp(0.9).iter().map(|v| v - 3.0).collect();
        let moments = Moments::of(&x, channels, 1);
        let weight: Vec<f32> = (0..channels).map(|c| 1.0 + 0.1 * c as f32).collect();
        let bias = vec![0.3; channels];
        let affine = Affine::new(&moments.mean, &moments.inv_std, Some((&weight, &bias)));
        let shortcut_affine = Affine::new(&moments.mean, &moments.inv_std, None);
        let mut expected = vec![0.0; x.len()];
        apply(&x, &affine, Residual::Normalised(&shortcut, &shortcut_affine), true, &mut expected);
        let mut masked = g.clone();
        let relu = Relu::Output(&expected);
        let sums = backward_sums(&x, &moments, &mut masked, relu);
        let mut gx = x.clone();
        backward_input(&mut gx, &moments, Some(&weight), &sums, &masked, relu);

        on_every_gpu(|gpu| {
            let rows = Rows { gpu, scalar: Scalar::F32, rows: n, channels };
            let up = |values: &[f32]| gpu.upload(values).unwrap();
            let (x, shortcut, g, weight, bias) = (up(&x), up(&shortcut), up(&g), up(&weight), up(&bias));
            let params = Params { weight: weight.at(), bias: bias.at() };
            let found = rows.moments(x.at(), params, [0, 0]).unwrap();
            let s_affine = up(&[&shortcut_affine.scale[..], &shortcut_affine.shift].concat());
            let y = gpu.take(x.bytes()).unwrap();
            let residual = ResidualGpu::Normalised(shortcut.at(), s_affine.at());
            rows.apply(x.at(), found.affine.at(), residual, true, y.at()).unwrap();
            // Values of magnitude 10; the order of sums differs from the CPU's.
            assert_close("y", &parts(&y), &expected, 1e-5);
            let (gw, gb) = (gpu.zeros(channels * 4).unwrap(), gpu.zeros(channels * 4).unwrap());
            let of = Normalised { x: x.at(), moments: &found, output: y.at() };
            let g_params = Params { weight: gw.at(), bias: gb.at() };
            let (kept, result) = (gpu.take(x.bytes()).unwrap(), gpu.take(x.bytes()).unwrap());
            rows.backward(of, params, g_params, [g.at(), kept.at(), result.at()], false).unwrap();
            assert_close("masked", &parts(&kept), &masked, 0.0);
            assert_close("gw", &parts(&gw), &sums.g_normalised, 1e-5);
            assert_close("gb", &parts(&gb), &sums.g, 1e-5);
            assert_close("gx", &parts(&result), &gx, 1e-5);
            rows.backward(of, params, g_params, [g.at(), 0, result.at()], true).unwrap();
            assert_close("gx twice", &parts(&result), &gx.iter().map(|g| 2.0 * g).collect::<Vec<_>>(), 1e-5);
            [parts(&y), parts(&result)]
        });
    }
}

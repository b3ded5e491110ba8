//! Batch normalisation on a GPU, fused with ReLU and residual. Statistics and parameters are f32.

use crate::ops::cuda::{Arg, Buffer, Gpu, GpuError, Kind, Scalar, Source, THREADS, View, one_each};

const KERNELS: &[&str] = &[
    "bn_moments",
    "bn_combine",
    "bn_eval",
    "bn_apply",
    "bn_backward_sums",
    "bn_backward_combine",
    "bn_backward_input",
    "relu_backward",
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

/// A normalisation's parameters, or their gradients, [channels] each.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    pub weight: View<'a>,
    pub bias: View<'a>,
}

/// A batch's statistics on the device: mean, biased variance and 1 / sqrt(var + eps), [3, channels]; and the affine map that
/// normalises by them, scale and shift, [2, channels].
#[derive(Debug)]
pub struct MomentsGpu {
    pub moments: Buffer,
    pub affine: Buffer,
}

/// What is added before the ReLU.
#[derive(Clone, Copy, Debug)]
pub enum ResidualGpu<'a> {
    None,
    Plain(View<'a>),
    /// A tensor and the affine map that is still to be applied to it.
    Normalised(View<'a>, View<'a>),
}

/// What the backward pass reads: x as it was normalised, its statistics, and the output where a ReLU followed.
#[derive(Clone, Copy, Debug)]
pub struct Normalised<'a> {
    pub x: View<'a>,
    pub moments: &'a MomentsGpu,
    /// None without a ReLU.
    pub output: Option<View<'a>>,
}

impl Rows<'_> {
    /// # Safety
    /// As for [`Gpu::launch`].
    unsafe fn launch(&self, kernel: &str, grid: [usize; 3], args: &[Arg]) -> Result<(), GpuError> {
        // SAFETY: as the caller promises.
        unsafe { self.gpu.launch(self.scalar.source(&SOURCES), kernel, grid, args) }
    }

    /// An argument of these rows.
    fn of_rows(&self, view: View) -> Arg {
        view.arg(self.scalar, self.len())
    }

    fn of_rows_if(&self, view: Option<View>) -> Arg {
        Arg::optional(view, self.scalar, self.len())
    }

    /// Arguments of a value per channel.
    fn of_channels(&self, views: [Option<View>; 2]) -> [Arg; 2] {
        views.map(|view| Arg::optional(view, Kind::F32, self.channels))
    }

    /// An affine map.
    fn affine(&self, view: View) -> Arg {
        view.arg(Kind::F32, 2 * self.channels)
    }

    fn take_per_channel(&self, values: usize) -> Result<Buffer, GpuError> {
        self.gpu.take(Kind::F32, values * self.channels)
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

    /// Statistics of x, and the affine map by them and `params`. Running statistics, mean and variance, move.
    ///
    /// # Errors
    /// When the device fails.
    pub fn moments(&self, x: View, params: Option<Params>, running: Option<[View; 2]>) -> Result<MomentsGpu, GpuError> {
        let (part_rows, grid) = self.parts();
        let [rows, channels, part_rows] = [self.rows, self.channels, part_rows].map(Arg::count);
        let parts = self.take_per_channel(grid[1] * 2)?;
        let args = [self.of_rows(x), rows, channels, part_rows, parts.arg()];
        // SAFETY: x has its rows, and `parts` two rows for each part.
        unsafe { self.launch("bn_moments", grid, &args) }?;
        let found = MomentsGpu { moments: self.take_per_channel(3)?, affine: self.take_per_channel(2)? };
        let [weight, bias] = self.of_channels(each(params));
        let [mean, var] = self.of_channels([running.map(|r| r[0]), running.map(|r| r[1])]);
        let (moments, affine) = (found.moments.arg(), found.affine.arg());
        let args =
            [parts.arg(), Arg::count(grid[1]), rows, channels, part_rows, weight, bias, mean, var, moments, affine];
        // SAFETY: all have as many values per channel as the kernel's source says.
        unsafe { self.launch("bn_combine", one_each(self.channels), &args) }?;
        Ok(found)
    }

    /// The affine map by running statistics (eval mode).
    ///
    /// # Errors
    /// When the device fails.
    pub fn eval(&self, params: Option<Params>, running: [View; 2]) -> Result<Buffer, GpuError> {
        let affine = self.take_per_channel(2)?;
        let ([weight, bias], [mean, var]) = (self.of_channels(each(params)), self.of_channels(running.map(Some)));
        let args = [Arg::count(self.channels), mean, var, weight, bias, affine.arg()];
        // SAFETY: all have a value per channel, and the map has two.
        unsafe { self.launch("bn_eval", one_each(self.channels), &args) }?;
        Ok(affine)
    }

    /// out = x by the affine map, plus the residual, through a ReLU or not.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&self, x: View, affine: View, residual: ResidualGpu, relu: bool, out: View) -> Result<(), GpuError> {
        let (r, r_affine) = match residual {
            ResidualGpu::None => (None, None),
            ResidualGpu::Plain(r) => (Some(r), None),
            ResidualGpu::Normalised(r, affine) => (Some(r), Some(affine)),
        };
        let (x, affine, out) = (self.of_rows(x), self.affine(affine), self.of_rows(out));
        let (r, r_affine) = (self.of_rows_if(r), Arg::optional(r_affine, Kind::F32, 2 * self.channels));
        let args =
            [x, affine, r, r_affine, Arg::Int(relu.into()), Arg::count(self.channels), Arg::count(self.len()), out];
        // SAFETY: x, the residual and `out` have these rows, and the maps two values per channel.
        unsafe { self.launch("bn_apply", self.strided(), &args) }
    }

    /// From the gradient `g` of the output (behind the ReLU, where there is one) to that of x in `gx`, added where
    /// `accumulate`; the gradients of weight and bias are added to `g_params`. `masked` receives g before the ReLU.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(
        &self,
        of: Normalised,
        params: Option<Params>,
        g_params: Option<Params>,
        g: View,
        masked: Option<View>,
        (gx, accumulate): (View, bool),
    ) -> Result<(), GpuError> {
        let (part_rows, grid) = self.parts();
        let [rows, channels, part_rows] = [self.rows, self.channels, part_rows].map(Arg::count);
        let parts = self.take_per_channel(grid[1] * 2)?;
        let (x, g, output) = (self.of_rows(of.x), self.of_rows(g), self.of_rows_if(of.output));
        let moments = of.moments.moments.view().arg(Kind::F32, 3 * self.channels);
        let args = [x, g, output, moments, rows, channels, part_rows, parts.arg()];
        // SAFETY: x, g and the output have these rows, and `parts` two rows for each part.
        unsafe { self.launch("bn_backward_sums", grid, &args) }?;
        let coefficients = self.take_per_channel(3)?;
        let ([weight, _], [g_weight, g_bias]) = (self.of_channels(each(params)), self.of_channels(each(g_params)));
        let args =
            [parts.arg(), Arg::count(grid[1]), rows, channels, moments, weight, g_weight, g_bias, coefficients.arg()];
        // SAFETY: all have as many values per channel as the kernel's source says.
        unsafe { self.launch("bn_backward_combine", one_each(self.channels), &args) }?;
        let (masked, gx, accumulate) = (self.of_rows_if(masked), self.of_rows(gx), Arg::Int(accumulate.into()));
        let args = [x, g, output, coefficients.arg(), channels, Arg::count(self.len()), masked, gx, accumulate];
        // SAFETY: all but the coefficients, three per channel, have these rows.
        unsafe { self.launch("bn_backward_input", self.strided(), &args) }
    }

    /// `g` goes from the gradient of a ReLU's output to that of its input.
    ///
    /// # Errors
    /// When the device fails.
    pub fn relu_backward(&self, output: View, g: View) -> Result<(), GpuError> {
        let args = [self.of_rows(output), Arg::count(self.len()), self.of_rows(g)];
        // SAFETY: both have these rows.
        unsafe { self.launch("relu_backward", self.strided(), &args) }
    }

    /// Copies f32 values into this storage, as many as there is room for.
    ///
    /// # Errors
    /// When the device fails.
    pub fn narrow(gpu: &Gpu, scalar: Scalar, from: View, to: View) -> Result<(), GpuError> {
        let (rows, len) = (Rows { gpu, scalar, rows: to.len(), channels: 1 }, to.len());
        let args = [from.arg(Kind::F32, len), Arg::count(len), rows.of_rows(to)];
        // SAFETY: both have `len` values.
        unsafe { rows.launch("narrow", rows.strided(), &args) }
    }

    /// to += from.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(gpu: &Gpu, scalar: Scalar, from: View, to: View) -> Result<(), GpuError> {
        let (rows, len) = (Rows { gpu, scalar, rows: to.len(), channels: 1 }, to.len());
        let args = [rows.of_rows(from), Arg::count(len), rows.of_rows(to)];
        // SAFETY: both have `len` values.
        unsafe { rows.launch("add", rows.strided(), &args) }
    }
}

/// Parameters one by one, where there are any.
fn each(params: Option<Params>) -> [Option<View>; 2] {
    [params.map(|params| params.weight), params.map(|params| params.bias)]
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
            let params = Params { weight: weight.view(), bias: bias.view() };
            let running = [mean.view(), var.view()];
            let (all_params, moving) = (Some(params), Some(running));
            let (x_gpu, cot_gpu) = (gpu.upload(&x).unwrap(), gpu.upload(&cot).unwrap());
            let y = x_gpu.take_alike().unwrap();
            let close = |what: &str, actual: &[f32], expected: Vec<f32>| assert_close(what, actual, &expected, F32);

            let moments = rows.moments(x_gpu.view(), all_params, moving).unwrap();
            rows.apply(x_gpu.view(), moments.affine.view(), ResidualGpu::None, false, y.view()).unwrap();
            close("y", &parts(&y), golden.channels_last("out.y"));
            close("rmean1", &parts(&mean), golden.get("out.rmean1"));
            close("rvar1", &parts(&var), golden.get("out.rvar1"));
            let second = gpu.upload(&x2).unwrap();
            Rows { rows: x2.len() / 3, ..rows }.moments(second.view(), all_params, moving).unwrap();
            close("rmean2", &parts(&mean), golden.get("out.rmean2"));
            close("rvar2", &parts(&var), golden.get("out.rvar2"));
            let affine = rows.eval(all_params, running).unwrap();
            rows.apply(x_gpu.view(), affine.view(), ResidualGpu::None, false, y.view()).unwrap();
            close("y_eval", &parts(&y), golden.channels_last("out.y_eval"));

            let (gw, gb) = (gpu.zeros(Kind::F32, 3).unwrap(), gpu.zeros(Kind::F32, 3).unwrap());
            let gx = cot_gpu.take_alike().unwrap();
            let of = Normalised { x: x_gpu.view(), moments: &moments, output: None };
            let g_params = Some(Params { weight: gw.view(), bias: gb.view() });
            rows.backward(of, all_params, g_params, cot_gpu.view(), None, (gx.view(), false)).unwrap();
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
            let params = Some(Params { weight: weight.view(), bias: bias.view() });
            let found = rows.moments(x.view(), params, None).unwrap();
            let s_affine = up(&[&shortcut_affine.scale[..], &shortcut_affine.shift].concat());
            let y = x.take_alike().unwrap();
            let residual = ResidualGpu::Normalised(shortcut.view(), s_affine.view());
            rows.apply(x.view(), found.affine.view(), residual, true, y.view()).unwrap();
            // Values of magnitude 10; the order of sums differs from the CPU's.
            assert_close("y", &parts(&y), &expected, 1e-5);
            let (gw, gb) = (gpu.zeros(Kind::F32, channels).unwrap(), gpu.zeros(Kind::F32, channels).unwrap());
            let of = Normalised { x: x.view(), moments: &found, output: Some(y.view()) };
            let g_params = Some(Params { weight: gw.view(), bias: gb.view() });
            let (kept, result) = (x.take_alike().unwrap(), x.take_alike().unwrap());
            rows.backward(of, params, g_params, g.view(), Some(kept.view()), (result.view(), false)).unwrap();
            assert_close("masked", &parts(&kept), &masked, 0.0);
            assert_close("gw", &parts(&gw), &sums.g_normalised, 1e-5);
            assert_close("gb", &parts(&gb), &sums.g, 1e-5);
            assert_close("gx", &parts(&result), &gx, 1e-5);
            rows.backward(of, params, g_params, g.view(), None, (result.view(), true)).unwrap();
            assert_close("gx twice", &parts(&result), &gx.iter().map(|g| 2.0 * g).collect::<Vec<_>>(), 1e-5);
            [parts(&y), parts(&result)]
        });
    }
}

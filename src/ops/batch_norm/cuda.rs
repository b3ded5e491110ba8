//! Batch normalisation on a GPU, fused with ReLU and residual. Statistics and parameters are f32.

use crate::ops::{
    cuda::{Arg, Buffer, Gpu, GpuError, Kind, Scalar, Source, View, in_strides, one_each},
    parts::Tiles,
    reductions::cuda::{across, pieces, shares},
};

const KERNELS: &[&str] = &[
    "bn_moments",
    "bn_parts",
    "bn_branch",
    "bn_combine",
    "bn_eval",
    "bn_apply",
    "bn_backward_sums",
    "bn_backward_parts",
    "bn_backward_branch",
    "bn_backward_combine",
    "bn_backward_input",
    "relu_backward",
    "narrow",
    "widen",
    "add",
];

const TEXT: &str = concat!(
    include_str!("../cuda/storage.cuh"),
    include_str!("../cuda/parts.cuh"),
    include_str!("../cuda/rows.cuh"),
    include_str!("batch_norm.cu")
);

/// The kernels, once per storage.
pub static SOURCES: [Source; 3] = [
    Source { name: "batch_norm_f32", defines: "#define STORAGE 0", text: TEXT, kernels: KERNELS },
    Source { name: "batch_norm_f16", defines: "#define STORAGE 1", text: TEXT, kernels: KERNELS },
    Source { name: "batch_norm_bf16", defines: "#define STORAGE 2", text: TEXT, kernels: KERNELS },
];

/// Most blocks of a pass over all rows.
const BLOCKS: usize = 4096;
/// Fewest rows of a block in such a pass.
const PIECE_ROWS: usize = 32;

/// Rows of channels on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub gpu: &'a Gpu,
    pub scalar: Scalar,
    pub rows: usize,
    pub channels: usize,
    /// Number of parts of the batch that these rows are: sums over the batch are a binary tree over its parts.
    pub parts: usize,
}

/// Gathers a branch of the tree over a batch's parts from each rank. The function gets this rank's branch and returns those of
/// all ranks, one after another in the order of ranks. Values are f64, and each branch has the same number of them.
pub type Gather<'a> = &'a dyn Fn(Buffer) -> Result<Buffer, GpuError>;

/// The [`Gather`] for rows that are the whole batch.
pub const ALL_HERE: Gather = &|own| Ok(own);

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

/// The tensor that is added before the ReLU.
#[derive(Clone, Copy, Debug)]
pub enum ResidualGpu<'a> {
    None,
    Plain(View<'a>),
    /// A tensor and the affine map that must still be applied to it.
    Normalised(View<'a>, View<'a>),
}

/// Tensors that the backward pass reads: the normalisation's input x, its statistics, and the output if a ReLU followed.
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

    /// An argument with the elements of these rows.
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

    /// An argument that is an affine map.
    fn affine(&self, view: View) -> Arg {
        view.arg(Kind::F32, 2 * self.channels)
    }

    fn take_per_channel(&self, values: usize) -> Result<Buffer, GpuError> {
        self.gpu.take(Kind::F32, values * self.channels)
    }

    /// Takes memory for two values per part and channel.
    fn take_of_parts(&self) -> Result<Buffer, GpuError> {
        self.gpu.take(Kind::F64, self.parts * 2 * self.channels)
    }

    /// A grid of blocks that have 32 channels of a part each.
    fn across_parts(&self) -> [usize; 3] {
        let [across, ..] = across(self.channels);
        [across, self.parts, 1]
    }

    /// A pass over all rows, in pieces that keep a GPU busy: the grid, the shares, and the rows of a piece.
    fn over_rows(&self, views: &[View]) -> ([usize; 3], [Arg; 3]) {
        let (shares, across) = shares(self.scalar, self.channels, views);
        let piece = self.rows.div_ceil((BLOCKS / across).clamp(1, self.rows.div_ceil(PIECE_ROWS)));
        ([across, self.rows.div_ceil(piece), 1], [shares, Arg::count(self.rows), Arg::count(piece)])
    }

    fn len(&self) -> usize {
        self.rows * self.channels
    }

    fn strided(&self) -> [usize; 3] {
        in_strides(self.len())
    }

    /// Takes this rank's branch [2, channels] by `take`, and gathers the branches of all ranks. Returns them and their number.
    fn branches(
        &self,
        gather: Gather,
        take: impl FnOnce(&Buffer) -> Result<(), GpuError>,
    ) -> Result<(Buffer, usize), GpuError> {
        let own = self.gpu.take(Kind::F64, 2 * self.channels)?;
        take(&own)?;
        let all = gather(own)?;
        let count = all.view().len() / (2 * self.channels);
        assert!(count.is_power_of_two() && all.view().len() == count * 2 * self.channels, "a branch of every rank");
        Ok((all, count))
    }

    /// Statistics of x, and the affine map of the normalisation by them and `params`. If the moments of pieces of x are known
    /// already, `known` is these moments, [pieces, 2, channels], and the rows of a piece, which divide the rows of a part. The
    /// running statistics, mean and variance, are updated. If other ranks have as many rows of the batch, the statistics are
    /// those of all ranks' rows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn moments(
        &self,
        x: View,
        known: Option<(Buffer, usize)>,
        params: Option<Params>,
        running: Option<[View; 2]>,
        gather: Gather,
    ) -> Result<MomentsGpu, GpuError> {
        let tiles = match &known {
            Some((_, rows)) => Tiles::new(self.rows, self.parts, *rows),
            None => pieces([self.rows, self.channels], self.parts),
        };
        let [rows, channels, parts, part, piece] =
            [self.rows, self.channels, self.parts, tiles.part, tiles.tile].map(Arg::count);
        let values = match known {
            Some((values, _)) => values,
            None => {
                let values = self.take_per_channel(tiles.count() * 2)?;
                let (shares, blocks) = shares(self.scalar, self.channels, &[x]);
                let args = [self.of_rows(x), channels, shares, part, piece, values.arg()];
                // SAFETY: x has its rows, and `values` two rows for each piece.
                unsafe { self.launch("bn_moments", [blocks, tiles.count(), 1], &args) }?;
                values
            }
        };
        let values = values.view().arg(Kind::F32, tiles.count() * 2 * self.channels);
        let (branches, count) = self.branches(gather, |own| {
            let of_parts = self.take_of_parts()?;
            let args = [values, channels, part, piece, of_parts.arg()];
            // SAFETY: `values` has each part's pieces, and `of_parts` two rows for each part.
            unsafe { self.launch("bn_parts", self.across_parts(), &args) }?;
            let args = [of_parts.arg(), parts, channels, part, own.arg()];
            // SAFETY: `of_parts` has as many parts, and the branch has two rows.
            unsafe { self.launch("bn_branch", across(self.channels), &args) }
        })?;
        let found = MomentsGpu { moments: self.take_per_channel(3)?, affine: self.take_per_channel(2)? };
        let [weight, bias] = self.of_channels(each(params));
        let [mean, var] = self.of_channels([running.map(|r| r[0]), running.map(|r| r[1])]);
        let (moments, affine) = (found.moments.arg(), found.affine.arg());
        let args = [branches.arg(), Arg::count(count), rows, channels, weight, bias, mean, var, moments, affine];
        // SAFETY: all have as many values per channel as the kernel's source says, and the branches two for each rank.
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

    /// out = the affine map of x, plus the residual, through a ReLU if `relu`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&self, x: View, affine: View, residual: ResidualGpu, relu: bool, out: View) -> Result<(), GpuError> {
        let (r, r_affine) = match residual {
            ResidualGpu::None => (None, None),
            ResidualGpu::Plain(r) => (Some(r), None),
            ResidualGpu::Normalised(r, affine) => (Some(r), Some(affine)),
        };
        let (grid, over) = self.over_rows(&[x, r.unwrap_or(x), out]);
        let (x, affine, out) = (self.of_rows(x), self.affine(affine), self.of_rows(out));
        let (r, r_affine) = (self.of_rows_if(r), Arg::optional(r_affine, Kind::F32, 2 * self.channels));
        let args =
            [&[x, affine, r, r_affine, Arg::Int(relu.into()), Arg::count(self.channels)], &over[..], &[out]].concat();
        // SAFETY: x, the residual and `out` have these rows, and the maps two values per channel.
        unsafe { self.launch("bn_apply", grid, &args) }
    }

    /// Computes the gradient of x from `g`, the gradient of the output (that of the ReLU, if there is one). It is written to
    /// `gx`, or added to it with `accumulate`. The gradients of weight and bias are added to `g_params`. `masked` receives the
    /// gradient of the ReLU's input. If other ranks have as many rows of the batch, the sums are over all ranks' rows.
    ///
    /// # Errors
    /// When the device fails.
    #[allow(clippy::too_many_arguments, reason = "one pass over memory does all of it")]
    pub fn backward(
        &self,
        of: Normalised,
        params: Option<Params>,
        g_params: Option<Params>,
        g: View,
        masked: Option<View>,
        (gx, accumulate): (View, bool),
        gather: Gather,
    ) -> Result<(), GpuError> {
        let tiles = pieces([self.rows, self.channels], self.parts);
        let [channels, parts, part, piece] = [self.channels, self.parts, tiles.part, tiles.tile].map(Arg::count);
        let values = self.take_per_channel(tiles.count() * 2)?;
        let views = [of.x, g, of.output.unwrap_or(g), masked.unwrap_or(g), gx];
        let (shares, blocks) = shares(self.scalar, self.channels, &views);
        let (x, g, output) = (self.of_rows(of.x), self.of_rows(g), self.of_rows_if(of.output));
        let moments = of.moments.moments.view().arg(Kind::F32, 3 * self.channels);
        let args = [x, g, output, moments, channels, shares, part, piece, values.arg()];
        // SAFETY: x, g and the output have these rows, and `values` two rows for each piece.
        unsafe { self.launch("bn_backward_sums", [blocks, tiles.count(), 1], &args) }?;
        let (branches, count) = self.branches(gather, |own| {
            let of_parts = self.take_of_parts()?;
            let args = [values.arg(), channels, Arg::count(tiles.per_part()), of_parts.arg()];
            // SAFETY: `values` has each part's pieces, and `of_parts` two rows for each part.
            unsafe { self.launch("bn_backward_parts", self.across_parts(), &args) }?;
            let args = [of_parts.arg(), parts, channels, own.arg()];
            // SAFETY: `of_parts` has as many parts, and the branch has two rows.
            unsafe { self.launch("bn_backward_branch", across(self.channels), &args) }
        })?;
        let coefficients = self.take_per_channel(3)?;
        let ([weight, _], [g_weight, g_bias]) = (self.of_channels(each(params)), self.of_channels(each(g_params)));
        let counts = [count, count * self.rows, self.channels].map(Arg::count);
        let args = [&[branches.arg()], &counts[..], &[moments, weight, g_weight, g_bias, coefficients.arg()]].concat();
        // SAFETY: all have as many values per channel as the kernel's source says, and the branches two for each rank.
        unsafe { self.launch("bn_backward_combine", one_each(self.channels), &args) }?;
        let (masked, gx, accumulate) = (self.of_rows_if(masked), self.of_rows(gx), Arg::Int(accumulate.into()));
        let (grid, over) = self.over_rows(&views);
        let args = [&[x, g, output, coefficients.arg(), channels], &over[..], &[masked, gx, accumulate]].concat();
        // SAFETY: the coefficients have three values per channel, and all other tensors have these rows.
        unsafe { self.launch("bn_backward_input", grid, &args) }
    }

    /// Turns `g` from the gradient of a ReLU's output into that of its input.
    ///
    /// # Errors
    /// When the device fails.
    pub fn relu_backward(&self, output: View, g: View) -> Result<(), GpuError> {
        let args = [self.of_rows(output), Arg::count(self.len()), self.of_rows(g)];
        // SAFETY: both have these rows.
        unsafe { self.launch("relu_backward", self.strided(), &args) }
    }

    /// Copies as many f32 values as `to` has elements to the storage `scalar`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn narrow(gpu: &Gpu, scalar: Scalar, from: View, to: View) -> Result<(), GpuError> {
        let (rows, len) = (Rows { gpu, scalar, rows: to.len(), channels: 1, parts: 1 }, to.len());
        let args = [from.arg(Kind::F32, len), Arg::count(len), rows.of_rows(to)];
        // SAFETY: both have `len` values.
        unsafe { rows.launch("narrow", rows.strided(), &args) }
    }

    /// to += from.
    ///
    /// # Errors
    /// When the device fails.
    pub fn add(gpu: &Gpu, scalar: Scalar, from: View, to: View) -> Result<(), GpuError> {
        let (rows, len) = (Rows { gpu, scalar, rows: to.len(), channels: 1, parts: 1 }, to.len());
        let args = [rows.of_rows(from), Arg::count(len), rows.of_rows(to)];
        // SAFETY: both have `len` values.
        unsafe { rows.launch("add", rows.strided(), &args) }
    }
}

/// Weight and bias, if there are any.
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
            let rows = Rows { gpu, scalar: Scalar::F32, rows: x.len() / 3, channels: 3, parts: 1 };
            let upload = |name: &str| gpu.upload(&golden.get::<f32>(name)).unwrap();
            let (weight, bias, mean, var) =
                (upload("in.weight"), upload("in.bias"), upload("in.rmean"), upload("in.rvar"));
            let params = Params { weight: weight.view(), bias: bias.view() };
            let running = [mean.view(), var.view()];
            let (all_params, moving) = (Some(params), Some(running));
            let (x_gpu, cot_gpu) = (gpu.upload(&x).unwrap(), gpu.upload(&cot).unwrap());
            let y = x_gpu.take_alike().unwrap();
            let close = |what: &str, actual: &[f32], expected: Vec<f32>| assert_close(what, actual, &expected, F32);

            let moments = rows.moments(x_gpu.view(), None, all_params, moving, ALL_HERE).unwrap();
            rows.apply(x_gpu.view(), moments.affine.view(), ResidualGpu::None, false, y.view()).unwrap();
            close("y", &parts(&y), golden.channels_last("out.y"));
            close("rmean1", &parts(&mean), golden.get("out.rmean1"));
            close("rvar1", &parts(&var), golden.get("out.rvar1"));
            let second = gpu.upload(&x2).unwrap();
            Rows { rows: x2.len() / 3, ..rows }.moments(second.view(), None, all_params, moving, ALL_HERE).unwrap();
            close("rmean2", &parts(&mean), golden.get("out.rmean2"));
            close("rvar2", &parts(&var), golden.get("out.rvar2"));
            let affine = rows.eval(all_params, running).unwrap();
            rows.apply(x_gpu.view(), affine.view(), ResidualGpu::None, false, y.view()).unwrap();
            close("y_eval", &parts(&y), golden.channels_last("out.y_eval"));

            let (gw, gb) = (gpu.zeros(Kind::F32, 3).unwrap(), gpu.zeros(Kind::F32, 3).unwrap());
            let gx = cot_gpu.take_alike().unwrap();
            let of = Normalised { x: x_gpu.view(), moments: &moments, output: None };
            let g_params = Some(Params { weight: gw.view(), bias: gb.view() });
            rows.backward(of, all_params, g_params, cot_gpu.view(), None, (gx.view(), false), ALL_HERE).unwrap();
            close("grad.weight", &parts(&gw), golden.get("grad.weight"));
            close("grad.bias", &parts(&gb), golden.get("grad.bias"));
            close("grad.x", &parts(&gx), golden.channels_last("grad.x"));
            [parts(&y), parts(&gx), parts(&gw)]
        });
    }

    /// Several pieces, and channels that fill no block; a normalised residual; the ReLU's mask in the backward pass.
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
            let rows = Rows { gpu, scalar: Scalar::F32, rows: n, channels, parts: 1 };
            let up = |values: &[f32]| gpu.upload(values).unwrap();
            let (x, shortcut, g, weight, bias) = (up(&x), up(&shortcut), up(&g), up(&weight), up(&bias));
            let params = Some(Params { weight: weight.view(), bias: bias.view() });
            let found = rows.moments(x.view(), None, params, None, ALL_HERE).unwrap();
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
            rows.backward(of, params, g_params, g.view(), Some(kept.view()), (result.view(), false), ALL_HERE).unwrap();
            assert_close("masked", &parts(&kept), &masked, 0.0);
            assert_close("gw", &parts(&gw), &sums.g_normalised, 1e-5);
            assert_close("gb", &parts(&gb), &sums.g, 1e-5);
            assert_close("gx", &parts(&result), &gx, 1e-5);
            rows.backward(of, params, g_params, g.view(), None, (result.view(), true), ALL_HERE).unwrap();
            assert_close("gx twice", &parts(&result), &gx.iter().map(|g| 2.0 * g).collect::<Vec<_>>(), 1e-5);
            [parts(&y), parts(&result)]
        });
    }
}

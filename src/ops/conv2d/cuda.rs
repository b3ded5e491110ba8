//! Convolution on a GPU. Images and weights have the same layout as on the CPU.

mod library;

use super::{Conv2d, Size};
use crate::ops::{
    batch_norm::cuda::Rows,
    cuda::{Arg, Buffer, Gpu, GpuError, Kind, Scalar, Source, THREADS, View, in_strides, joined, one_each},
    parts::{Tiles, tree},
};

/// Arithmetic of matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Math {
    /// f32 throughout.
    F32,
    /// f32 in memory; tensor cores read 10 bits of mantissa and sum in f32.
    Tf32,
    /// f16 in memory; tensor cores sum in f32.
    F16,
    /// bf16 in memory; tensor cores sum in f32.
    Bf16,
}

impl Math {
    /// The type of images and weights in memory.
    pub fn scalar(self) -> Scalar {
        match self {
            Math::F32 | Math::Tf32 => Scalar::F32,
            Math::F16 => Scalar::F16,
            Math::Bf16 => Scalar::Bf16,
        }
    }

    /// This arithmetic's source among those that are compiled once per arithmetic.
    pub fn source(self, sources: &'static [Source; 4]) -> &'static Source {
        match self {
            Math::F32 => &sources[0],
            Math::Tf32 => &sources[1],
            Math::F16 => &sources[2],
            Math::Bf16 => &sources[3],
        }
    }
}

const KERNELS: [&str; 12] = [
    "conv_forward_128",
    "conv_forward_64",
    "conv_forward_any",
    "conv_data_128",
    "conv_data_64",
    "conv_data_any",
    "conv_weight_128",
    "conv_weight_64",
    "conv_weight_any",
    "conv_weight_sum",
    "conv_pad",
    "conv_unpad",
];

/// Further kernels of the 16-bit arithmetics, for GPUs whose tensor cores work for groups of warps.
const BY_GROUPS: [&str; 6] = [
    "conv_forward_groups_128",
    "conv_forward_groups_64",
    "conv_data_groups_128",
    "conv_data_groups_64",
    "conv_weight_groups_128",
    "conv_weight_groups_64",
];
const KERNELS_OF_GROUPS: [&str; 18] = joined(&KERNELS, &BY_GROUPS);

const TEXT: &str = concat!(
    include_str!("../cuda/matmul.cuh"),
    include_str!("../cuda/pipeline.cuh"),
    include_str!("../cuda/parts.cuh"),
    include_str!("conv2d.cu")
);

/// The kernels, once per arithmetic.
pub static SOURCES: [Source; 4] = [
    Source { name: "conv2d_f32", defines: "#define MATH 0", text: TEXT, kernels: &KERNELS },
    Source { name: "conv2d_tf32", defines: "#define MATH 1", text: TEXT, kernels: &KERNELS },
    Source { name: "conv2d_f16", defines: "#define MATH 2", text: TEXT, kernels: &KERNELS_OF_GROUPS },
    Source { name: "conv2d_bf16", defines: "#define MATH 3", text: TEXT, kernels: &KERNELS_OF_GROUPS },
];

/// A pass over images of one size on a GPU.
#[derive(Clone, Copy, Debug)]
pub struct OnGpu<'a> {
    pub gpu: &'a Gpu,
    pub math: Math,
    /// The input's size.
    pub size: Size,
    /// Number of parts of the batch that these images are: sums over the batch are a binary tree over its parts.
    pub parts: usize,
}

/// Rows of y per piece of moments: those of a block's tile, over which it can compute them.
pub const MOMENT_ROWS: usize = 128;
/// Blocks that keep a GPU busy: the weight pass cuts the pixels of a part of the batch into enough pieces for as many blocks.
/// Fixed, because sums are taken per piece.
const BUSY: usize = 512;
/// Fewest pixels in a piece: each piece takes memory for all weights, which is written once and read once.
const PIECE: usize = 2048;
/// Most pieces of a part.
const PIECES: usize = 64;

/// A value per channel.
#[derive(Clone, Copy, Debug)]
pub struct Bias<'a> {
    /// f32, for our kernels.
    pub exact: View<'a>,
    /// In the storage type of the result, for a library.
    pub stored: View<'a>,
}

/// Tensors that are added to a product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added<'a> {
    pub bias: Option<Bias<'a>>,
    /// A tensor of the result's shape, which may be the result's own memory.
    pub tensor: Option<View<'a>>,
}

/// A variant of a kernel: the ending of its name and its tile.
struct Variant {
    suffix: &'static str,
    tile: [usize; 2],
}

impl Variant {
    fn kernel(&self, pass: &str) -> String {
        format!("conv_{pass}_{}", self.suffix)
    }
}

impl Conv2d {
    /// y = conv(x, weight), or y += conv(x, weight) if `accumulate`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_gpu(&self, on: OnGpu, x: View, weight: View, y: View, accumulate: bool) -> Result<(), GpuError> {
        self.forward_added_gpu(on, x, weight, Added { bias: None, tensor: accumulate.then_some(y) }, y)
    }

    /// y = conv(x, weight) plus the tensors of `added`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_added_gpu(&self, on: OnGpu, x: View, weight: View, added: Added, y: View) -> Result<(), GpuError> {
        self.run_forward(on, x, weight, added, y, false).map(drop)
    }

    /// y = conv(x, weight). Also returns the moments that batch norm needs: mean and summed squared deviation of each column of
    /// y over each [`MOMENT_ROWS`] rows, [pieces, 2, output]. None where [`MOMENT_ROWS`] does not divide the rows of a part of
    /// the batch, or where the operands only allow a kernel with smaller tiles.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_moments_gpu(&self, on: OnGpu, x: View, weight: View, y: View) -> Result<Option<Buffer>, GpuError> {
        self.run_forward(on, x, weight, Added::default(), y, true)
    }

    fn run_forward(
        &self,
        on: OnGpu,
        x: View,
        weight: View,
        added: Added,
        y: View,
        moments: bool,
    ) -> Result<Option<Buffer>, GpuError> {
        if let Some(wide) = self.padded(on.math) {
            let (x, weight) = (self.pad(on, x, on.size.pixels())?, self.pad(on, weight, self.weight_rows())?);
            return wide.run_forward(on, x.view(), weight.view(), added, y, moments);
        }
        // The library computes no moments.
        if !moments && self.is_for_library(on, [x, weight, y], added) {
            self.multiply_forward(on, x, weight, added, y)?;
            return Ok(None);
        }
        let rows = self.output_size(on.size).pixels();
        let variant = self.variant(on, self.input, [rows, self.output], [x, weight]);
        let grid = [rows.div_ceil(variant.tile[0]), self.output.div_ceil(variant.tile[1]), 1];
        let fits = variant.tile[0] == MOMENT_ROWS && (rows / on.parts).is_multiple_of(MOMENT_ROWS);
        let pieces = match moments && fits {
            true => Some(on.gpu.take(Kind::F32, rows / MOMENT_ROWS * 2 * self.output)?),
            false => None,
        };
        let x = x.arg(on.math.scalar(), on.size.pixels() * self.input);
        let factors = [x, self.weight(on, weight)];
        let moments = Arg::optional(pieces.as_ref().map(Buffer::view), Kind::F32, 0);
        // SAFETY: x and weight have the elements of their shape, the grid covers the output's pixels, and `moments` has room for
        // those of each block.
        unsafe {
            self.whole(on, &variant.kernel("forward"), grid, [rows, self.output], factors, added, y, &[moments])
        }?;
        Ok(pieces)
    }

    /// gx = conv^T(gy, weight), or gx += conv^T(gy, weight) if `accumulate`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward_data_gpu(
        &self,
        on: OnGpu,
        gy: View,
        weight: View,
        gx: View,
        accumulate: bool,
    ) -> Result<(), GpuError> {
        let added = Added { bias: None, tensor: accumulate.then_some(gx) };
        if self.is_for_library(on, [gy, weight, gx], added) {
            return self.multiply_data(on, gy, weight, added, gx);
        }
        let both = gcd(self.input, self.output);
        let variant = self.variant(on, both, [on.size.pixels(), self.input], [gy, weight]);
        let gy = gy.arg(on.math.scalar(), self.output_size(on.size).pixels() * self.output);
        let factors = [gy, self.weight(on, weight)];
        // A class is the pixels whose coordinates have the same remainders modulo the stride. The grid fits the first class,
        // which is the largest.
        let (class, classes) = (
            Size { h: on.size.h.div_ceil(self.stride), w: on.size.w.div_ceil(self.stride), ..on.size },
            self.stride * self.stride,
        );
        let grid = [class.pixels().div_ceil(variant.tile[0]), self.input.div_ceil(variant.tile[1]), classes];
        // SAFETY: gy and weight have the elements of their shape, and the grid covers the input's pixels.
        unsafe {
            self.whole(on, &variant.kernel("data"), grid, [on.size.pixels(), self.input], factors, added, gx, &[])
        }
    }

    /// gw += the weight gradient, in f32 whatever the arithmetic.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward_weight_gpu(&self, on: OnGpu, x: View, gy: View, gw: View) -> Result<(), GpuError> {
        if let Some(wide) = self.padded(on.math) {
            let (x, padded) = (self.pad(on, x, on.size.pixels())?, on.gpu.zeros(Kind::F32, wide.weights())?);
            wide.backward_weight_gpu(on, x.view(), gy, padded.view())?;
            let counts = [self.weights(), self.input, wide.input].map(Arg::count);
            let args = [&counts[..], &[padded.arg(), gw.arg(Kind::F32, self.weights())]].concat();
            // SAFETY: `padded` and gw have the weights' rows, of `wide.input` and `self.input` channels.
            return unsafe { on.gpu.launch(on.math.source(&SOURCES), "conv_unpad", one_each(self.weights()), &args) };
        }
        if self.is_for_library(on, [x, gy, gw], Added::default()) {
            return self.multiply_weight(on, x, gy, gw);
        }
        let depth = self.output_size(on.size).pixels();
        let variant = self.variant_of(on, gcd(self.input, self.output), self.patch() > 64, [x, gy]);
        let tile = variant.tile;
        let tiles = [self.output.div_ceil(tile[0]), self.patch().div_ceil(tile[1])];
        let part = depth / on.parts;
        let wanted = (BUSY / (tiles[0] * tiles[1])).clamp(1, PIECES).min(part.div_ceil(PIECE));
        let cut = Tiles::new(depth, on.parts, part.div_ceil(wanted).next_multiple_of(32));
        // No more parts per launch than keep the GPU busy: each part takes memory for all weights.
        let at_a_time = (BUSY.div_ceil(tiles[0] * tiles[1] * cut.per_part())).next_power_of_two().min(on.parts);
        let (x, gy) =
            (x.arg(on.math.scalar(), on.size.pixels() * self.input), gy.arg(on.math.scalar(), depth * self.output));
        let (kernel, count) = (variant.kernel("weight"), at_a_time * cut.per_part());
        let source = on.math.source(&SOURCES);
        self.add_parts(on, gw, [at_a_time, cut.per_part()], |launch, pieces| {
            let cut_into = [launch * count, cut.part, cut.tile].map(Arg::count);
            let args = [&[self.geometry(on.size), gy, x][..], &cut_into, &[pieces.arg()]].concat();
            // SAFETY: both images have the pixels that the geometry says, and `pieces` the weights of each piece.
            unsafe { on.gpu.launch(source, &kernel, [tiles[0], tiles[1], count], &args) }
        })
    }

    /// Adds the weight gradients of all parts of the batch to `gw`, in the order of the tree. `of_parts` writes the gradients of
    /// launch i, `at_a_time` parts of `per_part` pieces each.
    fn add_parts(
        &self,
        on: OnGpu,
        gw: View,
        [at_a_time, per_part]: [usize; 2],
        of_parts: impl Fn(usize, &Buffer) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let (source, weights) = (on.math.source(&SOURCES), self.weights());
        // Writes the sum over the parts of a launch to `to`, or adds it to `to`.
        let sum = |launch: usize, to: Arg, accumulate: bool| -> Result<(), GpuError> {
            let pieces = on.gpu.take(Kind::F32, at_a_time * per_part * weights)?;
            of_parts(launch, &pieces)?;
            let counts = [at_a_time, per_part, weights].map(Arg::count);
            let args = [&counts[..], &[pieces.arg(), Arg::Int(accumulate.into()), to]].concat();
            // SAFETY: `pieces` has the weights of each piece, and `to` a total for each weight.
            unsafe { on.gpu.launch(source, "conv_weight_sum", one_each(weights), &args) }
        };
        if at_a_time == on.parts {
            return sum(0, gw.arg(Kind::F32, weights), true);
        }
        let branch = |launch: usize| -> Result<Buffer, GpuError> {
            let branch = on.gpu.take(Kind::F32, weights)?;
            sum(launch, branch.arg(), false)?;
            Ok(branch)
        };
        let join = |left: Result<Buffer, GpuError>, right: Result<Buffer, GpuError>| {
            let left = left?;
            Rows::add(on.gpu, Scalar::F32, right?.view(), left.view())?;
            Ok(left)
        };
        let whole = tree(on.parts / at_a_time, branch, join)?;
        Rows::add(on.gpu, Scalar::F32, whole.view(), gw.part(0..weights))
    }

    fn weight(&self, on: OnGpu, weight: View) -> Arg {
        weight.arg(on.math.scalar(), self.weights())
    }

    /// Runs a product on `grid`, whose result is `out` [rows, columns].
    ///
    /// # Safety
    /// `a` and `b` must have the elements of the images and weights that the pass reads, and the blocks of `grid` must write
    /// within `out` and the memory of `more`.
    #[allow(clippy::too_many_arguments, reason = "a product has as many")]
    unsafe fn whole(
        &self,
        on: OnGpu,
        kernel: &str,
        grid: [usize; 3],
        [rows, columns]: [usize; 2],
        [a, b]: [Arg; 2],
        added: Added,
        out: View,
        more: &[Arg],
    ) -> Result<(), GpuError> {
        let (scalar, len) = (on.math.scalar(), rows * columns);
        let (bias, tensor) = (
            Arg::optional(added.bias.map(|bias| bias.exact), Kind::F32, columns),
            Arg::optional(added.tensor, scalar, len),
        );
        let args = [&[self.geometry(on.size), a, b, bias, tensor, out.arg(scalar, len)], more].concat();
        // SAFETY: images and weights have the sizes that the geometry says, as the caller promises; the result was checked.
        unsafe { on.gpu.launch(on.math.source(&SOURCES), kernel, grid, &args) }
    }

    /// The same convolution with more input channels, a multiple of a 16-byte load, for images that are copied with zeros as the
    /// additional channels. Such a copy costs less than reading patches by single elements. None where patches are single
    /// pixels, or 16-byte loads divide the channels already.
    fn padded(&self, math: Math) -> Option<Conv2d> {
        let wide = self.input.next_multiple_of(16 / math.scalar().bytes());
        (self.kernel > 1 && wide != self.input).then_some(Conv2d { input: wide, ..*self })
    }

    /// Copies `rows` rows of the input's channels, each followed by zeros for the additional channels of [`Self::padded`].
    fn pad(&self, on: OnGpu, from: View, rows: usize) -> Result<Buffer, GpuError> {
        let (scalar, wide) = (on.math.scalar(), self.input.next_multiple_of(16 / on.math.scalar().bytes()));
        let to = on.gpu.take(scalar, rows * wide)?;
        let counts = [rows * wide, self.input, wide].map(Arg::count);
        let args = [&counts[..], &[from.arg(scalar, rows * self.input), to.arg()]].concat();
        // SAFETY: `from` has `rows` rows of `self.input` channels, and `to` as many of `wide` channels.
        unsafe { on.gpu.launch(on.math.source(&SOURCES), "conv_pad", in_strides(rows * wide), &args) }?;
        Ok(to)
    }

    /// Rows of input channels in the weights.
    fn weight_rows(&self) -> usize {
        self.weights() / self.input
    }

    /// Chooses the tiles for a product [rows, columns] whose operands are read along axes of a multiple of `contiguous`
    /// elements. The choice changes no result: tiles of 128 columns multiply faster, and tiles of 64 columns make more blocks
    /// where those of 128 are fewer than the multiprocessors.
    fn variant(&self, on: OnGpu, contiguous: usize, [rows, columns]: [usize; 2], operands: [View; 2]) -> Variant {
        let many = rows.div_ceil(128) * columns.div_ceil(128) >= on.gpu.traits().multiprocessors;
        self.variant_of(on, contiguous, columns > 64 && many, operands)
    }

    /// Tiles of 128 or 64 columns by the fastest way that the device and the operands allow.
    fn variant_of(&self, on: OnGpu, contiguous: usize, large: bool, operands: [View; 2]) -> Variant {
        let bytes = on.math.scalar().bytes();
        let wide = contiguous.is_multiple_of(16 / bytes) && operands.iter().all(|operand| operand.is_aligned(16));
        let groups = bytes == 2 && on.gpu.traits().groups;
        match (wide, large) {
            (false, _) => Variant { suffix: "any", tile: [64, 64] },
            (true, true) => Variant { suffix: if groups { "groups_128" } else { "128" }, tile: [128, 128] },
            (true, false) => Variant { suffix: if groups { "groups_64" } else { "64" }, tile: [128, 64] },
        }
    }

    fn geometry(&self, size: Size) -> Arg {
        let out = self.output_size(size);
        let taps = [self.kernel, self.stride, self.padding];
        Arg::ints(&[&[size.n, size.h, size.w, self.input, out.h, out.w, self.output], &taps[..]].concat())
    }
}

/// The largest number that divides both.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

const _: () = assert!(THREADS == 256); // the kernels divide their tiles among as many threads

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{conv2d::Source as Images, matmul::MatmulPrecision};
    use crate::ops::{
        cuda::testing::{on_every_gpu, one_gpu, read, upload, with_library},
        golden::{Golden, assert_close},
    };

    /// y, gx, twice accumulated gx, gw.
    fn passes(gpu: &Gpu, math: Math, conv: &Conv2d, size: Size, [x, weight, cot]: [&[f32]; 3]) -> [Vec<f32>; 4] {
        let on = OnGpu { gpu, math, size, parts: 1 };
        let [x, weight, cot] = [x, weight, cot].map(|v| upload(gpu, math.scalar(), v));
        let y = cot.take_alike().unwrap();
        conv.forward_gpu(on, x.view(), weight.view(), y.view(), false).unwrap();
        let gx = x.take_alike().unwrap();
        conv.backward_data_gpu(on, cot.view(), weight.view(), gx.view(), false).unwrap();
        let once = read(&gx);
        conv.backward_data_gpu(on, cot.view(), weight.view(), gx.view(), true).unwrap();
        let gw = gpu.zeros(Kind::F32, conv.weights()).unwrap();
        conv.backward_weight_gpu(on, x.view(), cot.view(), gw.view()).unwrap();
        [read(&y), once, read(&gx), gw.read().unwrap()]
    }

    /// Tolerances: f32 sums of up to 147 products as on the CPU; tf32 and f16 operands are rounded to 11 bits each, so that a
    /// sum of such products is off by up to 2^-10 of its terms' magnitude, and f16 results are rounded once more. bf16 has three
    /// bits less.
    const MATHS: [(Math, f64); 4] = [(Math::F32, 2e-6), (Math::Tf32, 1e-3), (Math::F16, 2e-3), (Math::Bf16, 1.6e-2)];

    #[test]
    fn agrees_with_the_reference() {
        for (case, kernel, stride, padding) in [
            ("conv3x3_s1_p1", 3, 1, 1),
            ("conv3x3_s2_p1", 3, 2, 1),
            ("conv3x3_s2_p1_odd", 3, 2, 1),
            ("conv1x1_s2_p0", 1, 2, 0),
            ("conv7x7_s2_p3", 7, 2, 3),
        ] {
            let golden = Golden::load(case);
            let [n, input, h, w] = golden.shape("in.x")[..] else { unreachable!() };
            let conv = Conv2d {
                kernel,
                stride,
                padding,
                input,
                output: golden.shape("in.weight")[0],
                matmul: MatmulPrecision::Full,
            };
            let input = |name: &str| golden.channels_last::<f32>(name);
            for (math, tolerance) in MATHS {
                on_every_gpu(|gpu| {
                    let inputs = [&input("in.x")[..], &input("in.weight"), &input("in.cot")];
                    let results = passes(gpu, math, &conv, Size { n, h, w }, inputs);
                    let [y, gx, twice, gw] = &results;
                    let close = |what: &str, actual: &[f32], expected: &[f32]| {
                        assert_close(&format!("{case} {math:?} {what}"), actual, expected, tolerance);
                    };
                    close("y", y, &input("out.y"));
                    close("gx", gx, &input("grad.x"));
                    close("gx twice", twice, &input("grad.x").iter().map(|g| 2.0 * g).collect::<Vec<_>>());
                    close("gw", gw, &input("grad.weight"));
                    bits(&results)
                });
            }
        }
    }

    /// Shapes that take every variant, with ragged tiles and several parts of the weight pass.
    const SHAPES: [(Conv2d, Size); 5] = [
        (
            Conv2d { kernel: 3, stride: 1, padding: 1, input: 16, output: 136, matmul: MatmulPrecision::Full },
            Size { n: 3, h: 9, w: 11 },
        ),
        (
            Conv2d { kernel: 1, stride: 1, padding: 0, input: 24, output: 40, matmul: MatmulPrecision::Full },
            Size { n: 7, h: 17, w: 20 },
        ),
        (
            Conv2d { kernel: 3, stride: 2, padding: 1, input: 32, output: 16, matmul: MatmulPrecision::Full },
            Size { n: 5, h: 15, w: 18 },
        ),
        (
            Conv2d { kernel: 7, stride: 2, padding: 3, input: 3, output: 8, matmul: MatmulPrecision::Full },
            Size { n: 2, h: 20, w: 23 },
        ),
        (
            Conv2d { kernel: 1, stride: 1, padding: 0, input: 12, output: 10, matmul: MatmulPrecision::Full },
            Size { n: 70, h: 1, w: 1 },
        ),
    ];

    #[test]
    fn every_variant_agrees_with_the_cpu() {
        let ramp = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin() as f32).collect::<Vec<_>>();
        for (conv, size) in SHAPES {
            let (x, weight) = (ramp(size.pixels() * conv.input, 0.37), ramp(conv.weights(), 0.11));
            let cot = ramp(conv.output_size(size).pixels() * conv.output, 0.23);
            let (mut y, mut gx, mut gw) = (cot.clone(), x.clone(), vec![0.0; weight.len()]);
            conv.forward(Images::plain(&x), size, &weight, 0.0, &mut y, None);
            conv.backward_data(&cot, size, &weight, 0.0, &mut gx);
            conv.backward_weight(Images::plain(&x), size, &cot, &mut gw);
            for (math, tolerance) in MATHS {
                // Sums of up to 2380 products of magnitude 1 that mostly cancel: errors grow with the square root of their
                // number.
                let tolerance = tolerance * 32.0;
                on_every_gpu(|gpu| {
                    let results = passes(gpu, math, &conv, size, [&x, &weight, &cot]);
                    for (what, actual, expected) in
                        [("y", &results[0], &y), ("gx", &results[1], &gx), ("gw", &results[3], &gw)]
                    {
                        assert_close(&format!("{conv:?} {math:?} {what}"), actual, expected, tolerance);
                    }
                    bits(&results)
                });
            }
        }
    }

    /// Layers of a transformer and 1x1 convolutions, in two parts, on a device whose library computes products. The library adds in
    /// another order than our kernels. Half of the batch has the bits of the whole.
    #[test]
    fn products_of_a_library_agree_with_the_cpu() {
        let conv = Conv2d { kernel: 1, stride: 1, padding: 0, input: 24, output: 40, matmul: MatmulPrecision::Full };
        let size = Size { n: 16, h: 5, w: 3 };
        let pixels = size.pixels();
        let ramp = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin() as f32).collect::<Vec<_>>();
        let (x, weight, bias) = (ramp(pixels * 24, 0.37), ramp(conv.weights(), 0.11), ramp(40, 0.7));
        let (cot, more) = (ramp(pixels * 40, 0.23), ramp(pixels * 40, 0.29));
        let (mut y, mut gx, mut gw) = (more.clone(), ramp(pixels * 24, 0.31), vec![0.5; weight.len()]);
        let old = gx.clone();
        conv.forward(Images::plain(&x), size, &weight, 1.0, &mut y, None);
        y.iter_mut().zip(bias.iter().cycle()).for_each(|(y, bias)| *y += bias);
        conv.backward_data(&cot, size, &weight, 1.0, &mut gx);
        conv.backward_weight(Images::plain(&x), size, &cot, &mut gw);
        for gpu in with_library() {
            for (math, tolerance) in MATHS {
                let scalar = math.scalar();
                // y, gx, gw of `images`, which are `parts` parts of the batch.
                let passes = |images: std::ops::Range<usize>, parts: usize| {
                    let size = Size { n: images.len(), ..size };
                    let on = OnGpu { gpu: &gpu, math, size, parts };
                    let part = |values: &[f32], channels: usize| {
                        upload(&gpu, scalar, &values[images.start * 15 * channels..images.end * 15 * channels])
                    };
                    let [x, cot, more] = [part(&x, 24), part(&cot, 40), part(&more, 40)];
                    let (weight, exact) = (upload(&gpu, scalar, &weight), gpu.upload(&bias).unwrap());
                    let (stored, y) = (upload(&gpu, scalar, &bias), cot.take_alike().unwrap());
                    assert_eq!(conv.is_for_library(on, [x.view(); 3], Added::default()), math != Math::F32);
                    let bias = Bias { exact: exact.view(), stored: stored.view() };
                    let added = Added { bias: Some(bias), tensor: Some(more.view()) };
                    conv.forward_added_gpu(on, x.view(), weight.view(), added, y.view()).unwrap();
                    let gx = part(&old, 24);
                    conv.backward_data_gpu(on, cot.view(), weight.view(), gx.view(), true).unwrap();
                    let gw = gpu.upload(&vec![0.5f32; conv.weights()]).unwrap();
                    conv.backward_weight_gpu(on, x.view(), cot.view(), gw.view()).unwrap();
                    [read(&y), read(&gx), read(&gw)]
                };
                let results = passes(0..16, 2);
                for (what, actual, expected) in
                    [("y", &results[0], &y), ("gx", &results[1], &gx), ("gw", &results[2], &gw)]
                {
                    assert_close(&format!("{math:?} {what}"), actual, expected, tolerance * 4.0);
                }
                let halves = [passes(0..8, 1), passes(8..16, 1)];
                for what in [0, 1] {
                    assert!(results[what] == [&halves[0][what][..], &halves[1][what]].concat(), "{math:?} {what}");
                }
                let sums = halves[0][2].iter().zip(&halves[1][2]).map(|(a, b)| (a - 0.5) + (b - 0.5) + 0.5);
                assert_close("gw of halves", &results[2], &sums.collect::<Vec<_>>(), 1e-6);
            }
        }
    }

    /// Two parts of two pieces each, and channels that fill no tile. Where pieces do not divide the rows, there are no moments.
    #[test]
    fn moments_of_what_is_convolved_are_those_of_a_pass_over_it() {
        let conv = Conv2d { kernel: 3, stride: 1, padding: 1, input: 8, output: 72, matmul: MatmulPrecision::Full };
        let (parts, size) = (2, Size { n: 2, h: 16, w: 16 });
        let ramp = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin() as f32 + 0.5).collect::<Vec<_>>();
        let (x, weight) = (ramp(size.pixels() * 8, 0.37), ramp(conv.weights(), 0.11));
        for (math, _) in MATHS {
            on_every_gpu(|gpu| {
                let on = OnGpu { gpu, math, size, parts };
                let [x, weight] = [&x, &weight].map(|values| upload(gpu, math.scalar(), values));
                let y = gpu.take(math.scalar(), size.pixels() * conv.output).unwrap();
                let pieces =
                    conv.forward_moments_gpu(on, x.view(), weight.view(), y.view()).unwrap().expect("they fit");
                let (found, y) = (pieces.read::<f32>().unwrap(), read(&y));
                assert_eq!(found.len(), size.pixels() / MOMENT_ROWS * 2 * conv.output);
                for (piece, rows) in y.chunks(MOMENT_ROWS * conv.output).enumerate() {
                    for c in 0..conv.output {
                        let column = || rows.iter().skip(c).step_by(conv.output).map(|v| f64::from(*v));
                        let mean = column().sum::<f64>() / MOMENT_ROWS as f64;
                        let deviation: f64 = column().map(|v| (v - mean) * (v - mean)).sum();
                        let at = piece * 2 * conv.output + c;
                        let close = |a: f32, b: f64| (f64::from(a) - b).abs() <= 1e-4 * (1.0 + b.abs());
                        assert!(close(found[at], mean), "{math:?} mean: {} and {mean}", found[at]);
                        let spread = found[at + conv.output];
                        assert!(close(spread, deviation), "{math:?} deviation: {spread} and {deviation}");
                    }
                }
                let ragged = OnGpu { size: Size { n: 2, h: 16, w: 15 }, ..on };
                let y = gpu.take(math.scalar(), ragged.size.pixels() * conv.output).unwrap();
                assert!(conv.forward_moments_gpu(ragged, x.view(), weight.view(), y.view()).unwrap().is_none());
                found
            });
        }
    }

    /// 64 parts, in several launches: the gradient of half of the images is a branch of the tree.
    #[test]
    fn weight_gradients_of_halves_of_a_batch_are_branches() {
        let Some(gpu) = one_gpu() else { return };
        let (n, channels) = (64, 512);
        let conv = Conv2d {
            kernel: 1,
            stride: 1,
            padding: 0,
            input: channels,
            output: channels,
            matmul: MatmulPrecision::Full,
        };
        let ramp = |step: f32| (0..n * channels).map(|i| (i as f32 * step).sin() * 1e2).collect::<Vec<_>>();
        let (x, g) = (ramp(0.37), ramp(0.23));
        let gradient = |x: &[f32], g: &[f32], parts: usize| -> Vec<f32> {
            let [x, g] = [x, g].map(|values| gpu.upload(values).unwrap());
            let gw = gpu.zeros(Kind::F32, conv.weights()).unwrap();
            let on = OnGpu { gpu: &gpu, math: Math::F32, size: Size { n: parts, h: 1, w: 1 }, parts };
            conv.backward_weight_gpu(on, x.view(), g.view(), gw.view()).unwrap();
            gw.read().unwrap()
        };
        let half = n / 2 * channels;
        let (left, right) = (gradient(&x[..half], &g[..half], n / 2), gradient(&x[half..], &g[half..], n / 2));
        let joined: Vec<f32> = left.iter().zip(&right).map(|(l, r)| l + r).collect();
        assert!(gradient(&x, &g, n) == joined);
    }

    fn bits(results: &[Vec<f32>]) -> Vec<u32> {
        results.iter().flatten().map(|v| v.to_bits()).collect()
    }
}

//! Batch normalisation over rows of channels [rows, channels], as kernels on slices.
//!
//! In training, y = (x - mean) / sqrt(var + eps) * weight + bias with the batch's biased variance; running statistics
//! move by 0.1 towards the batch's mean and unbiased variance (torch's convention).

pub mod cuda;
mod elementwise;
mod moments;
#[cfg(test)]
mod tests;

pub use moments::{AddBranch, Moments, TileMoments, TileSlot};

pub(crate) use elementwise::normalise;

use std::ops::Range;

use elementwise::{Gate, Open, at, combine, dispatch};
use pulp::Simd;
use rayon::prelude::*;

use super::{
    Real,
    parts::{Tiles, tree},
    reductions::{ColumnSums, ColumnTerms},
    simd::vectorized,
    vector::Vector,
};

/// Added to the variance.
pub const EPS: f64 = 1e-5;
/// Weight of the batch in the running statistics.
pub const MOMENTUM: f64 = 0.1;
/// Most rows per task. Fixed, because sums are taken per task.
const CHUNK_ROWS: usize = 512;
/// Elements per task where rows are long (128 KiB in f32): what a task reads stays in a core's cache between two passes.
const CHUNK: usize = 1 << 15;

/// Rows of `channels` elements per task.
fn chunk_rows(channels: usize) -> usize {
    (CHUNK / channels).clamp(16, CHUNK_ROWS)
}

/// The affine map x * scale + shift per channel that is equivalent to a normalisation.
#[derive(Clone, Debug)]
pub struct Affine<E> {
    pub scale: Vec<E>,
    pub shift: Vec<E>,
}

impl<E: Real> Affine<E> {
    /// Normalisation by `mean` and `inv_std`, then by `weight` and `bias`, if given.
    pub fn new(mean: &[E], inv_std: &[E], weight_bias: Option<(&[E], &[E])>) -> Self {
        let channels = mean.len();
        let weight = |c: usize| weight_bias.map_or(E::one(), |(w, _)| w[c]);
        let bias = |c: usize| weight_bias.map_or(E::zero(), |(_, b)| b[c]);
        let scale: Vec<E> = (0..channels).map(|c| inv_std[c] * weight(c)).collect();
        let shift = (0..channels).map(|c| bias(c) - mean[c] * scale[c]).collect();
        Self { scale, shift }
    }

    /// Normalisation by running statistics (eval mode).
    pub fn eval(mean: &[E], var: &[E], weight_bias: Option<(&[E], &[E])>) -> Self {
        Self::new(mean, &inv_std(var), weight_bias)
    }
}

/// 1 / sqrt(var + eps).
pub fn inv_std<E: Real>(var: &[E]) -> Vec<E> {
    var.iter().map(|v| E::of(1.0 / (v.as_f64() + EPS).sqrt())).collect()
}

/// The tensor that is added to a normalised one before its ReLU.
#[derive(Clone, Copy)]
pub enum Residual<'a, E> {
    None,
    /// A tensor as it is.
    Plain(&'a [E]),
    /// A tensor that must still be normalised itself (the output of the shortcut's convolution).
    Normalised(&'a [E], &'a Affine<E>),
}

impl<E> Residual<'_, E> {
    /// The part for some elements of the normalised tensor.
    fn part(&self, elements: Range<usize>) -> Self {
        match *self {
            Residual::None => Residual::None,
            Residual::Plain(x) => Residual::Plain(&x[elements]),
            Residual::Normalised(x, affine) => Residual::Normalised(&x[elements], affine),
        }
    }
}

/// out = relu(x * scale + shift + residual), or without the ReLU.
pub fn apply<E: Real>(x: &[E], affine: &Affine<E>, residual: Residual<E>, relu: bool, out: &mut [E]) {
    let chunk = chunk_rows(affine.scale.len()) * affine.scale.len();
    out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate().for_each(|(i, (out, x))| {
        let part = i * chunk..i * chunk + out.len();
        normalise(x, affine, residual.part(part), relu, out);
    });
}

/// The ReLU after a normalisation, and the data from which the backward pass finds its mask.
#[derive(Clone, Copy)]
pub enum Relu<'a, E> {
    /// No ReLU.
    None,
    /// The ReLU's output.
    Output(&'a [E]),
    /// The affine map of the normalisation: applied to the same input, it is positive where the ReLU's output is.
    Of(&'a Affine<E>),
}

/// Sets the gradient of a ReLU's input from that of its output: g = 0 where the output is not positive.
pub fn relu_backward<E: Real>(output: &[E], g: &mut [E]) {
    vectorized(
        #[inline(always)]
        || {
            for (g, out) in g.iter_mut().zip(output) {
                *g = if *out > E::zero() { *g } else { E::zero() };
            }
        },
    );
}

/// Sums over the rows that the backward pass needs.
#[derive(Clone, Debug)]
pub struct BackwardSums<E> {
    /// Sum of the output's gradient: the bias's gradient.
    pub g: Vec<E>,
    /// Sum of the output's gradient times the normalised input: the weight's gradient.
    pub g_normalised: Vec<E>,
}

/// The sums of `g` [rows, channels] and of g times the normalised `x`, per channel, over the parts of the batch as for the
/// moments. With a ReLU after the normalisation, g is the gradient of that ReLU's input: zero where the output is not positive.
/// With [`Relu::Output`], `g` is overwritten with it; with [`Relu::Of`], it is recomputed wherever g is read.
pub fn backward_sums<E: Real>(x: &[E], moments: &Moments<E>, g: &mut [E], relu: Relu<E>) -> BackwardSums<E> {
    backward_sums_with(x, moments, g, relu, |own, _| own)
}

/// The same sums for a batch whose rows are spread over several processes: `join` is that of [`TileMoments::combine_with`].
pub fn backward_sums_with<E: Real>(
    x: &[E],
    moments: &Moments<E>,
    g: &mut [E],
    relu: Relu<E>,
    join: impl FnOnce(Vec<f64>, AddBranch) -> Vec<f64>,
) -> BackwardSums<E> {
    let channels = moments.mean.len();
    let tiles = Tiles::new(x.len() / channels, moments.parts, chunk_rows(channels));
    let mean = &moments.mean[..channels];
    let tile_sums: Vec<Vec<E>> = tiles
        .each(x, channels)
        .into_par_iter()
        .zip(tiles.each_mut(g, channels))
        .enumerate()
        .map(|(tile, (x, g))| {
            if let Relu::Output(output) = relu {
                // The tile stays in the cache until it is summed.
                relu_backward(&output[tiles.rows(tile).start * channels..][..g.len()], g);
            }
            let mut sums = vec![E::zero(); 2 * channels];
            match relu {
                Relu::Of(affine) => add_up(x, g, affine, mean, &mut sums),
                Relu::None | Relu::Output(_) => add_up(x, g, Open, mean, &mut sums),
            }
            sums
        })
        .collect();
    let of_part = |part: usize| {
        let mut totals = vec![0.0f64; 2 * channels];
        for sums in &tile_sums[part * tiles.per_part()..][..tiles.per_part()] {
            totals.iter_mut().zip(sums).for_each(|(total, value)| *total += value.as_f64());
        }
        totals
    };
    let add = |mut left: Vec<f64>, right: Vec<f64>| {
        left.iter_mut().zip(right).for_each(|(l, r)| *l += r);
        left
    };
    let totals = join(tree(tiles.parts, of_part, add), add);
    let g = totals[..channels].iter().map(|t| E::of(*t)).collect();
    let product = totals[channels..].iter().zip(&moments.inv_std);
    BackwardSums { g, g_normalised: product.map(|(t, s)| E::of(*t * s.as_f64())).collect() }
}

/// Per column, the sum of the gated g and the sum of the gated g times (x - mean), one after the other in `sums`.
fn add_up<E: Real, G: Gate<E>>(x: &[E], g: &[E], gate: G, mean: &[E], sums: &mut [E]) {
    let (channels, rows) = (mean.len(), x.len() / mean.len());
    let (sum, product) = sums.split_at_mut(channels);
    dispatch(channels, ColumnSums { terms: BackwardTerms { x, g, gate, mean }, rows, sums: [sum, product] });
}

struct BackwardTerms<'a, E, G> {
    x: &'a [E],
    g: &'a [E],
    gate: G,
    mean: &'a [E],
}

impl<E: Real, G: Gate<E>> ColumnTerms<E, 2> for BackwardTerms<'_, E, G> {
    #[inline(always)]
    fn terms<S: Simd>(&self, simd: S, i: usize, column: usize) -> [Vector<E, S>; 2] {
        let x = at(simd, self.x, i);
        let g = self.gate.pass(simd, x, at(simd, self.g, i), column);
        [g, g * (x - at(simd, self.mean, column))]
    }
}

/// Overwrites the input `x` with its gradient in training mode, from `sums` and the `g` that [`backward_sums`] left.
pub fn backward_input<E: Real>(
    x: &mut [E],
    moments: &Moments<E>,
    weight: Option<&[E]>,
    sums: &BackwardSums<E>,
    g: &[E],
    relu: Relu<E>,
) {
    let channels = moments.mean.len();
    let rows = E::of(moments.rows as f64);
    // The gradient is w inv_std (g - mean(g) - xhat mean(g xhat)) = a g + b x + d per channel.
    let mut a = vec![E::zero(); channels];
    let mut b = vec![E::zero(); channels];
    let mut d = vec![E::zero(); channels];
    for c in 0..channels {
        let (mean, inv_std) = (moments.mean[c], moments.inv_std[c]);
        let factor = weight.map_or(E::one(), |w| w[c]) * inv_std;
        let slope = sums.g_normalised[c] / rows * inv_std;
        a[c] = factor;
        b[c] = E::zero() - factor * slope;
        d[c] = factor * (slope * mean - sums.g[c] / rows);
    }
    let relu_of = if let Relu::Of(affine) = relu { Some(affine) } else { None };
    let chunk = chunk_rows(channels) * channels;
    x.par_chunks_mut(chunk).zip(g.par_chunks(chunk)).for_each(|(x, g)| combine(x, g, relu_of, [&a, &b, &d]));
}

//! Batch normalisation over rows of channels [rows, channels], as kernels on slices and as a dfdx operation.
//!
//! In training, y = (x - mean) / sqrt(var + eps) * weight + bias with the batch's biased variance; running statistics
//! move by 0.1 towards the batch's mean and unbiased variance (torch's convention).

#[cfg(any(test, feature = "cuda"))]
pub mod cuda;
mod elementwise;
mod moments;
mod op;
#[cfg(test)]
mod tests;

pub use moments::{Moments, TileMoments};
pub use op::{BatchNormKernel, Running, batch_norm};
#[cfg(feature = "cuda")]
pub use op::{Normalised, WeightBias};

pub(crate) use elementwise::normalise;

use elementwise::{combine, mask};
use pulp::{Arch, Simd};
use rayon::prelude::*;

use super::{
    Real,
    columns::{ColumnSums, ColumnTerms, WHOLE_VECTORS},
    lanes::Vector,
    simd::vectorized,
};

/// Added to the variance.
pub const EPS: f64 = 1e-5;
/// Share of the batch in the running statistics.
pub const MOMENTUM: f64 = 0.1;
/// Rows per task of the element-wise passes, at most; fixed, since sums are taken per task.
pub(crate) const CHUNK_ROWS: usize = 512;

/// The affine map x * scale + shift per channel that a normalisation comes down to.
#[derive(Clone, Debug)]
pub struct Affine<E> {
    pub scale: Vec<E>,
    pub shift: Vec<E>,
}

impl<E: Real> Affine<E> {
    /// Normalisation by `mean` and `inv_std`, then by `weight` and `bias` where there are any.
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

/// What is added to a normalised tensor before its ReLU.
#[derive(Clone, Copy)]
pub enum Residual<'a, E> {
    None,
    /// A tensor as it is.
    Plain(&'a [E]),
    /// A tensor that is itself still to be normalised (the shortcut's convolution).
    Normalised(&'a [E], &'a Affine<E>),
}

/// out = relu(x * scale + shift + residual), or without the ReLU.
pub fn apply<E: Real>(x: &[E], affine: &Affine<E>, residual: Residual<E>, relu: bool, out: &mut [E]) {
    let chunk = CHUNK_ROWS * affine.scale.len();
    out.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).enumerate().for_each(|(i, (out, x))| {
        let part = i * chunk..i * chunk + out.len();
        let residual = match residual {
            Residual::None => Residual::None,
            Residual::Plain(r) => Residual::Plain(&r[part]),
            Residual::Normalised(r, affine) => Residual::Normalised(&r[part], affine),
        };
        normalise(x, affine, residual, relu, out);
    });
}

/// The ReLU behind a normalisation, as its backward pass knows it.
#[derive(Clone, Copy)]
pub enum Relu<'a, E> {
    /// There is none.
    None,
    /// By its output.
    Output(&'a [E]),
    /// By the normalisation of the same input, whose sign is that of the output.
    Of(&'a Affine<E>),
}

/// Sets the gradient of a ReLU's input from that of its output: g = 0 where the output is not positive.
fn relu_backward<E: Real>(output: &[E], g: &mut [E]) {
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

/// The sums of `g` [rows, channels] and of g times the normalised `x`, per channel. With a ReLU behind the normalisation,
/// `g` first becomes the gradient of that ReLU's input: zero where the output is not positive.
pub fn backward_sums<E: Real>(x: &[E], moments: &Moments<E>, g: &mut [E], relu: Relu<E>) -> BackwardSums<E> {
    let channels = moments.mean.len();
    let chunk = CHUNK_ROWS * channels;
    let mean = &moments.mean[..channels];
    let parts: Vec<Vec<E>> = x
        .par_chunks(chunk)
        .zip(g.par_chunks_mut(chunk))
        .enumerate()
        .map(|(i, (x, g))| {
            // A chunk stays in the cache between these passes.
            match relu {
                Relu::None => {}
                Relu::Output(output) => relu_backward(&output[i * chunk..][..g.len()], g),
                Relu::Of(affine) => mask(x, affine, g),
            }
            let mut sums = vec![E::zero(); 2 * channels];
            let (sum, product) = sums.split_at_mut(channels);
            if channels.is_multiple_of(WHOLE_VECTORS) {
                let (rows, terms) = (x.len() / channels, BackwardTerms { x, g, mean });
                Arch::new().dispatch(ColumnSums { terms, rows, sums: [sum, product] });
                return sums;
            }
            for (x, g) in x.chunks_exact(channels).zip(g.chunks_exact(channels)) {
                for c in 0..channels {
                    sum[c] += g[c];
                    product[c] += g[c] * (x[c] - mean[c]);
                }
            }
            sums
        })
        .collect();
    let mut totals = vec![0.0f64; 2 * channels];
    for part in &parts {
        for (total, value) in totals.iter_mut().zip(part) {
            *total += value.as_f64();
        }
    }
    let g = totals[..channels].iter().map(|t| E::of(*t)).collect();
    let product = totals[channels..].iter().zip(&moments.inv_std);
    BackwardSums { g, g_normalised: product.map(|(t, s)| E::of(*t * s.as_f64())).collect() }
}

/// g and g (x - mean)
struct BackwardTerms<'a, E> {
    x: &'a [E],
    g: &'a [E],
    mean: &'a [E],
}

impl<E: Real> ColumnTerms<E, 2> for BackwardTerms<'_, E> {
    #[inline(always)]
    fn terms<S: Simd>(&self, simd: S, at: usize, column: usize) -> [Vector<E, S>; 2] {
        let g = Vector::<E, S>::new(simd, E::vectors::<S>(self.g)[at]);
        let x = Vector::<E, S>::new(simd, E::vectors::<S>(self.x)[at]);
        [g, g * (x - Vector::new(simd, E::vectors::<S>(self.mean)[column]))]
    }
}

/// Turns the input `x` into its gradient, from the output's `g`, in training mode.
pub fn backward_input<E: Real>(
    x: &mut [E],
    moments: &Moments<E>,
    weight: Option<&[E]>,
    sums: &BackwardSums<E>,
    g: &[E],
) {
    let channels = moments.mean.len();
    let rows = E::of((x.len() / channels) as f64);
    // The gradient is w inv_std (g - mean(g) - xhat mean(g xhat)) = a g + b x + c per channel.
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
    let chunk = CHUNK_ROWS * channels;
    x.par_chunks_mut(chunk).zip(g.par_chunks(chunk)).for_each(|(x, g)| {
        combine(x, g, [&a, &b, &d]);
    });
}

//! Layer norm: each row x of [rows, dim] becomes (x - mean) / sqrt(var + eps) * weight + bias (torch's `nn.LayerNorm`).

#[cfg(any(test, feature = "cuda"))]
pub mod cuda;

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Real,
    columns::{SUM_ROWS, sum},
    parts::{add, leaf_rows, leaves, par_tree},
    simd::vectorized,
};

/// Term added to the variance: that of timm's vision transformers.
pub const EPS: f64 = 1e-6;

/// Mean and 1 / sqrt(var + eps) of each row.
pub type Statistics<E> = Vec<[E; 2]>;

/// Weight and bias [dim].
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, E> {
    pub weight: &'a [E],
    pub bias: &'a [E],
}

/// Statistics of each row of x.
pub fn statistics<E: Real>(x: &[E], dim: usize) -> Statistics<E> {
    let (inverse, eps) = (E::of(1.0 / dim as f64), E::of(EPS));
    let of_row = |x: &[E]| {
        vectorized(
            #[inline(always)]
            || {
                let x = &x[..dim];
                let mean = sum(dim, |i| x[i]) * inverse;
                let var = sum(dim, |i| (x[i] - mean) * (x[i] - mean)) * inverse;
                [mean, E::one() / (var + eps).sqrt()]
            },
        )
    };
    x.par_chunks(dim).with_min_len(SUM_ROWS / 4).map(of_row).collect()
}

/// y = the normalised rows of x, whose statistics are given.
pub fn apply<E: Real>(x: &[E], statistics: &Statistics<E>, affine: Affine<E>, y: &mut [E]) {
    let dim = affine.weight.len();
    let rows = y.par_chunks_mut(dim).zip(x.par_chunks(dim)).zip(statistics).with_min_len(SUM_ROWS / 4);
    rows.for_each(|((y, x), [mean, inv_std])| {
        vectorized(
            #[inline(always)]
            || {
                let (x, y) = (&x[..dim], &mut y[..dim]);
                let (weight, bias) = (&affine.weight[..dim], &affine.bias[..dim]);
                for c in 0..dim {
                    y[c] = (x[c] - *mean) * *inv_std * weight[c] + bias[c];
                }
            },
        );
    });
}

/// gx += the gradient of x, from that of y; adds to the gradients of weight and bias, which are summed over the rows of `parts`
/// parts of a batch.
pub fn backward<E: Real>(
    x: &[E],
    statistics: &Statistics<E>,
    weight: &[E],
    gy: &[E],
    gx: &mut [E],
    [g_weight, g_bias]: [&mut [E]; 2],
    parts: usize,
) {
    let dim = weight.len();
    let inverse = E::of(1.0 / dim as f64);
    let within = leaves(statistics.len() / parts, SUM_ROWS);
    let mut rest = gx;
    let leaves = (0..parts * within).map(|leaf| {
        let rows = leaf_rows(statistics.len(), parts, within, leaf);
        (rows.clone(), rest.split_off_mut(..rows.len() * dim).expect("a gradient for each row"))
    });
    let of_leaf = |(rows, gx): (Range<usize>, &mut [E])| {
        let mut sums = vec![E::zero(); 2 * dim];
        let (gy, x) = (&gy[rows.start * dim..rows.end * dim], &x[rows.start * dim..rows.end * dim]);
        let rows = gx.chunks_exact_mut(dim).zip(gy.chunks_exact(dim)).zip(x.chunks_exact(dim)).zip(&statistics[rows]);
        vectorized(
            #[inline(always)]
            || {
                let (g_weight, g_bias) = sums.split_at_mut(dim);
                let (g_bias, weight) = (&mut g_bias[..dim], &weight[..dim]);
                for (((gx, gy), x), [mean, inv_std]) in rows {
                    let (gx, gy, x) = (&mut gx[..dim], &gy[..dim], &x[..dim]);
                    let normalised = |c: usize| (x[c] - *mean) * *inv_std;
                    // gx = inv_std (g - mean(g) - x^ mean(g x^)), with g = gy weight and x^ the normalised row
                    let g_mean = sum(dim, |c| gy[c] * weight[c]) * inverse;
                    let along = sum(dim, |c| gy[c] * weight[c] * normalised(c)) * inverse;
                    for c in 0..dim {
                        let n = normalised(c);
                        gx[c] += *inv_std * (gy[c] * weight[c] - g_mean - n * along);
                        g_weight[c] += gy[c] * n;
                        g_bias[c] += gy[c];
                    }
                }
            },
        );
        sums
    };
    let sums = par_tree(leaves.collect(), &of_leaf, &|mut left: Vec<E>, right| {
        add(&mut left, &right);
        left
    });
    add(g_weight, &sums[..dim]);
    add(g_bias, &sums[dim..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: usize = 20;
    const ROWS: usize = SUM_ROWS + 5;

    fn ramp(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * step).sin() * 2.0 + 0.3).collect()
    }

    fn forward(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let mut y = vec![f64::NAN; x.len()];
        apply(x, &statistics(x, weight.len()), Affine { weight, bias }, &mut y);
        y
    }

    #[test]
    fn rows_have_the_affines_mean_and_spread() {
        let x = ramp(3 * DIM, 0.7);
        for row in forward(&x, &[2.0; DIM], &[5.0; DIM]).chunks_exact(DIM) {
            let mean = row.iter().sum::<f64>() / DIM as f64;
            let var = row.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / DIM as f64;
            assert!((mean - 5.0).abs() < 1e-12 && (var - 4.0).abs() < 1e-4, "{mean} {var}");
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (x, weight, bias) = (ramp(ROWS * DIM, 0.7), ramp(DIM, 1.3), ramp(DIM, 0.2));
        let cot = ramp(ROWS * DIM, 0.37);
        let loss = |x: &[f64], weight: &[f64], bias: &[f64]| -> f64 {
            forward(x, weight, bias).iter().zip(&cot).map(|(y, c)| y * c).sum()
        };
        let (mut gx, mut gw, mut gb) = (vec![0.0; x.len()], vec![0.0; DIM], vec![0.0; DIM]);
        backward(&x, &statistics(&x, DIM), &weight, &cot, &mut gx, [&mut gw, &mut gb], 1);
        let inputs = [x, weight, bias];
        for (which, gradient) in [gx, gw, gb].iter().enumerate() {
            let direction = ramp(gradient.len(), 0.9);
            let at = |step: f64| {
                let mut moved = inputs.clone();
                moved[which].iter_mut().zip(&direction).for_each(|(v, d)| *v += step * d);
                loss(&moved[0], &moved[1], &moved[2])
            };
            let difference = (at(1e-5) - at(-1e-5)) / 2e-5;
            let along: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            // The loss is a sum of thousands of terms: its rounding alone moves the difference by 1e-7.
            assert!((along - difference).abs() < 2e-6 * difference.abs().max(1.0), "{which}: {along} {difference}");
        }
    }
}

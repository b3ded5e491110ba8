//! Layer norm: each row x of [rows, dim] becomes (x - mean) / sqrt(var + eps) * weight + bias (torch's `nn.LayerNorm`).

pub mod cuda;

use super::{Real, reductions::sum, simd::vectorized};

/// Term added to the variance, as in timm's vision transformers.
pub const EPS: f64 = 1e-6;

/// Weight and bias [dim].
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, E> {
    pub weight: &'a [E],
    pub bias: &'a [E],
}

/// Mean and 1 / sqrt(var + eps) of a row. To be called within [`vectorized`].
#[inline(always)]
fn statistics<E: Real>(x: &[E]) -> [E; 2] {
    let inverse = E::of(1.0 / x.len() as f64);
    let mean = sum(x.len(), |i| x[i]) * inverse;
    let var = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) * inverse;
    [mean, E::one() / (var + E::of(EPS)).sqrt()]
}

/// y = the normalised rows of x, on this thread.
pub fn forward<E: Real>(x: &[E], affine: Affine<E>, y: &mut [E]) {
    let dim = affine.weight.len();
    vectorized(
        #[inline(always)]
        || {
            let (weight, bias) = (&affine.weight[..dim], &affine.bias[..dim]);
            for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
                let (x, y) = (&x[..dim], &mut y[..dim]);
                let [mean, inv_std] = statistics(x);
                for c in 0..dim {
                    y[c] = (x[c] - mean) * inv_std * weight[c] + bias[c];
                }
            }
        },
    );
}

/// gx += the gradient of x, from that of y; writes the gradients of weight and bias, summed over the rows in order. On this
/// thread.
pub fn backward<E: Real>(x: &[E], weight: &[E], gy: &[E], gx: &mut [E], [g_weight, g_bias]: [&mut [E]; 2]) {
    let dim = weight.len();
    let inverse = E::of(1.0 / dim as f64);
    g_weight.fill(E::zero());
    g_bias.fill(E::zero());
    vectorized(
        #[inline(always)]
        || {
            let (g_weight, g_bias, weight) = (&mut g_weight[..dim], &mut g_bias[..dim], &weight[..dim]);
            for ((gx, gy), x) in gx.chunks_exact_mut(dim).zip(gy.chunks_exact(dim)).zip(x.chunks_exact(dim)) {
                let (gx, gy, x) = (&mut gx[..dim], &gy[..dim], &x[..dim]);
                let [mean, inv_std] = statistics(x);
                let normalised = |c: usize| (x[c] - mean) * inv_std;
                // gx = inv_std (g - mean(g) - x^ mean(g x^)), with g = gy weight and x^ the normalised row
                let g_mean = sum(dim, |c| gy[c] * weight[c]) * inverse;
                let along = sum(dim, |c| gy[c] * weight[c] * normalised(c)) * inverse;
                for c in 0..dim {
                    let n = normalised(c);
                    gx[c] += inv_std * (gy[c] * weight[c] - g_mean - n * along);
                    g_weight[c] += gy[c] * n;
                    g_bias[c] += gy[c];
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: usize = 20;
    const ROWS: usize = 261;

    fn ramp(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * step).sin() * 2.0 + 0.3).collect()
    }

    fn run(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let mut y = vec![f64::NAN; x.len()];
        forward(x, Affine { weight, bias }, &mut y);
        y
    }

    #[test]
    fn rows_have_the_affines_mean_and_spread() {
        let x = ramp(3 * DIM, 0.7);
        for row in run(&x, &[2.0; DIM], &[5.0; DIM]).chunks_exact(DIM) {
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
            run(x, weight, bias).iter().zip(&cot).map(|(y, c)| y * c).sum()
        };
        let (mut gx, mut gw, mut gb) = (vec![0.0; x.len()], vec![0.0; DIM], vec![0.0; DIM]);
        backward(&x, &weight, &cot, &mut gx, [&mut gw, &mut gb]);
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

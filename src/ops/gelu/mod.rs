//! Gaussian error linear unit in its exact form, y = x Phi(x), and its gradient (torch's `nn.GELU()`).

pub mod cuda;

use super::{Real, simd::vectorized};

/// y = x Phi(x), element by element; Phi is the standard normal distribution function.
pub fn gelu<E: Real>(x: &[E], y: &mut [E]) {
    let (half, root) = (E::of(0.5), E::of(std::f64::consts::FRAC_1_SQRT_2));
    vectorized(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y = *x * (half * (E::one() + (*x * root).erf_inline()));
            }
        },
    );
}

/// Turns g from the output's gradient into the input's: g (Phi(x) + x phi(x)), where phi is the normal density. Also computes y
/// again.
pub fn gelu_backward<E: Real>(x: &[E], g: &mut [E], y: &mut [E]) {
    let (half, root) = (E::of(0.5), E::of(std::f64::consts::FRAC_1_SQRT_2));
    let density = E::of(1.0 / (2.0 * std::f64::consts::PI).sqrt());
    vectorized(
        #[inline(always)]
        || {
            for ((g, y), x) in g.iter_mut().zip(y).zip(x) {
                let below = half * (E::one() + (*x * root).erf_inline());
                *y = *x * below;
                *g *= below + *x * density * (-half * *x * *x).exp_inline();
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_normal_distribution() {
        // x Phi(x) from tables of the normal distribution.
        let mut y = [0.0f64; 4];
        gelu(&[0.0, 1.0, -1.0, 1.96], &mut y);
        let expected = [0.0, 0.8413447460685429, -0.15865525393145707, 1.910998];
        assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-5), "{y:?}");
    }

    #[test]
    fn single_precision_is_close_to_double() {
        let x: Vec<f32> = (-8000..8000).map(|i| i as f32 * 1e-3).collect();
        let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let (mut y, mut y_wide) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let (mut g, mut g_wide) = (vec![1.0f32; x.len()], vec![1.0f64; x.len()]);
        gelu(&x, &mut y);
        gelu(&wide, &mut y_wide);
        let (mut again, mut again_wide) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        gelu_backward(&x, &mut g, &mut again);
        gelu_backward(&wide, &mut g_wide, &mut again_wide);
        assert!(again == y && again_wide == y_wide);
        for i in 0..x.len() {
            let scale = wide[i].abs().max(1.0);
            assert!((f64::from(y[i]) - y_wide[i]).abs() < 2e-7 * scale, "{}", x[i]);
            assert!((f64::from(g[i]) - g_wide[i]).abs() < 2e-7 * scale, "{}", x[i]);
        }
    }

    #[test]
    fn the_gradient_is_the_difference_quotient() {
        let x: Vec<f64> = (-50..50).map(|i| f64::from(i) * 0.1).collect();
        let mut g = vec![1.0; x.len()];
        gelu_backward(&x, &mut g, &mut vec![0.0; x.len()]);
        let at = |step: f64| {
            let mut y = vec![0.0; x.len()];
            gelu(&x.iter().map(|x| x + step).collect::<Vec<_>>(), &mut y);
            y
        };
        let (above, below) = (at(1e-6), at(-1e-6));
        for i in 0..x.len() {
            assert!(((above[i] - below[i]) / 2e-6 - g[i]).abs() < 1e-9);
        }
    }
}

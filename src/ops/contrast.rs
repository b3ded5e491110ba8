//! Contrastive logits as dfdx operations: the log of a row's sum of exp, and the columns that are a row's own.
//!
//! The matrix of logits is the largest that a loss touches: each operation passes over it once, on all threads.

use dfdx::prelude::*;
use rayon::prelude::*;

use super::{
    Real,
    columns::sum,
    seam::{Buffer, Matrix, to_vec},
    simd::vectorized,
};

/// A value per row.
pub type PerRow<E, D, T = NoneTape> = Tensor<(usize,), E, D, T>;

/// The device's way of [`log_sum_exp`] and [`own_columns`]; composed of dfdx's operations where it has no other.
pub trait ContrastKernel<E: Dtype>: Device<E> {
    fn log_sum_exp<T: Tape<E, Self>>(s: Matrix<E, Self, T>, tau: E) -> Result<PerRow<E, Self, T>, Self::Err> {
        s.try_div(tau)?.try_logsumexp::<(usize,), Axis<1>>()
    }

    fn own_columns<T: Tape<E, Self>>(
        s: Matrix<E, Self, T>,
        own: usize,
        tau: E,
    ) -> Result<Matrix<E, Self, T>, Self::Err> {
        let n = s.shape().0;
        let columns: Tensor<(usize, usize), usize, Self> =
            s.device().try_tensor_from_vec((0..n * own).collect(), (n, own))?;
        s.try_div(tau)?.try_gather(columns)
    }
}

/// ln sum_j exp(s_j / tau) of each row of s [n, m].
///
/// # Errors
/// The device's, when memory runs out.
pub fn log_sum_exp<E: Real, D: ContrastKernel<E>, T: Tape<E, D>>(
    s: Matrix<E, D, T>,
    tau: f64,
) -> Result<PerRow<E, D, T>, D::Err> {
    D::log_sum_exp(s, E::of(tau))
}

/// Row i's columns i own .. (i + 1) own of s [n, n own], over tau: [n, own].
///
/// # Errors
/// The device's, when memory runs out.
pub fn own_columns<E: Real, D: ContrastKernel<E>, T: Tape<E, D>>(
    s: Matrix<E, D, T>,
    own: usize,
    tau: f64,
) -> Result<Matrix<E, D, T>, D::Err> {
    D::own_columns(s, own, E::of(tau))
}

impl<E: Real> ContrastKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn log_sum_exp<T: Tape<E, Self>>(s: Matrix<E, Self, T>, tau: E) -> Result<PerRow<E, Self, T>, CpuError> {
        let (s, mut tape) = s.split_tape();
        let (n, m) = *s.shape();
        let scale = E::one() / tau;
        let mut y = vec![E::zero(); n];
        y.par_iter_mut().zip(to_vec(&s).par_chunks_exact(m)).for_each(|(y, s)| {
            vectorized(
                #[inline(always)]
                || {
                    let largest = s.iter().fold(E::neg_infinity(), |a, b| if *b > a { *b } else { a });
                    let total = sum(m, |j| ((s[j] - largest) * scale).exp_inline());
                    *y = largest * scale + total.ln();
                },
            );
        });
        let y = s.device().try_tensor_from_vec(y, (n,))?;
        let kept = y.clone();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&kept)?.clone();
            let (values, y) = (to_vec(&s), to_vec(&kept));
            let gs = gradients.get_or_alloc_mut(&s)?;
            let rows = gs.par_chunks_exact_mut(m).zip(values.par_chunks_exact(m)).zip(y.par_iter().zip(gy.par_iter()));
            rows.for_each(|((gs, s), (y, gy))| {
                let factor = *gy * scale;
                vectorized(
                    #[inline(always)]
                    || {
                        for (gs, s) in gs.iter_mut().zip(s) {
                            *gs += factor * (*s * scale - *y).exp_inline();
                        }
                    },
                );
            });
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn own_columns<T: Tape<E, Self>>(
        s: Matrix<E, Self, T>,
        own: usize,
        tau: E,
    ) -> Result<Matrix<E, Self, T>, CpuError> {
        let (s, mut tape) = s.split_tape();
        let (n, m) = *s.shape();
        let values = to_vec(&s);
        let y = (0..n).flat_map(|i| &values[i * (m + own)..][..own]).map(|s| *s / tau).collect();
        let y = s.device().try_tensor_from_vec(y, (n, own))?;
        let y_ghost = y.ghost();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
            let gs = gradients.get_or_alloc_mut(&s)?;
            for (i, gy) in gy.chunks_exact(own).enumerate() {
                for (gs, gy) in gs[i * (m + own)..].iter_mut().zip(gy) {
                    *gs += *gy / tau;
                }
            }
            Ok(())
        });
        Ok(y.put_tape(tape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both operations made of dfdx's, and the loss that follows from a cotangent of each.
    #[test]
    fn agree_with_compositions_of_dfdx() {
        let device = Cpu::default();
        let (n, own, tau) = (5, 3, 0.2);
        let values = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin()).collect::<Vec<_>>();
        let s: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * n * own, 0.7), (n, n * own));
        let cot: PerRow<f64, Cpu> = device.tensor_from_vec(values(n, 0.3), (n,));
        let own_cot: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * own, 1.3), (n, own));

        let fused = log_sum_exp(s.leaky_trace(), tau).unwrap();
        let fused_own = own_columns(s.leaky_trace(), own, tau).unwrap();
        let columns = device.tensor_from_vec((0..n * own).collect(), (n, own));
        let composed = (s.leaky_trace() / tau).logsumexp::<(usize,), Axis<1>>();
        let composed_own: Matrix<f64, Cpu, _> = (s.leaky_trace() / tau).gather(columns);
        let close = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(fused.as_vec(), composed.as_vec()) && close(fused_own.as_vec(), composed_own.as_vec()));

        let gradient = |all: PerRow<f64, Cpu, OwnedTape<f64, Cpu>>, own: Matrix<f64, Cpu, OwnedTape<f64, Cpu>>| {
            let loss = (all * cot.clone()).sum::<Rank0, _>() + (own * own_cot.clone()).sum::<Rank0, _>();
            loss.backward().get(&s).as_vec()
        };
        assert!(close(gradient(fused, fused_own), gradient(composed, composed_own)));
    }
}

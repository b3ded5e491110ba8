//! Softmax over the rows of a matrix, as dfdx operations: its logarithm, and the cross-entropy of it with a distribution.
//!
//! dfdx's own take exp and ln from the C library, whose bits depend on the CPU.

use dfdx::prelude::*;
use rayon::prelude::*;

use super::{
    Real,
    columns::sum,
    contrast::PerRow,
    simd::vectorized,
    tensor::{Buffer, Matrix, with_elements},
};

/// The device's way of [`log_softmax`], [`cross_entropy`] and [`exp`]; composed of dfdx's operations where it has no other.
pub trait SoftmaxKernel<E: Dtype>: Device<E> {
    #[allow(clippy::disallowed_methods, reason = "other devices do not use the C library")]
    fn log_softmax<T: Tape<E, Self>>(s: Matrix<E, Self, T>, tau: E) -> Result<Matrix<E, Self, T>, Self::Err> {
        s.try_div(tau)?.try_log_softmax::<Axis<1>>()
    }

    fn cross_entropy<T: Tape<E, Self>>(
        s: Matrix<E, Self, T>,
        q: Matrix<E, Self>,
        tau: E,
    ) -> Result<PerRow<E, Self, T>, Self::Err> {
        Self::log_softmax(s, tau)?.try_mul(q)?.try_sum::<(usize,), Axis<1>>()?.try_negate()
    }

    #[allow(clippy::disallowed_methods, reason = "other devices do not use the C library")]
    fn exp<T: Tape<E, Self>>(x: Matrix<E, Self, T>) -> Result<Matrix<E, Self, T>, Self::Err> {
        x.try_exp()
    }
}

/// log softmax of each row of s / tau.
///
/// # Errors
/// The device's, when memory runs out.
pub fn log_softmax<E: Real, D: SoftmaxKernel<E>, T: Tape<E, D>>(
    s: Matrix<E, D, T>,
    tau: f64,
) -> Result<Matrix<E, D, T>, D::Err> {
    D::log_softmax(s, E::of(tau))
}

/// -sum_j q_j log softmax(s / tau)_j of each row; no gradient flows to q.
///
/// # Errors
/// The device's, when memory runs out.
pub fn cross_entropy<E: Real, D: SoftmaxKernel<E>, T: Tape<E, D>>(
    s: Matrix<E, D, T>,
    q: Matrix<E, D>,
    tau: f64,
) -> Result<PerRow<E, D, T>, D::Err> {
    D::cross_entropy(s, q, E::of(tau))
}

/// e^x of each element.
///
/// # Errors
/// The device's, when memory runs out.
pub fn exp<E: Dtype, D: SoftmaxKernel<E>, T: Tape<E, D>>(x: Matrix<E, D, T>) -> Result<Matrix<E, D, T>, D::Err> {
    D::exp(x)
}

/// What the softmax of a row takes from all of it: its largest element, and the log of the sum of exp of the others' distances
/// to that one, times `scale`. To be called within [`vectorized`].
#[inline(always)]
pub fn largest_and_rest<E: Real>(row: &[E], scale: E) -> (E, E) {
    let largest = row.iter().fold(E::neg_infinity(), |a, b| if *b > a { *b } else { a });
    let total = sum(row.len(), |j| ((row[j] - largest) * scale).exp_inline());
    (largest, total.ln_inline())
}

impl<E: Real> SoftmaxKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn log_softmax<T: Tape<E, Self>>(s: Matrix<E, Self, T>, tau: E) -> Result<Matrix<E, Self, T>, CpuError> {
        let (s, mut tape) = s.split_tape();
        let (shape, scale) = (*s.shape(), E::one() / tau);
        let columns = shape.1;
        let mut y = vec![E::zero(); shape.0 * columns];
        with_elements(&s, |s| {
            y.par_chunks_exact_mut(columns).zip(s.par_chunks_exact(columns)).for_each(|(y, s)| {
                vectorized(
                    #[inline(always)]
                    || {
                        let (largest, rest) = largest_and_rest(s, scale);
                        y.iter_mut().zip(s).for_each(|(y, s)| *y = (*s - largest) * scale - rest);
                    },
                );
            });
        });
        let y = s.device().try_tensor_from_vec(y, shape)?;
        let kept = y.clone();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&kept)?.clone();
            let gs = gradients.get_or_alloc_mut(&s)?;
            with_elements(&kept, |y| {
                let rows = gs.par_chunks_exact_mut(columns).zip(y.par_chunks_exact(columns));
                rows.zip(gy.par_chunks_exact(columns)).for_each(|((gs, y), gy)| {
                    vectorized(
                        #[inline(always)]
                        || {
                            let total = sum(columns, |j| gy[j]);
                            for ((gs, y), gy) in gs.iter_mut().zip(y).zip(gy) {
                                *gs += (*gy - y.exp_inline() * total) * scale;
                            }
                        },
                    );
                });
            });
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn cross_entropy<T: Tape<E, Self>>(
        s: Matrix<E, Self, T>,
        q: Matrix<E, Self>,
        tau: E,
    ) -> Result<PerRow<E, Self, T>, CpuError> {
        let (s, mut tape) = s.split_tape();
        let ((n, columns), scale) = (*s.shape(), E::one() / tau);
        assert_eq!(s.shape(), q.shape());
        // Of each row its cross-entropy, and what the backward pass needs again.
        let mut y = vec![E::zero(); n];
        let mut kept = vec![[E::zero(); 3]; n];
        with_elements(&s, |s| {
            with_elements(&q, |q| {
                let rows = s.par_chunks_exact(columns).zip(q.par_chunks_exact(columns));
                y.par_iter_mut().zip(&mut kept).zip(rows).for_each(|((y, kept), (s, q))| {
                    vectorized(
                        #[inline(always)]
                        || {
                            let (largest, rest) = largest_and_rest(s, scale);
                            *y = -sum(columns, |j| q[j] * ((s[j] - largest) * scale - rest));
                            *kept = [largest, rest, sum(columns, |j| q[j])];
                        },
                    );
                });
            });
        });
        let y = s.device().try_tensor_from_vec(y, (n,))?;
        let y_ghost = y.ghost();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
            let gs = gradients.get_or_alloc_mut(&s)?;
            with_elements(&s, |s| {
                with_elements(&q, |q| {
                    let rows = s.par_chunks_exact(columns).zip(q.par_chunks_exact(columns));
                    let of_rows = kept.par_iter().zip(gy.par_iter());
                    gs.par_chunks_exact_mut(columns).zip(rows).zip(of_rows).for_each(|((gs, (s, q)), (kept, gy))| {
                        let ([largest, rest, total], factor) = (*kept, *gy * scale);
                        vectorized(
                            #[inline(always)]
                            || {
                                for ((gs, s), q) in gs.iter_mut().zip(s).zip(q) {
                                    let p = ((*s - largest) * scale - rest).exp_inline();
                                    *gs += factor * (p * total - *q);
                                }
                            },
                        );
                    });
                });
            });
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn exp<T: Tape<E, Self>>(x: Matrix<E, Self, T>) -> Result<Matrix<E, Self, T>, CpuError> {
        let (x, mut tape) = x.split_tape();
        let y = with_elements(&x, |x| {
            vectorized(
                #[inline(always)]
                || x.iter().map(|x| x.exp_inline()).collect::<Vec<_>>(),
            )
        });
        let y = x.device().try_tensor_from_vec(y, *x.shape())?;
        let kept = y.clone();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&kept)?.clone();
            let gx = gradients.get_or_alloc_mut(&x)?;
            with_elements(&kept, |y| gx.iter_mut().zip(y).zip(&*gy).for_each(|((gx, y), gy)| *gx += *y * *gy));
            Ok(())
        });
        Ok(y.put_tape(tape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that has no other way than dfdx's operations.
    fn composed<T: Tape<f64, Cpu>>(s: Matrix<f64, Cpu, T>, tau: f64) -> Matrix<f64, Cpu, T> {
        (s / tau).log_softmax::<Axis<1>>()
    }

    fn matrix(n: usize, columns: usize, step: f64) -> Matrix<f64, Cpu> {
        let values = (0..n * columns).map(|i| (i as f64 * step).sin()).collect();
        Cpu::default().tensor_from_vec(values, (n, columns))
    }

    fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < tolerance)
    }

    fn single(x: &Matrix<f64, Cpu>) -> Matrix<f32, Cpu> {
        Cpu::default().tensor_from_vec(x.as_vec().into_iter().map(|x| x as f32).collect(), *x.shape())
    }

    fn double(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(*x)).collect()
    }

    #[test]
    fn agree_with_compositions_of_dfdx() {
        // Fewer and more columns than a sum has lanes.
        for (n, columns) in [(1, 1), (5, 4), (7, 37)] {
            let (s, q, cot) = (matrix(n, columns, 0.7), matrix(n, columns, 0.3), matrix(n, columns, 1.3));
            let tau = 0.2;
            let dots = |y: Matrix<f64, Cpu, OwnedTape<f64, Cpu>>| (y * cot.clone()).sum::<Rank0, _>();
            let entropies = |y: Matrix<f64, Cpu, OwnedTape<f64, Cpu>>| {
                -(y * q.clone()).sum::<(usize,), Axis<1>>() * cot.clone().sum::<(usize,), Axis<1>>()
            };

            let expected = composed(s.leaky_trace(), tau);
            let found = log_softmax(s.leaky_trace(), tau).unwrap();
            assert!(close(&found.as_vec(), &expected.as_vec(), 1e-12));
            let (found, expected) = (dots(found).backward().get(&s), dots(expected).backward().get(&s));
            assert!(close(&found.as_vec(), &expected.as_vec(), 1e-12));
            let in_f32 = single(&s);
            let y = log_softmax(in_f32.leaky_trace(), tau).unwrap();
            assert!(close(&double(&y.as_vec()), &composed(s.clone(), tau).as_vec(), 3e-6));
            let gradient = (y * single(&cot)).sum::<Rank0, _>().backward().get(&in_f32);
            assert!(close(&double(&gradient.as_vec()), &expected.as_vec(), 1e-4));

            let expected = entropies(composed(s.leaky_trace(), tau));
            let found =
                cross_entropy(s.leaky_trace(), q.clone(), tau).unwrap() * cot.clone().sum::<(usize,), Axis<1>>();
            assert!(close(&found.as_vec(), &expected.as_vec(), 1e-11));
            let (found, expected) = (found.sum().backward().get(&s), expected.sum().backward().get(&s));
            assert!(close(&found.as_vec(), &expected.as_vec(), 1e-11));

            let (found, expected) = (exp(s.leaky_trace()).unwrap(), s.leaky_trace().exp());
            assert!(close(&found.as_vec(), &expected.as_vec(), 1e-14));
            let (found, expected) = (dots(found).backward().get(&s), dots(expected).backward().get(&s));
            assert!(close(&found.as_vec(), &expected.as_vec(), 1e-14));
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let s: Matrix<f32, Cpu> = Cpu::default().tensor_from_vec(vec![900.0, 0.0, -900.0, 0.0], (2, 2));
        let y = log_softmax(s.leaky_trace(), 0.1).unwrap();
        assert_eq!(y.as_vec(), [0.0, -9000.0, -9000.0, 0.0]);
        assert!(y.sum::<Rank0, _>().backward().get(&s).as_vec().iter().all(|g| g.is_finite()));
    }
}

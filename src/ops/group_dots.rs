//! Dot products of each row with a group of rows of its own, as a dfdx operation.

use dfdx::prelude::*;
use rayon::prelude::*;

use super::{
    Real,
    columns::sum,
    simd::vectorized,
    tensor::{Buffer, Matrix, with_elements},
};

/// The device's way of [`group_dots`]; composed of dfdx's operations where it has no other.
pub trait GroupDotsKernel<E: Dtype>: Device<E> {
    fn group_dots<T: Tape<E, Self> + Merge<T>>(
        a: Matrix<E, Self, T>,
        b: Matrix<E, Self, T>,
    ) -> Result<Matrix<E, Self, T>, Self::Err> {
        let ((n, width), k) = (*a.shape(), b.shape().0 / a.shape().0);
        let b: Tensor<(usize, usize, usize), E, Self, T> = b.try_reshape_like(&(n, k, width))?;
        let a = a.try_broadcast_like::<_, Axis<1>>(&(n, k, width))?;
        a.try_mul(b)?.try_sum::<(usize, usize), Axis<2>>()
    }
}

/// y [n, k]: the dot products of row i of a [n, width] with the rows i k .. (i + 1) k of b [n k, width].
///
/// # Errors
/// The device's, when memory runs out.
pub fn group_dots<E: Dtype, D: GroupDotsKernel<E>, T: Tape<E, D> + Merge<T>>(
    a: Matrix<E, D, T>,
    b: Matrix<E, D, T>,
) -> Result<Matrix<E, D, T>, D::Err> {
    D::group_dots(a, b)
}

impl<E: Real> GroupDotsKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn group_dots<T: Tape<E, Self> + Merge<T>>(
        a: Matrix<E, Self, T>,
        b: Matrix<E, Self, T>,
    ) -> Result<Matrix<E, Self, T>, CpuError> {
        let (a, a_tape) = a.split_tape();
        let (b, b_tape) = b.split_tape();
        let mut tape = a_tape.merge(b_tape);
        let y = forward(&a, &b)?;
        let y_ghost = y.ghost();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
            let (width, ga) = (b.shape().1, gradients.get_or_alloc_mut(&a)?);
            with_elements(&b, |b| backward_a(b, width, ga, &gy));
            let gb = gradients.get_or_alloc_mut(&b)?;
            with_elements(&a, |a| backward_b(a, width, gb, &gy));
            Ok(())
        });
        Ok(y.put_tape(tape))
    }
}

fn forward<E: Real>(a: &Matrix<E, Cpu>, b: &Matrix<E, Cpu>) -> Result<Matrix<E, Cpu>, CpuError>
where
    Cpu: Device<E, Err = CpuError>,
{
    let ((n, width), k) = (*a.shape(), b.shape().0 / a.shape().0);
    let mut y = vec![E::zero(); n * k];
    with_elements(a, |a| {
        with_elements(b, |b| {
            let rows = y.par_chunks_exact_mut(k).zip(a.par_chunks_exact(width)).zip(b.par_chunks_exact(k * width));
            rows.for_each(|((y, a), b)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (y, b) in y.iter_mut().zip(b.chunks_exact(width)) {
                            *y = sum(width, |c| a[c] * b[c]);
                        }
                    },
                );
            });
        });
    });
    a.device().try_tensor_from_vec(y, (n, k))
}

/// Adds to the gradient of a.
fn backward_a<E: Real>(b: &[E], width: usize, ga: &mut [E], gy: &[E]) {
    let k = gy.len() / (ga.len() / width);
    let rows = ga.par_chunks_exact_mut(width).zip(gy.par_chunks_exact(k)).zip(b.par_chunks_exact(k * width));
    rows.for_each(|((ga, gy), b)| {
        vectorized(
            #[inline(always)]
            || {
                for (gy, b) in gy.iter().zip(b.chunks_exact(width)) {
                    for (ga, b) in ga.iter_mut().zip(b) {
                        *ga += *gy * *b;
                    }
                }
            },
        );
    });
}

/// Adds to the gradient of b.
fn backward_b<E: Real>(a: &[E], width: usize, gb: &mut [E], gy: &[E]) {
    let k = gy.len() / (a.len() / width);
    let rows = gb.par_chunks_exact_mut(k * width).zip(gy.par_chunks_exact(k)).zip(a.par_chunks_exact(width));
    rows.for_each(|((gb, gy), a)| {
        vectorized(
            #[inline(always)]
            || {
                for (gy, gb) in gy.iter().zip(gb.chunks_exact_mut(width)) {
                    for (gb, a) in gb.iter_mut().zip(a) {
                        *gb += *gy * *a;
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_composition_of_dfdx() {
        let device = Cpu::default();
        let (n, k, width) = (4, 3, 21);
        let values = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin()).collect::<Vec<_>>();
        let a: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * width, 0.7), (n, width));
        let b: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * k * width, 0.3), (n * k, width));
        let cot: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * k, 1.3), (n, k));
        let fused = group_dots(a.leaky_trace(), b.leaky_trace()).unwrap();
        let wide = a.leaky_trace().broadcast_like::<_, Axis<1>>(&(n, k, width));
        let composed = (wide * b.leaky_trace().reshape_like(&(n, k, width))).sum::<(usize, usize), Axis<2>>();
        let close = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(fused.as_vec(), composed.as_vec()));
        let gradients = |y: Matrix<f64, Cpu, OwnedTape<f64, Cpu>>| (y * cot.clone()).sum::<Rank0, _>().backward();
        let (fused, composed) = (gradients(fused), gradients(composed));
        assert!(close(fused.get(&a).as_vec(), composed.get(&a).as_vec()));
        assert!(close(fused.get(&b).as_vec(), composed.get(&b).as_vec()));
    }
}

//! What sums over the rows of a batch, as dfdx operations: the mean of a loss, and a bias, whose gradient is a sum.
//!
//! On the CPU these sums are the tree of [`parts`], however many threads there are.

use dfdx::prelude::*;

use super::{
    Real,
    columns::add_column_sums,
    contrast::PerRow,
    gemm::Threads,
    parts::{self, parts},
    tensor::{Buffer, Matrix, with_elements},
};

/// The device's way of [`batch_mean`] and [`add_bias`]; composed of dfdx's operations where it has no other.
pub trait BatchKernel<E: Dtype>: Device<E> {
    #[allow(clippy::disallowed_methods, reason = "other devices sum as they like")]
    fn batch_mean<T: Tape<E, Self>>(x: PerRow<E, Self, T>) -> Result<Tensor<Rank0, E, Self, T>, Self::Err> {
        x.try_mean::<Rank0, _>()
    }

    fn add_bias<T: Tape<E, Self> + Merge<T>>(
        x: Matrix<E, Self, T>,
        bias: PerRow<E, Self, T>,
    ) -> Result<Matrix<E, Self, T>, Self::Err> {
        let shape = *x.shape();
        x.try_add(bias.try_broadcast_like::<_, Axis<0>>(&shape)?)
    }
}

/// The mean of a value per image.
///
/// # Errors
/// The device's, when memory runs out.
pub fn batch_mean<E: Dtype, D: BatchKernel<E>, T: Tape<E, D>>(
    x: PerRow<E, D, T>,
) -> Result<Tensor<Rank0, E, D, T>, D::Err> {
    D::batch_mean(x)
}

/// Each row of x [n, columns], that of an image, plus the bias [columns].
///
/// # Errors
/// The device's, when memory runs out.
pub fn add_bias<E: Dtype, D: BatchKernel<E>, T: Tape<E, D> + Merge<T>>(
    x: Matrix<E, D, T>,
    bias: PerRow<E, D, T>,
) -> Result<Matrix<E, D, T>, D::Err> {
    D::add_bias(x, bias)
}

impl<E: Real> BatchKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn batch_mean<T: Tape<E, Self>>(x: PerRow<E, Self, T>) -> Result<Tensor<Rank0, E, Self, T>, CpuError> {
        let (x, mut tape) = x.split_tape();
        let n = x.shape().0;
        let share = E::of(n as f64);
        let mean = with_elements(&x, |x| parts::sum(x, parts(n)) / share);
        let y = x.device().try_tensor_from_vec(vec![mean], ())?;
        let y_ghost = y.ghost();
        tape.add_backward_op(move |gradients| {
            let gradient = gradients.get_or_alloc_mut(&y_ghost)?[0] / share;
            gradients.get_or_alloc_mut(&x)?.iter_mut().for_each(|gx| *gx += gradient);
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn add_bias<T: Tape<E, Self> + Merge<T>>(
        x: Matrix<E, Self, T>,
        bias: PerRow<E, Self, T>,
    ) -> Result<Matrix<E, Self, T>, CpuError> {
        let (x, x_tape) = x.split_tape();
        let (bias, bias_tape) = bias.split_tape();
        let mut tape = x_tape.merge(bias_tape);
        let (n, columns) = *x.shape();
        let y = with_elements(&x, |x| {
            with_elements(&bias, |bias| {
                x.chunks_exact(columns).flat_map(|row| row.iter().zip(bias).map(|(x, b)| *x + *b)).collect::<Vec<_>>()
            })
        });
        let y = x.device().try_tensor_from_vec(y, (n, columns))?;
        let y_ghost = y.ghost();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
            parts::add(gradients.get_or_alloc_mut(&x)?, &gy, Threads::All);
            add_column_sums(&gy, parts(n), gradients.get_or_alloc_mut(&bias)?);
            Ok(())
        });
        Ok(y.put_tape(tape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * step).sin()).collect()
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12)
    }

    #[test]
    fn agree_with_compositions_of_dfdx() {
        let device = Cpu::default();
        for n in [1, 6, 48] {
            let columns = 5;
            let x: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * columns, 0.7), (n, columns));
            let cot: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * columns, 1.3), (n, columns));
            let bias: PerRow<f64, Cpu> = device.tensor_from_vec(values(columns, 0.3), (columns,));
            let found = add_bias(x.leaky_trace(), bias.leaky_trace()).unwrap();
            let expected = x.leaky_trace() + bias.leaky_trace().broadcast_like::<_, Axis<0>>(&(n, columns));
            assert!(close(&found.as_vec(), &expected.as_vec()));
            let gradients = |y: Matrix<f64, Cpu, OwnedTape<f64, Cpu>>| {
                let gradients = (y * cot.clone()).sum::<Rank0, _>().backward();
                [gradients.get(&x).as_vec(), gradients.get(&bias).as_vec()]
            };
            let (found, expected) = (gradients(found), gradients(expected));
            assert!(close(&found[0], &expected[0]) && close(&found[1], &expected[1]));

            let x: PerRow<f64, Cpu> = device.tensor_from_vec(values(n, 0.9), (n,));
            let (found, expected) =
                (batch_mean(x.leaky_trace()).unwrap() * 3.0, x.leaky_trace().mean::<Rank0, _>() * 3.0);
            assert!(close(&[found.array()], &[expected.array()]));
            assert!(close(&found.backward().get(&x).as_vec(), &expected.backward().get(&x).as_vec()));
        }
    }

    #[test]
    fn halves_of_a_batch_sum_to_its_branches() {
        let device = Cpu::default();
        let rows: Vec<f32> = values(64 * 3, 0.7).into_iter().map(|x| (x * 1e3) as f32).collect();
        let sums = |rows: &[f32]| {
            let n = rows.len() / 3;
            let x: Matrix<f32, Cpu> = device.tensor_from_vec(vec![0.0; rows.len()], (n, 3));
            let bias: PerRow<f32, Cpu> = device.tensor_from_vec(vec![0.0; 3], (3,));
            let y = add_bias(x.leaky_trace(), bias.leaky_trace()).unwrap();
            let cot: Matrix<f32, Cpu> = device.tensor_from_vec(rows.to_vec(), (n, 3));
            // Of a power of two rows the mean is the sum, scaled exactly.
            let losses: PerRow<f32, Cpu> = device.tensor_from_vec(rows.iter().step_by(3).copied().collect(), (n,));
            let mut sums = (y * cot).sum::<Rank0, _>().backward().get(&bias).as_vec();
            sums.push(batch_mean(losses).unwrap().array() * n as f32);
            sums
        };
        let (whole, left, right) = (sums(&rows), sums(&rows[..96]), sums(&rows[96..]));
        for i in 0..4 {
            assert_eq!(whole[i].to_bits(), (left[i] + right[i]).to_bits());
        }
    }
}

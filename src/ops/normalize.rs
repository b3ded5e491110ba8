//! Rows of unit length: y = x / max(|x|, 1e-12).

pub mod cuda;

use dfdx::prelude::*;

use super::{
    Real,
    tensor::{Buffer, Matrix, to_vec},
};

/// Norms below it count as it (torch's `F.normalize`).
const EPS: f64 = 1e-12;

/// Scales each row of x [rows, dim] to unit length, in place.
pub fn normalize_rows<E: Real>(x: &mut [E], dim: usize) {
    for row in x.chunks_exact_mut(dim) {
        let inverse = E::of(1.0 / norm(row));
        for v in row {
            *v *= inverse;
        }
    }
}

/// Length of a row, at least 1e-12.
pub fn norm<E: Real>(row: &[E]) -> f64 {
    row.iter().map(|v| v.as_f64() * v.as_f64()).sum::<f64>().sqrt().max(EPS)
}

/// The device's part of [`normalize`].
pub trait NormalizeKernel<E: Dtype>: Device<E> {
    fn normalize_forward(&self, x: &Matrix<E, Self>) -> Result<Matrix<E, Self>, Self::Err>;
    /// Adds to the gradient of x.
    fn normalize_backward(
        &self,
        x: &Matrix<E, Self>,
        y: &Matrix<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
    ) -> Result<(), Self::Err>;
}

/// Each row of x at unit length.
///
/// # Errors
/// The device's, when memory runs out.
pub fn normalize<E: Dtype, D: NormalizeKernel<E>, T: Tape<E, D>>(
    x: Matrix<E, D, T>,
) -> Result<Matrix<E, D, T>, D::Err> {
    let (x, mut tape) = x.split_tape();
    let y = x.device().normalize_forward(&x)?;
    let kept = y.clone();
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(&kept)?.clone();
        x.device().clone().normalize_backward(&x, &kept, gradients.get_or_alloc_mut(&x)?, &gy)
    });
    Ok(y.put_tape(tape))
}

impl<E: Real> NormalizeKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn normalize_forward(&self, x: &Matrix<E, Self>) -> Result<Matrix<E, Self>, CpuError> {
        let mut y = to_vec(x);
        normalize_rows(&mut y, x.shape().1);
        self.try_tensor_from_vec(y, *x.shape())
    }

    fn normalize_backward(
        &self,
        x: &Matrix<E, Self>,
        y: &Matrix<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
    ) -> Result<(), CpuError> {
        // gx = (gy - y (y . gy)) / |x|
        let dim = x.shape().1;
        let (x, y) = (to_vec(x), to_vec(y));
        let rows = gx.chunks_exact_mut(dim).zip(gy.chunks_exact(dim)).zip(x.chunks_exact(dim)).zip(y.chunks_exact(dim));
        for (((gx, gy), x), y) in rows {
            let along = E::of(y.iter().zip(gy).map(|(y, g)| y.as_f64() * g.as_f64()).sum::<f64>());
            let inverse = E::of(1.0 / norm(x));
            for c in 0..dim {
                gx[c] += (gy[c] - y[c] * along) * inverse;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden::{Golden, assert_close};

    #[test]
    fn agrees_with_the_reference() {
        let golden = Golden::load("l2_normalize");
        let device = Cpu::default();
        let x: Matrix<f64, Cpu> = device.tensor_from_vec(golden.get("in.x"), (6, 8));
        let cot: Matrix<f64, Cpu> = device.tensor_from_vec(golden.get("in.cot"), (6, 8));
        let y = normalize(x.leaky_trace()).unwrap();
        assert_close("y", &y.as_vec(), &golden.get("out.y"), 1e-14);
        let loss = (y * cot).sum::<Rank0, _>();
        assert_close("grad.x", &loss.backward().get(&x).as_vec(), &golden.get("grad.x"), 1e-12);
    }

    #[test]
    fn a_zero_row_stays_zero() {
        let mut x = [0.0f32, 0.0, 3.0, 4.0];
        normalize_rows(&mut x, 2);
        assert_eq!(x, [0.0, 0.0, 0.6, 0.8]);
    }
}

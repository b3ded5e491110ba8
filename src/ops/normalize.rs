//! Rows of unit length: y = x / max(|x|, 1e-12).

pub mod cuda;

use dfdx::prelude::*;

use super::{
    Real,
    tensor::{Buffer, Rows, Seen, to_vec},
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
pub trait NormalizeKernel<E: Dtype>: Seen<E> {
    fn normalize_forward(x: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;
    /// Adds to the gradient of x.
    fn normalize_backward(
        x: &Rows<E, Self>,
        y: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
    ) -> Result<(), Self::Err>;
}

/// Each row of x at unit length.
///
/// # Errors
/// The device's, when memory runs out.
pub fn normalize<E: Dtype, D: NormalizeKernel<E>, T: Tape<E, D>>(x: Rows<E, D, T>) -> Result<Rows<E, D, T>, D::Err> {
    let (x, mut tape) = x.split_tape();
    let y = D::normalize_forward(&x)?;
    let kept = y.clone();
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(kept.tensor())?.clone();
        D::normalize_backward(&x, &kept, gradients.get_or_alloc_mut(x.tensor())?, &gy)
    });
    Ok(y.put_tape(tape))
}

impl<E: Real> NormalizeKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn normalize_forward(x: &Rows<E, Self>) -> Result<Rows<E, Self>, CpuError> {
        let mut y = to_vec(x.tensor());
        normalize_rows(&mut y, x.shape().1);
        Ok(Rows::new(x.device().try_tensor_from_vec(y, x.shape())?, ()))
    }

    fn normalize_backward(
        x: &Rows<E, Self>,
        y: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
    ) -> Result<(), CpuError> {
        // gx = (gy - y (y . gy)) / |x|
        let dim = x.shape().1;
        let (x, y) = (to_vec(x.tensor()), to_vec(y.tensor()));
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
    use crate::ops::{
        golden::{Golden, assert_close},
        tensor::Matrix,
    };

    #[test]
    fn agrees_with_the_reference() {
        let golden = Golden::load("l2_normalize");
        let device = Cpu::default();
        let x: Matrix<f64, Cpu> = device.tensor_from_vec(golden.get("in.x"), (6, 8));
        let cot: Matrix<f64, Cpu> = device.tensor_from_vec(golden.get("in.cot"), (6, 8));
        let y = normalize(Rows::of(x.clone()).unwrap().traced()).unwrap().into_tensor();
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

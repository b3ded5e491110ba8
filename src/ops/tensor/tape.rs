//! Operations that are recorded on the tape in the same way on every device.

use dfdx::prelude::*;

use super::{Rows, TensorDevice, TracedRows};
use crate::ops::Real;

/// Linear layer without bias: y [n, out] = x [n, in] w^T, with torch's weight layout w [out, in].
///
/// # Errors
/// When the device fails, e.g. because memory runs out.
pub fn linear<E: Real, D: TensorDevice<E>, T: Tape<E, D>, R: Tape<E, D>>(
    x: Rows<E, D, T>,
    w: Rows<E, D, R>,
) -> Result<TracedRows<E, D>, D::Err>
where
    OwnedTape<E, D>: Merge<T> + Merge<R>,
{
    let (x, x_tape) = x.split_tape();
    let (w, w_tape) = w.split_tape();
    let mut tape = OwnedTape::default().merge(x_tape).merge(w_tape);
    let y = D::linear_forward(&x, &w)?;
    let y_ghost = y.tensor().ghost();
    let (rows, out) = y.shape();
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
        if T::OWNS_TAPE {
            D::linear_backward_x(&w, gradients.get_or_alloc_mut(x.tensor())?, &gy, rows)?;
        }
        if R::OWNS_TAPE {
            D::linear_backward_w(&x, gradients.get_or_alloc_mut(w.tensor())?, &gy, out)?;
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}

/// Scales each row of x to unit length.
///
/// # Errors
/// When the device fails, e.g. because memory runs out.
pub fn normalize<E: Real, D: TensorDevice<E>, T: Tape<E, D>>(x: Rows<E, D, T>) -> Result<Rows<E, D, T>, D::Err> {
    let (x, mut tape) = x.split_tape();
    let y = D::normalize_forward(&x)?;
    let kept = y.clone();
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(kept.tensor())?.clone();
        D::normalize_backward(&x, &kept, gradients.get_or_alloc_mut(x.tensor())?, &gy)
    });
    Ok(y.put_tape(tape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        golden::{Golden, assert_close},
        tensor::Matrix,
    };

    #[test]
    fn normalising_agrees_with_the_reference() {
        let golden = Golden::load("l2_normalize");
        let device = Cpu::default();
        let x: Matrix<f64, Cpu> = device.tensor_from_vec(golden.get("in.x"), (6, 8));
        let cot: Matrix<f64, Cpu> = device.tensor_from_vec(golden.get("in.cot"), (6, 8));
        let y = normalize(Rows::of(x.clone()).unwrap().traced()).unwrap().into_tensor();
        assert_close("y", &y.as_vec(), &golden.get("out.y"), 1e-14);
        let loss = (y * cot).sum::<Rank0, _>();
        assert_close("grad.x", &loss.backward().get(&x).as_vec(), &golden.get("grad.x"), 1e-12);
    }
}

//! Linear layer without bias on dfdx tensors: y = x w^T, with torch's weight layout [out, in].

use dfdx::prelude::*;

use super::{
    Real,
    gemm::{self, Threads, gemm, gemm_leaves},
    parts::parts,
    tensor::{Buffer, Rows, Seen, TracedRows, with_elements},
};

/// The device's part of [`linear`].
pub trait LinearKernel<E: Dtype>: Seen<E> {
    fn linear_forward(x: &Rows<E, Self>, w: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;
    /// Adds to the gradient of x.
    fn linear_backward_x(
        w: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        rows: usize,
    ) -> Result<(), Self::Err>;
    /// Adds to the gradient of w.
    fn linear_backward_w(
        x: &Rows<E, Self>,
        gw: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        out: usize,
    ) -> Result<(), Self::Err>;
}

/// y [n, out] = x [n, in] w^T, w [out, in].
///
/// # Errors
/// The device's, when memory runs out.
pub fn linear<E: Dtype, D: LinearKernel<E>, T: Tape<E, D> + Merge<R>, R: Tape<E, D>>(
    x: Rows<E, D, T>,
    w: Rows<E, D, R>,
) -> Result<Rows<E, D, T>, D::Err> {
    let (x, tape) = x.split_tape();
    let (w, w_tape) = w.split_tape();
    let mut tape = tape.merge(w_tape);
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

/// The same of an `x` that needs no gradient.
///
/// # Errors
/// The device's, when memory runs out.
pub fn linear_of_constant<E: Dtype, D: LinearKernel<E>>(
    x: Rows<E, D>,
    w: TracedRows<E, D>,
) -> Result<TracedRows<E, D>, D::Err> {
    let (w, mut tape) = w.split_tape();
    let y = D::linear_forward(&x, &w)?;
    let (y_ghost, (_, out)) = (y.tensor().ghost(), y.shape());
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
        D::linear_backward_w(&x, gradients.get_or_alloc_mut(w.tensor())?, &gy, out)
    });
    Ok(y.put_tape(tape))
}

impl<E: Real> LinearKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn linear_forward(x: &Rows<E, Self>, w: &Rows<E, Self>) -> Result<Rows<E, Self>, CpuError> {
        let (shape, (n, columns)) = (w.shape(), x.shape());
        assert_eq!(columns, shape.1);
        let y = with_elements(x.tensor(), |x| with_elements(w.tensor(), |w| forward(x, w, shape)));
        Ok(Rows::new(x.device().try_tensor_from_vec(y, (n, shape.0))?, ()))
    }

    fn linear_backward_x(
        w: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        _: usize,
    ) -> Result<(), CpuError> {
        with_elements(w.tensor(), |values| backward_x(values, w.shape(), gx, gy));
        Ok(())
    }

    fn linear_backward_w(
        x: &Rows<E, Self>,
        gw: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        out: usize,
    ) -> Result<(), CpuError> {
        with_elements(x.tensor(), |values| backward_w(values, (out, x.shape().1), gw, gy));
        Ok(())
    }
}

/// y [n, out] = x [n, in] w^T, w [out, in].
pub fn forward<E: Real>(x: &[E], w: &[E], (out, input): (usize, usize)) -> Vec<E> {
    let n = x.len() / input;
    let mut y = vec![E::zero(); n * out];
    gemm(gemm::Matrix::new(x, n, input), gemm::Matrix::new(w, out, input).t(), false, &mut y, Threads::All);
    y
}

/// gx [n, in] += gy [n, out] w.
pub fn backward_x<E: Real>(w: &[E], (out, input): (usize, usize), gx: &mut [E], gy: &[E]) {
    let n = gy.len() / out;
    gemm(gemm::Matrix::new(gy, n, out), gemm::Matrix::new(w, out, input), true, gx, Threads::All);
}

/// gw [out, in] += gy^T x, the rows being summed as the parts of a batch are.
pub fn backward_w<E: Real>(x: &[E], (out, input): (usize, usize), gw: &mut [E], gy: &[E]) {
    let n = x.len() / input;
    let (gy, x) = (gemm::Matrix::new(gy, n, out).t(), gemm::Matrix::new(x, n, input));
    gemm_leaves(gy, x, true, gw, Threads::All, Some(parts(n)));
}

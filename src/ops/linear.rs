//! Linear layer without bias on dfdx tensors: y = x w^T, with torch's weight layout [out, in].

use dfdx::prelude::*;

use super::{
    Real,
    gemm::{self, Threads, gemm},
    seam::{Buffer, Matrix, with_elements},
};

/// The device's part of [`linear`].
pub trait LinearKernel<E: Dtype>: Device<E> {
    fn linear_forward(&self, x: &Matrix<E, Self>, w: &Matrix<E, Self>) -> Result<Matrix<E, Self>, Self::Err>;
    /// Adds to the gradients of x and w.
    fn linear_backward_x(
        &self,
        w: &Matrix<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        rows: usize,
    ) -> Result<(), Self::Err>;
    fn linear_backward_w(
        &self,
        x: &Matrix<E, Self>,
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
    x: Matrix<E, D, T>,
    w: Matrix<E, D, R>,
) -> Result<Matrix<E, D, T>, D::Err> {
    let (x, tape) = x.split_tape();
    let (w, w_tape) = w.split_tape();
    let mut tape = tape.merge(w_tape);
    let y = x.device().linear_forward(&x, &w)?;
    let y_ghost = y.ghost();
    let (rows, out) = *y.shape();
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
        let device = x.device().clone();
        if T::OWNS_TAPE {
            device.linear_backward_x(&w, gradients.get_or_alloc_mut(&x)?, &gy, rows)?;
        }
        if R::OWNS_TAPE {
            device.linear_backward_w(&x, gradients.get_or_alloc_mut(&w)?, &gy, out)?;
        }
        Ok(())
    });
    Ok(y.put_tape(tape))
}

impl<E: Real> LinearKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn linear_forward(&self, x: &Matrix<E, Self>, w: &Matrix<E, Self>) -> Result<Matrix<E, Self>, CpuError> {
        let ((n, input), (out, w_input)) = (*x.shape(), *w.shape());
        assert_eq!(input, w_input);
        let mut y = vec![E::zero(); n * out];
        with_elements(x, |x| {
            with_elements(w, |w| {
                let (x, w) = (gemm::Matrix::new(x, n, input), gemm::Matrix::new(w, out, input));
                gemm(x, w.t(), E::zero(), &mut y, Threads::All);
            });
        });
        self.try_tensor_from_vec(y, (n, out))
    }

    fn linear_backward_x(
        &self,
        w: &Matrix<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        rows: usize,
    ) -> Result<(), CpuError> {
        let (out, input) = *w.shape();
        with_elements(w, |w| {
            gemm(gemm::Matrix::new(gy, rows, out), gemm::Matrix::new(w, out, input), E::one(), gx, Threads::All);
        });
        Ok(())
    }

    fn linear_backward_w(
        &self,
        x: &Matrix<E, Self>,
        gw: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        out: usize,
    ) -> Result<(), CpuError> {
        let (rows, input) = *x.shape();
        with_elements(x, |x| {
            gemm(gemm::Matrix::new(gy, rows, out).t(), gemm::Matrix::new(x, rows, input), E::one(), gw, Threads::All);
        });
        Ok(())
    }
}

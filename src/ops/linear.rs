//! Linear layer without bias on dfdx tensors: y = x w^T, with torch's weight layout [out, in].

use dfdx::prelude::*;
use rayon::prelude::*;

use super::{
    Real,
    columns::WHOLE_VECTORS,
    gemm::{self, Threads, gemm},
    product::{self, Full, Left, Panels, Strided},
    row_dots::{few, row_dots},
    row_sums::{add_to_few, add_to_many},
    seam::{Buffer, Matrix, with_elements},
};

/// Rows from which on the other factor is packed, and rows per task then.
const PACKED_ROWS: usize = 32;
const TASK_ROWS: usize = 32;

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
        let shape = *w.shape();
        assert_eq!(x.shape().1, shape.1);
        let y = with_elements(x, |x| with_elements(w, |w| forward(x, w, shape)));
        self.try_tensor_from_vec(y, (x.shape().0, shape.0))
    }

    fn linear_backward_x(
        &self,
        w: &Matrix<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        _: usize,
    ) -> Result<(), CpuError> {
        with_elements(w, |values| backward_x(values, *w.shape(), gx, gy));
        Ok(())
    }

    fn linear_backward_w(
        &self,
        x: &Matrix<E, Self>,
        gw: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        out: usize,
    ) -> Result<(), CpuError> {
        with_elements(x, |values| backward_w(values, (out, x.shape().1), gw, gy));
        Ok(())
    }
}

/// y [n, out] = x [n, in] w^T, w [out, in].
pub fn forward<E: Real>(x: &[E], w: &[E], (out, input): (usize, usize)) -> Vec<E> {
    let n = x.len() / input;
    let mut y = vec![E::zero(); n * out];
    if few(n, input) {
        row_dots(x, w, input, &mut y);
    } else {
        multiply(gemm::Matrix::new(x, n, input), gemm::Matrix::new(w, out, input).t(), &mut y, false);
    }
    y
}

/// gx [n, in] += gy [n, out] w.
pub fn backward_x<E: Real>(w: &[E], (out, input): (usize, usize), gx: &mut [E], gy: &[E]) {
    let n = gy.len() / out;
    if few(n, input) {
        return add_to_few(Strided { data: gy, row: out, column: 1 }, w, input, gx);
    }
    multiply(gemm::Matrix::new(gy, n, out), gemm::Matrix::new(w, out, input), gx, true);
}

/// gw [out, in] += gy^T x.
pub fn backward_w<E: Real>(x: &[E], (out, input): (usize, usize), gw: &mut [E], gy: &[E]) {
    let n = x.len() / input;
    if few(n, input) {
        return add_to_many(Strided { data: gy, row: 1, column: out }, x, input, gw);
    }
    multiply(gemm::Matrix::new(gy, n, out).t(), gemm::Matrix::new(x, n, input), gw, true);
}

/// c = a b, or c += a b where `add` says so, on all threads.
fn multiply<E: Real>(a: gemm::Matrix<E>, b: gemm::Matrix<E>, c: &mut [E], add: bool) {
    // Packing b pays where many rows of a are multiplied with it; gemm, which packs less, leaves small products to one thread.
    if a.rows < PACKED_ROWS || !b.columns.is_multiple_of(WHOLE_VECTORS) || a.columns == 0 {
        return gemm(a, b, if add { E::one() } else { E::zero() }, c, Threads::All);
    }
    E::with_scratch(b.rows * b.columns, |memory| {
        let b = Panels::pack::<Full>(b, memory);
        c.par_chunks_mut(TASK_ROWS * b.columns).enumerate().for_each(|(i, c)| {
            let data = &a.data[i * TASK_ROWS * a.row_stride..];
            let factors = Strided { data, row: a.row_stride, column: a.column_stride };
            product::multiply::<E, Full>(Left { factors, rows: c.len() / b.columns }, b, c, add);
        });
    });
}

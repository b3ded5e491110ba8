//! Linear layer without bias: y = x w^T, with torch's weight layout [out, in].

use super::{
    Real,
    gemm::{gemm, gemm_leaves},
    matrix::Matrix,
    parts::{Threads, parts},
};

/// y [n, out] = x [n, in] w^T, w [out, in].
pub fn forward<E: Real>(x: &[E], w: &[E], (out, input): (usize, usize)) -> Vec<E> {
    let n = x.len() / input;
    let mut y = vec![E::zero(); n * out];
    gemm(Matrix::new(x, n, input), Matrix::new(w, out, input).t(), false, &mut y, Threads::All);
    y
}

/// gx [n, in] += gy [n, out] w.
pub fn backward_x<E: Real>(w: &[E], (out, input): (usize, usize), gx: &mut [E], gy: &[E]) {
    let n = gy.len() / out;
    gemm(Matrix::new(gy, n, out), Matrix::new(w, out, input), true, gx, Threads::All);
}

/// gw [out, in] += gy^T x. The sum over the n rows is the binary tree over the parts of a batch (see [`parts`](super::parts)).
pub fn backward_w<E: Real>(x: &[E], (out, input): (usize, usize), gw: &mut [E], gy: &[E]) {
    let n = x.len() / input;
    let (gy, x) = (Matrix::new(gy, n, out).t(), Matrix::new(x, n, input));
    gemm_leaves(gy, x, true, gw, Threads::All, Some(parts(n)));
}

//! Where our differentiable operations meet dfdx's tape: the one place among the operations that knows dfdx's tensors.
//!
//! dfdx keeps the storage of tensors private but hands out gradient buffers. An operation of ours therefore reads its inputs
//! where the device keeps them beside the tensor (see [`Rows`]), and records a closure that takes the output's gradient and
//! adds to the inputs'. What is computed stands in the other modules, on slices of the host and on memory of a GPU.

#[cfg(feature = "cuda")]
pub mod cuda;
mod gpu;
mod host;
mod tape;

pub use gpu::GpuTensors;
pub use host::{CpuTensors, record, to_vec};
pub use tape::{linear, normalize};

use dfdx::prelude::*;

use super::{Real, contrast::Pairs, pending::Pending, sinkhorn::Sinkhorn};

/// A device with all differentiable operations of the losses, beside whose tensors our kernels find the same values. All of
/// them fail as the device does.
pub trait TensorDevice<E: Real>: Device<E, Err: Send + Sync> {
    /// Where the values of a tensor lie; nothing where they can be read from it.
    type Values: Clone + 'static;

    /// The values of a tensor that dfdx made.
    fn values(tensor: &Matrix<E, Self>) -> Result<Self::Values, Self::Err>;

    /// The values that a tensor of dfdx's has now, without a wait for them.
    fn read_later(tensor: &Matrix<E, Self>) -> Result<Pending<Vec<E>>, Self::Err>;

    /// The same of rows of ours.
    fn read_rows_later(rows: &Rows<E, Self>) -> Result<Pending<Vec<E>>, Self::Err> {
        Self::read_later(rows.tensor())
    }

    /// The values of [`linear`].
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

    /// The values of [`normalize`].
    fn normalize_forward(x: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    /// Adds to the gradient of x.
    fn normalize_backward(
        x: &Rows<E, Self>,
        y: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
    ) -> Result<(), Self::Err>;

    /// For each of N anchors: log of the sum of exp over all logits [N], and the logits of its own candidates [N, own].
    /// Anchors [N, D] and candidates [M own, D] have unit length; on a GPU, M is N; a logit is a cosine over tau.
    fn contrast<R: Tape<E, Self>>(
        anchors: TracedRows<E, Self>,
        candidates: Rows<E, Self, R>,
        pairs: Pairs,
        tau: f64,
    ) -> Result<Logits<E, Self>, Self::Err>
    where
        OwnedTape<E, Self>: Merge<R>;

    /// Rows a_i, b_(i k) .. b_(i k + k - 1) for each i, of a [n, d] and b [n k, d]: [n (k + 1), d].
    fn interleave(a: &Rows<E, Self>, b: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    /// Each row of `rows` [n, d] times its factor, of `factors` [n, 1].
    fn scale_rows(rows: &Rows<E, Self>, factors: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    /// y [n, k]: the dot products of row i of a [n, width] with the rows i k .. (i + 1) k of b [n k, width].
    fn group_dots(a: Traced<E, Self>, b: Traced<E, Self>) -> Result<Traced<E, Self>, Self::Err>;

    /// The assignment [n, columns] of the samples whose scores are given, no gradient; the scores `beside` [m, columns] of
    /// other samples are normalised with them.
    fn assign(
        scores: &Rows<E, Self>,
        beside: Option<&Rows<E, Self>>,
        settings: Sinkhorn,
    ) -> Result<Matrix<E, Self>, Self::Err>;

    /// ln sum_j exp(s_j) of each row of s [n, m].
    fn log_sum_exp(s: Traced<E, Self>) -> Result<TracedPerRow<E, Self>, Self::Err>;

    /// log softmax of each row of s.
    fn log_softmax(s: Traced<E, Self>) -> Result<Traced<E, Self>, Self::Err>;

    /// -sum_j q_j log softmax(s / tau)_j of each row; no gradient flows to q.
    fn cross_entropy(s: Traced<E, Self>, q: Matrix<E, Self>, tau: f64) -> Result<TracedPerRow<E, Self>, Self::Err>;

    /// e^x of each element.
    fn exp(x: Traced<E, Self>) -> Result<Traced<E, Self>, Self::Err>;

    /// The mean of a value per image.
    fn batch_mean(x: TracedPerRow<E, Self>) -> Result<TracedScalar<E, Self>, Self::Err>;
}

/// Rows [n, columns] that operations of ours read: a tensor, and where kernels find its values.
pub struct Rows<E: Real, D: TensorDevice<E>, T = NoneTape> {
    tensor: Matrix<E, D, T>,
    values: D::Values,
}

/// Rows on a tape.
pub type TracedRows<E, D> = Rows<E, D, OwnedTape<E, D>>;

impl<E: Real, D: TensorDevice<E>> Clone for Rows<E, D> {
    fn clone(&self) -> Self {
        Self { tensor: self.tensor.clone(), values: self.values.clone() }
    }
}

impl<E: Real, D: TensorDevice<E>> Rows<E, D> {
    /// A tensor with the same values beside it.
    pub fn new(tensor: Matrix<E, D>, values: D::Values) -> Self {
        Self { tensor, values }
    }

    /// A tensor that dfdx made.
    ///
    /// # Errors
    /// The device's.
    pub fn of(tensor: Matrix<E, D>) -> Result<Self, D::Err> {
        Ok(Self { values: D::values(&tensor)?, tensor })
    }

    /// The same rows on a tape.
    pub fn put_tape<T>(self, tape: T) -> Rows<E, D, T> {
        Rows { tensor: self.tensor.put_tape(tape), values: self.values }
    }

    /// The same rows on a tape of their own.
    pub fn traced(self) -> TracedRows<E, D> {
        self.put_tape(OwnedTape::default())
    }
}

impl<E: Real, D: TensorDevice<E>, T> Rows<E, D, T> {
    /// The tensor.
    pub fn tensor(&self) -> &Matrix<E, D, T> {
        &self.tensor
    }

    /// The tensor, for operations of dfdx's.
    pub fn into_tensor(self) -> Matrix<E, D, T> {
        self.tensor
    }

    /// Where kernels find the values.
    pub fn values(&self) -> &D::Values {
        &self.values
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        *self.tensor.shape()
    }

    /// The device.
    pub fn device(&self) -> &D {
        self.tensor.device()
    }
}

impl<E: Real, D: TensorDevice<E>, T: Tape<E, D>> Rows<E, D, T> {
    /// The rows off their tape, and the tape.
    pub fn split_tape(self) -> (Rows<E, D>, T) {
        let (tensor, tape) = self.tensor.split_tape();
        (Rows { tensor, values: self.values }, tape)
    }
}

/// A tensor of two axes whose sizes are known at run time.
pub type Matrix<E, D, T = NoneTape> = Tensor<(usize, usize), E, D, T>;

/// A matrix on a tape.
pub type Traced<E, D> = Matrix<E, D, OwnedTape<E, D>>;

/// A value per row, on a tape.
pub type TracedPerRow<E, D> = Tensor<(usize,), E, D, OwnedTape<E, D>>;

/// A scalar on a tape.
pub type TracedScalar<E, D> = Tensor<Rank0, E, D, OwnedTape<E, D>>;

/// What a contrastive loss is made of, per anchor: log of the sum of exp over all logits [N], and the logits of its own
/// candidates [N, own].
pub type Logits<E, D> = (TracedPerRow<E, D>, Traced<E, D>);

/// A device's buffer of elements.
pub type Buffer<E, D> = <D as Storage<E>>::Vec;

/// `x` on a tape of its own. Gradients go by the tensor, so that tapes of one tensor may be merged later.
pub fn traced<E: Dtype, D: Storage<E>>(x: Matrix<E, D>) -> Traced<E, D> {
    x.put_tape(OwnedTape::default())
}

/// An error of dfdx's, which is no `std::error::Error` on every device.
pub fn device_error(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error:?}")
}

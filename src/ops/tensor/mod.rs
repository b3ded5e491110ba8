//! Connects our differentiable operations to dfdx's tape. Among the operations, only this module knows dfdx's tensors.
//!
//! dfdx keeps the storage of tensors private but gives access to gradient buffers. So our operations read their inputs from
//! values that the device keeps beside the tensor (see [`Rows`]). Each operation records a closure that reads the output's
//! gradient and adds to the gradients of the inputs. The other modules contain the computations, on slices of the host and on GPU
//! memory.

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

/// A device with all differentiable operations of the losses. It keeps the values of a tensor beside the tensor, where our
/// kernels can read them. Each operation fails if the device fails.
pub trait TensorDevice<E: Real>: Device<E, Err: Send + Sync> {
    /// A handle to the values of a tensor for our kernels; `()` if they can be read from the tensor.
    type Values: Clone + 'static;

    /// The values of a tensor that dfdx made.
    fn values(tensor: &Matrix<E, Self>) -> Result<Self::Values, Self::Err>;

    /// The current values of a dfdx tensor. The call does not wait for them.
    fn read_later(tensor: &Matrix<E, Self>) -> Result<Pending<Vec<E>>, Self::Err>;

    /// The current values of rows. The call does not wait for them.
    fn read_rows_later(rows: &Rows<E, Self>) -> Result<Pending<Vec<E>>, Self::Err> {
        Self::read_later(rows.tensor())
    }

    /// The forward pass of [`linear`].
    fn linear_forward(x: &Rows<E, Self>, w: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    /// Adds to gx, the gradient of x in [`linear`], from gy, that of the result.
    fn linear_backward_x(
        w: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        rows: usize,
    ) -> Result<(), Self::Err>;

    /// Adds to gw, the gradient of w in [`linear`], from gy, that of the result.
    fn linear_backward_w(
        x: &Rows<E, Self>,
        gw: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
        out: usize,
    ) -> Result<(), Self::Err>;

    /// The forward pass of [`normalize`].
    fn normalize_forward(x: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    /// Adds to gx, the gradient of x in [`normalize`], from gy, that of the result y.
    fn normalize_backward(
        x: &Rows<E, Self>,
        y: &Rows<E, Self>,
        gx: &mut Buffer<E, Self>,
        gy: &Buffer<E, Self>,
    ) -> Result<(), Self::Err>;

    /// For each of N anchors: the log of the sum of exp over all logits [N], and the logits of its own candidates [N, own].
    /// Anchors [N, D] and candidates [M own, D] have unit length. On a GPU, M must be N. A logit is a cosine divided by tau.
    fn contrast<R: Tape<E, Self>>(
        anchors: TracedRows<E, Self>,
        candidates: Rows<E, Self, R>,
        pairs: Pairs,
        tau: f64,
    ) -> Result<Logits<E, Self>, Self::Err>
    where
        OwnedTape<E, Self>: Merge<R>;

    /// For each i, row i of a [n, d], then rows i k .. (i + 1) k of b [n k, d]: [n (k + 1), d].
    fn interleave(a: &Rows<E, Self>, b: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    /// Each row of `rows` [n, d] times its factor in `factors` [n, 1].
    fn scale_rows(rows: &Rows<E, Self>, factors: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    /// y [n, k]: the dot products of row i of a [n, width] with the rows i k .. (i + 1) k of b [n k, width].
    fn group_dots(a: Traced<E, Self>, b: Traced<E, Self>) -> Result<Traced<E, Self>, Self::Err>;

    /// The assignment [n, columns] for `scores`, without gradient. The scores `beside` [m, columns] of other samples are
    /// normalised together with them.
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

    /// The mean over the batch of one value per image.
    fn batch_mean(x: TracedPerRow<E, Self>) -> Result<TracedScalar<E, Self>, Self::Err>;
}

/// Rows [n, columns] that our operations read: a tensor, and a handle to its values for kernels.
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
    /// Rows of a tensor and a handle to the same values.
    pub fn new(tensor: Matrix<E, D>, values: D::Values) -> Self {
        Self { tensor, values }
    }

    /// Rows of a tensor that dfdx made.
    ///
    /// # Errors
    /// When the device fails.
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

    /// The tensor, for dfdx's operations.
    pub fn into_tensor(self) -> Matrix<E, D, T> {
        self.tensor
    }

    /// The handle to the values for kernels.
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
    /// Separates the rows from their tape.
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

/// The inputs of a contrastive loss, per anchor: the log of the sum of exp over all logits [N], and the logits of its own
/// candidates [N, own].
pub type Logits<E, D> = (TracedPerRow<E, D>, Traced<E, D>);

/// A device's buffer of elements.
pub type Buffer<E, D> = <D as Storage<E>>::Vec;

/// `x` on a tape of its own. Gradients are stored per tensor, so tapes with the same tensor may be merged later.
pub fn traced<E: Dtype, D: Storage<E>>(x: Matrix<E, D>) -> Traced<E, D> {
    x.put_tape(OwnedTape::default())
}

/// Converts an error of dfdx, which does not implement `std::error::Error` on every device.
pub fn device_error(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error:?}")
}

//! Where our differentiable operations meet dfdx's tape.
//!
//! dfdx keeps the storage of tensors private but hands out gradient buffers. An operation of ours therefore reads its inputs
//! where the device keeps them beside the tensor (see [`Rows`]), and records a closure that takes the output's gradient and
//! adds to the inputs'.

use dfdx::prelude::*;

use super::{
    Real, contrast::ContrastKernel, group_dots::GroupDotsKernel, later::ReadLater, linear::LinearKernel,
    normalize::NormalizeKernel, over_batch::BatchKernel, sinkhorn::SinkhornKernel, softmax::SoftmaxKernel,
};

/// A device beside whose tensors our kernels find the same values.
pub trait Seen<E: Dtype>: Device<E> {
    /// Where they lie; nothing where they can be read from a tensor.
    type Values: Clone + 'static;

    /// The values of a tensor that dfdx made.
    ///
    /// # Errors
    /// The device's.
    fn values(tensor: &Matrix<E, Self>) -> Result<Self::Values, Self::Err>;
}

/// On the CPU a tensor can be read.
impl<E: Dtype> Seen<E> for Cpu
where
    Cpu: Device<E>,
{
    type Values = ();

    fn values(_: &Matrix<E, Self>) -> Result<(), Self::Err> {
        Ok(())
    }
}

/// Rows [n, columns] that operations of ours read: a tensor, and where kernels find its values.
pub struct Rows<E: Dtype, D: Seen<E>, T = NoneTape> {
    tensor: Matrix<E, D, T>,
    values: D::Values,
}

/// Rows on a tape.
pub type TracedRows<E, D> = Rows<E, D, OwnedTape<E, D>>;

impl<E: Dtype, D: Seen<E>> Clone for Rows<E, D> {
    fn clone(&self) -> Self {
        Self { tensor: self.tensor.clone(), values: self.values.clone() }
    }
}

impl<E: Dtype, D: Seen<E>> Rows<E, D> {
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

impl<E: Dtype, D: Seen<E>, T> Rows<E, D, T> {
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

impl<E: Dtype, D: Seen<E>, T: Tape<E, D>> Rows<E, D, T> {
    /// The rows off their tape, and the tape.
    pub fn split_tape(self) -> (Rows<E, D>, T) {
        let (tensor, tape) = self.tensor.split_tape();
        (Rows { tensor, values: self.values }, tape)
    }
}

/// A device with all differentiable operations of the losses.
pub trait TensorDevice<E: Dtype>:
    Device<E, Err: Send + Sync>
    + Seen<E>
    + LinearKernel<E>
    + NormalizeKernel<E>
    + ContrastKernel<E>
    + GroupDotsKernel<E>
    + SinkhornKernel<E>
    + SoftmaxKernel<E>
    + BatchKernel<E>
    + ReadLater<E>
{
}

impl<E: Dtype, D> TensorDevice<E> for D where
    D: Device<E, Err: Send + Sync>
        + Seen<E>
        + LinearKernel<E>
        + NormalizeKernel<E>
        + ContrastKernel<E>
        + GroupDotsKernel<E>
        + SinkhornKernel<E>
        + SoftmaxKernel<E>
        + BatchKernel<E>
        + ReadLater<E>
{
}

/// The CPU as dfdx's device, with the losses' operations for `E`.
pub trait CpuTensors<E: Dtype>:
    TensorDevice<E> + Seen<E, Values = ()> + HasErr<Err = CpuError> + Storage<E, Vec: std::ops::DerefMut<Target = Vec<E>>>
{
}

impl<E: Dtype, D> CpuTensors<E> for D where
    D: TensorDevice<E>
        + Seen<E, Values = ()>
        + HasErr<Err = CpuError>
        + Storage<E, Vec: std::ops::DerefMut<Target = Vec<E>>>
{
}

/// A tensor of two axes whose sizes are known at run time.
pub type Matrix<E, D, T = NoneTape> = Tensor<(usize, usize), E, D, T>;

/// A matrix on a tape.
pub type Traced<E, D> = Matrix<E, D, OwnedTape<E, D>>;

/// A scalar on a tape.
pub type TracedScalar<E, D> = Tensor<Rank0, E, D, OwnedTape<E, D>>;

/// `x` on a tape of its own. Gradients go by the tensor, so that tapes of one tensor may be merged later.
pub fn traced<E: Dtype, D: Storage<E>>(x: Matrix<E, D>) -> Traced<E, D> {
    x.put_tape(OwnedTape::default())
}

/// The elements of a tensor in row-major order. `Tensor::as_vec` walks them one by one, which takes several times as long
/// as a copy.
pub fn to_vec<S: Shape, E: Real>(x: &Tensor<S, E, Cpu>) -> Vec<E>
where
    Cpu: Device<E, Err = CpuError>,
{
    let x = x.clone().contiguous(); // shares the elements unless they were broadcast or permuted
    let mut values = vec![E::zero(); x.shape().num_elements()];
    x.copy_into(&mut values);
    values
}

/// Calls `f` with the elements of a tensor in row-major order, copied to memory that the thread uses again and again.
pub fn with_elements<S: Shape, E: Real, R>(x: &Tensor<S, E, Cpu>, f: impl FnOnce(&[E]) -> R) -> R
where
    Cpu: Device<E, Err = CpuError>,
{
    let x = x.clone().contiguous();
    E::with_scratch(x.shape().num_elements(), |elements| {
        x.copy_into(elements);
        f(elements)
    })
}

/// An error of dfdx's, which is no `std::error::Error` on every device.
pub fn device_error(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error:?}")
}

/// A device's buffer of elements.
pub type Buffer<E, D> = <D as Storage<E>>::Vec;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_in_row_major_order_however_they_lie() {
        let device = Cpu::default();
        let x: Matrix<f64, Cpu> = device.tensor_from_vec((0..6).map(f64::from).collect(), (2, 3));
        assert_eq!(to_vec(&x), x.as_vec());
        let permuted: Matrix<f64, Cpu> = x.clone().permute::<_, Axes2<1, 0>>();
        assert_eq!(to_vec(&permuted), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let row: Tensor<(usize,), f64, Cpu> = device.tensor_from_vec(vec![1.0, 2.0], (2,));
        let broadcast: Matrix<f64, Cpu> = row.broadcast_like::<_, Axis<0>>(&(3usize, 2usize));
        assert_eq!(to_vec(&broadcast), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    }
}

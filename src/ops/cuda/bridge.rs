//! Between buffers of a GPU and dfdx tensors: a copy on the device where both lie there.

use dfdx::prelude::*;

use super::{Buffer, Gpu, GpuError, View};
#[cfg(feature = "cuda")]
use super::{Contiguous, Viewed};
use crate::ops::{Real, batch_norm::BatchNormKernel};

/// Values of a tensor on the GPU, as f32.
pub enum Lent {
    /// Where they were copied to.
    Copy(Buffer),
    /// Where they lie.
    #[cfg(feature = "cuda")]
    Tensor(Box<dyn super::Viewed>),
}

impl Lent {
    /// The values.
    pub fn view(&self) -> View<'_> {
        match self {
            Lent::Copy(copy) => copy.view(),
            #[cfg(feature = "cuda")]
            Lent::Tensor(tensor) => tensor.view(),
        }
    }
}

/// A dfdx device beside a GPU.
pub trait Bridge<E: Dtype>: BatchNormKernel<E> {
    /// A tensor of f32 values on the GPU.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are more or fewer than the shape has.
    fn tensor_at<S: Shape>(&self, gpu: &Gpu, at: View, shape: S) -> Result<Tensor<S, E, Self>, GpuError>;

    /// The values of a tensor on the GPU.
    ///
    /// # Errors
    /// When the device fails.
    fn lend<S: Shape>(gpu: &Gpu, tensor: &Tensor<S, E, Self>) -> Result<Lent, GpuError>;

    /// Running statistics as this device keeps them.
    ///
    /// # Errors
    /// When memory runs out.
    fn running(gpu: &Gpu, values: &[E]) -> Result<Self::Running, GpuError>;

    /// Their values. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    fn running_values(running: &Self::Running) -> Result<Vec<E>, GpuError>;
}

#[cfg(feature = "cuda")]
impl Bridge<f32> for Cuda {
    fn tensor_at<S: Shape>(&self, gpu: &Gpu, at: View, shape: S) -> Result<Tensor<S, f32, Self>, GpuError> {
        let tensor = Contiguous::zeros(self, shape).map_err(failed)?;
        gpu.copy(at, tensor.view())?;
        Ok(tensor.tensor())
    }

    fn lend<S: Shape>(_gpu: &Gpu, tensor: &Tensor<S, f32, Self>) -> Result<Lent, GpuError> {
        Ok(Lent::Tensor(Box::new(Contiguous::of(tensor).map_err(failed)?)))
    }

    fn running(gpu: &Gpu, values: &[f32]) -> Result<Buffer, GpuError> {
        gpu.upload(values)
    }

    fn running_values(running: &Buffer) -> Result<Vec<f32>, GpuError> {
        running.read()
    }
}

#[cfg(feature = "cuda")]
fn failed(error: CudaError) -> GpuError {
    GpuError::Failed { what: "making a tensor".into(), why: error.to_string() }
}

/// In tests the GPU may be emulated; then heads and losses are on the CPU.
impl<E: Real> Bridge<E> for Cpu
where
    Cpu: BatchNormKernel<E, Running = Vec<E>> + Device<E, Err = CpuError>,
{
    fn tensor_at<S: Shape>(&self, gpu: &Gpu, at: View, shape: S) -> Result<Tensor<S, E, Self>, GpuError> {
        let values: Vec<f32> = gpu.read(at)?;
        Ok(self.tensor_from_vec(values.into_iter().map(|v| E::of(v.into())).collect(), shape))
    }

    fn lend<S: Shape>(gpu: &Gpu, tensor: &Tensor<S, E, Self>) -> Result<Lent, GpuError> {
        let values: Vec<f32> = tensor.as_vec().into_iter().map(|v| v.as_f64() as f32).collect();
        Ok(Lent::Copy(gpu.upload(&values)?))
    }

    fn running(_gpu: &Gpu, values: &[E]) -> Result<Vec<E>, GpuError> {
        Ok(values.to_vec())
    }

    fn running_values(running: &Vec<E>) -> Result<Vec<E>, GpuError> {
        Ok(running.clone())
    }
}

//! Between buffers of a GPU and dfdx tensors: a copy on the device where both lie there.

use dfdx::prelude::*;

use super::{Buffer, Gpu, GpuError, View};
#[cfg(feature = "cuda")]
use super::{Contiguous, Viewed, address::of_storage};
use crate::ops::{
    Real,
    tensor::{self, Matrix},
};

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
pub trait Bridge<E: Dtype>: Device<E> {
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

    /// The gradient of a tensor on the GPU; zero where it took no part.
    ///
    /// # Errors
    /// When memory runs out.
    fn read_gradient(gpu: &Gpu, gradients: &mut Gradients<E, Self>, of: &Matrix<E, Self>) -> Result<Buffer, GpuError>;

    /// Overwrites the gradient of a tensor.
    ///
    /// # Errors
    /// When memory runs out.
    fn write_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<E, Self>,
        of: &Matrix<E, Self>,
        values: View,
    ) -> Result<(), GpuError>;
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

    fn read_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<f32, Self>,
        of: &Matrix<f32, Self>,
    ) -> Result<Buffer, GpuError> {
        let storage = of_storage(gradients.get_or_alloc_mut(of).map_err(failed)?);
        let gradient = gpu.take(storage.kind(), storage.len())?;
        gpu.copy(storage, gradient.view())?;
        Ok(gradient)
    }

    fn write_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<f32, Self>,
        of: &Matrix<f32, Self>,
        values: View,
    ) -> Result<(), GpuError> {
        gpu.copy(values, of_storage(gradients.get_or_alloc_mut(of).map_err(failed)?))
    }
}

#[cfg(feature = "cuda")]
fn failed(error: CudaError) -> GpuError {
    GpuError::Failed { what: "making a tensor".into(), why: error.to_string() }
}

/// In tests the GPU may be emulated; then heads and losses are on the CPU.
impl<E: Real> Bridge<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    tensor::Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn tensor_at<S: Shape>(&self, gpu: &Gpu, at: View, shape: S) -> Result<Tensor<S, E, Self>, GpuError> {
        let values: Vec<f32> = gpu.read(at)?;
        Ok(self.tensor_from_vec(values.into_iter().map(|v| E::of(v.into())).collect(), shape))
    }

    fn lend<S: Shape>(gpu: &Gpu, tensor: &Tensor<S, E, Self>) -> Result<Lent, GpuError> {
        let values: Vec<f32> = tensor.as_vec().into_iter().map(|v| v.as_f64() as f32).collect();
        Ok(Lent::Copy(gpu.upload(&values)?))
    }

    fn read_gradient(gpu: &Gpu, gradients: &mut Gradients<E, Self>, of: &Matrix<E, Self>) -> Result<Buffer, GpuError> {
        let values = gradients.get_or_alloc_mut(of).expect("the host has memory");
        gpu.upload(&values.iter().map(|v| v.as_f64() as f32).collect::<Vec<_>>())
    }

    fn write_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<E, Self>,
        of: &Matrix<E, Self>,
        values: View,
    ) -> Result<(), GpuError> {
        let values: Vec<f32> = gpu.read(values)?;
        let to = gradients.get_or_alloc_mut(of).expect("the host has memory");
        to.iter_mut().zip(values).for_each(|(to, value)| *to = E::of(value.into()));
        Ok(())
    }
}

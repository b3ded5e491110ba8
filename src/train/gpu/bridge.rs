//! Between flat buffers of a GPU and dfdx tensors: a copy on the device where both lie there.

use dfdx::prelude::*;

use crate::ops::{
    backend::Backend,
    cuda::{Buffer, Gpu, GpuError},
};

/// Values of a tensor at an address of the GPU; they stay there as long as this and the tensor live.
pub struct Lent {
    pub at: u64,
    /// Where they were copied to, if they were.
    _copy: Option<Buffer>,
}

/// A dfdx device beside a GPU.
pub trait Bridge: Backend<f32> {
    /// A tensor of the values at an address.
    ///
    /// # Errors
    /// When the device fails.
    fn tensor<S: Shape>(&self, gpu: &Gpu, at: u64, shape: S) -> Result<Tensor<S, f32, Self>, GpuError>;

    /// The values of a tensor on the GPU.
    ///
    /// # Errors
    /// When the device fails.
    fn lend<S: Shape>(gpu: &Gpu, tensor: &Tensor<S, f32, Self>) -> Result<Lent, GpuError>;
}

#[cfg(feature = "cuda")]
impl Bridge for Cuda {
    fn tensor<S: Shape>(&self, gpu: &Gpu, at: u64, shape: S) -> Result<Tensor<S, f32, Self>, GpuError> {
        let failed = |error: CudaError| GpuError::Failed { what: "allocating a tensor".into(), why: error.to_string() };
        let tensor: Tensor<S, f32, Self> = self.try_zeros_like(&shape).map_err(failed)?;
        gpu.copy(at, crate::ops::cuda::address(&tensor), shape.num_elements() * 4)?;
        Ok(tensor)
    }

    fn lend<S: Shape>(_gpu: &Gpu, tensor: &Tensor<S, f32, Self>) -> Result<Lent, GpuError> {
        Ok(Lent { at: crate::ops::cuda::address(tensor), _copy: None })
    }
}

/// In tests the GPU may be emulated; then heads and losses are on the CPU.
#[cfg(test)]
impl Bridge for Cpu {
    fn tensor<S: Shape>(&self, gpu: &Gpu, at: u64, shape: S) -> Result<Tensor<S, f32, Self>, GpuError> {
        Ok(self.tensor_from_vec(gpu.read(at, shape.num_elements())?, shape))
    }

    fn lend<S: Shape>(gpu: &Gpu, tensor: &Tensor<S, f32, Self>) -> Result<Lent, GpuError> {
        let copy = gpu.upload(&tensor.as_vec())?;
        Ok(Lent { at: copy.at(), _copy: Some(copy) })
    }
}

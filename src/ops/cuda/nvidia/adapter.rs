//! Between device memory of ours and dfdx's tensors.
//!
//! dfdx keeps the storage of tensors private, but hands out that of gradients. So a tensor with values of ours is made as a
//! gradient, which costs a copy; and the values of a tensor that dfdx made are read as the gradient of ones that it is
//! multiplied by, which is exact and costs a few passes over them.

use std::rc::Rc;

use cudarc::driver::{DevicePtr, DeviceSlice};
use dfdx::prelude::*;

use crate::ops::{
    cuda::{Buffer, Gpu, GpuError, Kind, View},
    tensor::Matrix,
};

/// The values of storage, e.g. of a gradient.
pub fn of_storage(values: &<Cuda as Storage<f32>>::Vec) -> View<'_> {
    // SAFETY: the storage has as many elements, and is borrowed as long as the view is used.
    unsafe { lasting(values) }
}

/// The same, for as long as the caller likes.
///
/// # Safety
/// The storage must stay where it is as long as the view is used.
pub unsafe fn lasting<'a>(values: &<Cuda as Storage<f32>>::Vec) -> View<'a> {
    // SAFETY: as the caller promises.
    unsafe { View::foreign(*values.device_ptr(), Kind::F32, values.len()) }
}

/// A tensor with a copy of the values of a view.
///
/// # Errors
/// When the device fails.
pub fn tensor<S: Shape>(cuda: &Cuda, gpu: &Gpu, values: View, shape: S) -> Result<Tensor<S, f32, Cuda>, GpuError> {
    let like = cuda.try_zeros_like(&shape).map_err(failed)?;
    let mut gradients = Gradients::leaky();
    gpu.copy(values, of_storage(gradients.get_or_alloc_mut(&like).map_err(failed)?))?;
    Ok(gradients.get(&like))
}

/// The values of a tensor that dfdx made.
///
/// # Errors
/// When the device fails.
pub fn values(tensor: &Matrix<f32, Cuda>) -> Result<Rc<Buffer>, CudaError> {
    let gpu = gpu(tensor.device())?;
    let ones: Matrix<f32, Cuda> = tensor.device().try_ones_like(tensor)?;
    let product = ones.leaky_trace().try_mul(tensor.clone())?.try_sum::<Rank0, _>()?;
    let mut gradients = product.try_backward()?;
    let of_ones = of_storage(gradients.get_or_alloc_mut(&ones)?);
    let copied = gpu.take(Kind::F32, of_ones.len()).and_then(|copy| {
        gpu.copy(of_ones, copy.view())?;
        Ok(copy)
    });
    copied.map(Rc::new).map_err(noted(&gpu))
}

/// Our side of a dfdx device.
pub fn gpu(cuda: &Cuda) -> Result<Gpu, CudaError> {
    use cudarc::driver::{DriverError, sys::CUresult};
    super::gpu(cuda).map_err(|_| CudaError::Driver(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)))
}

/// As an error of dfdx's, whose variants are fixed: the device notes what it was.
pub fn noted(gpu: &Gpu) -> impl Fn(GpuError) -> CudaError {
    use cudarc::driver::{DriverError, sys::CUresult};
    |error| {
        let code = match error {
            GpuError::Memory { .. } => CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            GpuError::NoDevice(_) => CUresult::CUDA_ERROR_NO_DEVICE,
            GpuError::Failed { .. } | GpuError::Compile { .. } => CUresult::CUDA_ERROR_LAUNCH_FAILED,
        };
        gpu.note(error);
        CudaError::Driver(DriverError(code))
    }
}

/// As an error of ours.
pub fn failed(error: CudaError) -> GpuError {
    GpuError::Failed { what: "making a tensor".into(), why: error.to_string() }
}

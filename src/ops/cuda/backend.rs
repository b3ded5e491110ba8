//! Our differentiable operations on dfdx tensors of a GPU: the same kernels that the encoder uses.

use std::{
    collections::HashMap,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cudarc::driver::{DevicePtr, DriverError, sys::CUresult};
use dfdx::prelude::*;

use super::{Gpu, GpuError, Scalar, address::address, nvidia::Nvidia};
use crate::ops::{
    batch_norm::{
        BatchNormKernel, Moments, Normalised, RunningStatistics, WeightBias,
        cuda::{MomentsGpu, Normalised as Kept, Params, ResidualGpu, Rows},
    },
    contrast::ContrastKernel,
    conv2d::{
        Conv2d, Size,
        cuda::{Math, OnGpu},
    },
    group_dots::GroupDotsKernel,
    linear::LinearKernel,
    normalize::{self, NormalizeKernel},
    seam::{Buffer, Matrix},
};

/// Whether linear layers of heads and losses may use tf32.
static TF32: AtomicBool = AtomicBool::new(false);

/// Allows linear layers on dfdx tensors to read 10 bits of mantissa, or not.
pub fn allow_tf32(allow: bool) {
    TF32.store(allow, Ordering::Relaxed);
}

/// Our side of a dfdx device.
///
/// # Errors
/// When the device fails.
pub fn gpu(cuda: &Cuda) -> Result<Gpu, CudaError> {
    static GPUS: OnceLock<Mutex<HashMap<usize, Gpu>>> = OnceLock::new();
    let ordinal = Nvidia::ordinal(cuda).map_err(error)?;
    let mut gpus = GPUS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = gpus.get(&ordinal) {
        return Ok(gpu.clone());
    }
    let gpu = Gpu::new(Nvidia::new(cuda).map_err(error)?);
    gpus.insert(ordinal, gpu.clone());
    Ok(gpu)
}

/// As an error of dfdx's, whose variants are fixed; the text goes to stderr.
fn error(error: GpuError) -> CudaError {
    eprintln!("{error}");
    let code = match error {
        GpuError::Memory { .. } => CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        GpuError::NoDevice(_) => CUresult::CUDA_ERROR_NO_DEVICE,
        GpuError::Failed { .. } | GpuError::Compile { .. } => CUresult::CUDA_ERROR_LAUNCH_FAILED,
    };
    CudaError::Driver(DriverError(code))
}

/// A tensor whose values lie in the order of its axes, as kernels read them: itself, where they do.
fn contiguous(x: &Matrix<f32, Cuda>) -> Result<Matrix<f32, Cuda>, CudaError> {
    x.clone().try_contiguous()
}

/// A linear layer is a 1x1 convolution of images of one pixel.
fn layer(gpu: &Gpu, rows: usize, input: usize, output: usize) -> (Conv2d, OnGpu<'_>) {
    let math = if TF32.load(Ordering::Relaxed) { Math::Tf32 } else { Math::F32 };
    let conv =
        Conv2d { kernel: 1, stride: 1, padding: 0, input, output, products: crate::ops::product::Products::Full };
    (conv, OnGpu { gpu, math, size: Size { n: rows, h: 1, w: 1 } })
}

impl LinearKernel<f32> for Cuda {
    fn linear_forward(&self, x: &Matrix<f32, Self>, w: &Matrix<f32, Self>) -> Result<Matrix<f32, Self>, CudaError> {
        let ((n, input), (out, w_input)) = (*x.shape(), *w.shape());
        assert_eq!(input, w_input);
        let (x, w, gpu) = (&contiguous(x)?, &contiguous(w)?, gpu(self)?);
        let y = self.try_zeros_like(&(n, out))?;
        let (conv, on) = layer(&gpu, n, input, out);
        conv.forward_gpu(on, address(x), address(w), address(&y), false).map_err(error)?;
        Ok(y)
    }

    fn linear_backward_x(
        &self,
        w: &Matrix<f32, Self>,
        gx: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let (out, input) = *w.shape();
        let (w, gpu) = (&contiguous(w)?, gpu(self)?);
        let (conv, on) = layer(&gpu, rows, input, out);
        conv.backward_data_gpu(on, *gy.device_ptr(), address(w), *gx.device_ptr(), true).map_err(error)
    }

    fn linear_backward_w(
        &self,
        x: &Matrix<f32, Self>,
        gw: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
        out: usize,
    ) -> Result<(), CudaError> {
        let (rows, input) = *x.shape();
        let (x, gpu) = (&contiguous(x)?, gpu(self)?);
        let (conv, on) = layer(&gpu, rows, input, out);
        conv.backward_weight_gpu(on, address(x), *gy.device_ptr(), *gw.device_ptr()).map_err(error)
    }
}

/// As compositions of dfdx's operations.
impl ContrastKernel<f32> for Cuda {}
impl GroupDotsKernel<f32> for Cuda {}

impl NormalizeKernel<f32> for Cuda {
    fn normalize_forward(&self, x: &Matrix<f32, Self>) -> Result<Matrix<f32, Self>, CudaError> {
        let (rows, dim) = *x.shape();
        let x = &contiguous(x)?;
        let y = self.try_zeros_like(&(rows, dim))?;
        normalize::cuda::forward(&gpu(self)?, address(x), [rows, dim], address(&y), 0).map_err(error)?;
        Ok(y)
    }

    fn normalize_backward(
        &self,
        x: &Matrix<f32, Self>,
        y: &Matrix<f32, Self>,
        gx: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
    ) -> Result<(), CudaError> {
        let (rows, dim) = *x.shape();
        let kept = contiguous(x)?;
        let inputs = [address(&kept), address(y), *gy.device_ptr()];
        normalize::cuda::backward(&gpu(self)?, inputs, [rows, dim], *gx.device_ptr()).map_err(error)
    }
}

fn params(weight_bias: Option<&WeightBias<f32, Cuda>>) -> Params {
    weight_bias.map_or_else(Params::default, |(w, b)| Params { weight: address(w), bias: address(b) })
}

/// The statistics of a head's batch norm come to the host, where its running statistics live: a wait per layer.
impl BatchNormKernel<f32> for Cuda {
    fn batch_norm_forward(
        &self,
        x: &Matrix<f32, Self>,
        weight_bias: Option<&WeightBias<f32, Self>>,
        running: RunningStatistics<f32>,
    ) -> Result<Normalised<f32, Self>, CudaError> {
        let (rows, channels) = *x.shape();
        let (kept_x, gpu) = (contiguous(x)?, gpu(self)?);
        let on = Rows { gpu: &gpu, scalar: Scalar::F32, rows, channels };
        let found = on.moments(address(&kept_x), params(weight_bias), [0, 0]).map_err(error)?;
        let y = self.try_zeros_like(&(rows, channels))?;
        on.apply(address(&kept_x), found.affine.at(), ResidualGpu::None, false, address(&y)).map_err(error)?;
        let values: Vec<f32> = found.moments.read().map_err(error)?;
        let part = |i: usize| values[i * channels..(i + 1) * channels].to_vec();
        let moments = Moments { mean: part(0), var: part(1), inv_std: part(2), rows };
        moments.update_running(running.mean, running.var);
        Ok((y, moments))
    }

    fn batch_norm_backward(
        &self,
        x: &Matrix<f32, Self>,
        moments: &Moments<f32>,
        weight_bias: Option<&WeightBias<f32, Self>>,
        gy: &Buffer<f32, Self>,
        gradients: &mut Gradients<f32, Self>,
    ) -> Result<(), CudaError> {
        let (rows, channels) = *x.shape();
        let (kept_x, gpu) = (contiguous(x)?, gpu(self)?);
        let on = Rows { gpu: &gpu, scalar: Scalar::F32, rows, channels };
        let values = [&moments.mean[..], &moments.var, &moments.inv_std].concat();
        let kept = MomentsGpu {
            moments: gpu.upload(&values).map_err(error)?,
            affine: gpu.take(2 * channels * 4).map_err(error)?,
        };
        let mut g_params = Params::default();
        if let Some((weight, bias)) = weight_bias {
            g_params.weight = *gradients.get_or_alloc_mut(weight)?.device_ptr();
            g_params.bias = *gradients.get_or_alloc_mut(bias)?.device_ptr();
        }
        let gx = *gradients.get_or_alloc_mut(x)?.device_ptr();
        let of = Kept { x: address(&kept_x), moments: &kept, output: 0 };
        on.backward(of, params(weight_bias), g_params, [*gy.device_ptr(), 0, gx], true).map_err(error)
    }
}

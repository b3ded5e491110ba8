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
        BatchNormKernel, Normalised, Running, WeightBias,
        cuda::{MomentsGpu, Normalised as Kept, Params, ResidualGpu, Rows},
    },
    contrast::{ContrastKernel, Logits, Pairs, PerRow, cuda::ContrastGpu},
    conv2d::{
        Conv2d, Size,
        cuda::{Math, OnGpu},
    },
    group_dots::GroupDotsKernel,
    later::{Later, ReadLater},
    linear::{LinearKernel, linear},
    normalize::{self, NormalizeKernel},
    over_batch::BatchKernel,
    product::Products,
    seam::{Buffer, Matrix, Traced, traced},
    sinkhorn::{self, Sinkhorn, SinkhornKernel},
    softmax::SoftmaxKernel,
    weight::Weights,
};

/// Whether linear layers of heads and losses may use tf32.
static TF32: AtomicBool = AtomicBool::new(false);

/// Allows linear layers on dfdx tensors to read 10 bits of mantissa, or not.
pub fn allow_tf32(allow: bool) {
    TF32.store(allow, Ordering::Relaxed);
}

/// The arithmetic of linear layers of heads and losses.
fn math() -> Math {
    if TF32.load(Ordering::Relaxed) { Math::Tf32 } else { Math::F32 }
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

impl ReadLater<f32> for Cuda {
    fn read_later<S: Shape>(tensor: &Tensor<S, f32, Self>) -> Result<Later<Vec<f32>>, CudaError> {
        let gpu = gpu(tensor.device())?;
        // A copy that is made here may go at once: its memory is used again by later work alone.
        let contiguous = tensor.clone().try_contiguous()?;
        gpu.read_later(address(&contiguous), contiguous.shape().num_elements()).map_err(error)
    }
}

/// A linear layer is a 1x1 convolution of images of one pixel.
fn layer(gpu: &Gpu, rows: usize, input: usize, output: usize) -> (Conv2d, OnGpu<'_>) {
    let conv = Conv2d { kernel: 1, stride: 1, padding: 0, input, output, products: Products::Full };
    (conv, OnGpu { gpu, math: math(), size: Size { n: rows, h: 1, w: 1 } })
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

impl Weights<f32> for Cuda {
    type Weight = Matrix<f32, Self>;

    fn layer<T: Tape<f32, Self> + Merge<T>>(
        x: Matrix<f32, Self, T>,
        w: &Matrix<f32, Self>,
    ) -> Result<Matrix<f32, Self, T>, CudaError> {
        linear(x, w.clone().put_tape(T::default()))
    }

    fn matrix(&self, w: &Matrix<f32, Self>) -> Result<Matrix<f32, Self>, CudaError> {
        Ok(w.clone())
    }

    fn weight(tensor: Matrix<f32, Self>) -> Matrix<f32, Self> {
        tensor
    }

    fn weight_gradient(
        &self,
        w: &Matrix<f32, Self>,
        gradients: &mut Gradients<f32, Self>,
    ) -> Result<Matrix<f32, Self>, CudaError> {
        gradients.try_alloc_for(w)?;
        Ok(gradients.get(w))
    }
}

impl ContrastKernel<f32> for Cuda {
    fn contrast<R: Tape<f32, Self>>(
        anchors: Traced<f32, Self>,
        candidates: Matrix<f32, Self, R>,
        pairs: Pairs,
        tau: f32,
    ) -> Result<Logits<f32, Self>, CudaError>
    where
        OwnedTape<f32, Self>: Merge<R>,
    {
        let (anchors, tape) = anchors.split_tape();
        let (candidates, candidates_tape) = candidates.split_tape();
        let mut tape = tape.merge(candidates_tape);
        let (gpu, (n, dim), m) = (gpu(anchors.device())?, *anchors.shape(), candidates.shape().0);
        let all: PerRow<f32, Self> = anchors.device().try_zeros_like(&(n,))?;
        let own: Matrix<f32, Self> = anchors.device().try_zeros_like(&(n, pairs.own))?;
        let (a, c) = (contiguous(&anchors)?, contiguous(&candidates)?);
        let logits = ContrastGpu::new(&gpu, math(), [n, m, dim], pairs, tau);
        logits.forward([address(&a), address(&c)], [address(&all), address(&own)]).map_err(error)?;
        let (kept, own_ghost, gpu) = (all.clone(), own.ghost(), gpu.clone());
        tape.add_backward_op(move |gradients| {
            let slopes = [
                *gradients.get_or_alloc_mut(&kept)?.device_ptr(),
                *gradients.get_or_alloc_mut(&own_ghost)?.device_ptr(),
            ];
            let g_anchors = *gradients.get_or_alloc_mut(&anchors)?.device_ptr();
            let g_candidates = if R::OWNS_TAPE { *gradients.get_or_alloc_mut(&candidates)?.device_ptr() } else { 0 };
            let logits = ContrastGpu::new(&gpu, math(), [n, m, dim], pairs, tau);
            logits
                .backward([address(&a), address(&c)], address(&kept), slopes, [g_anchors, g_candidates])
                .map_err(error)
        });
        Ok((all.put_tape(tape), traced(own)))
    }
}

/// As compositions of dfdx's operations.
impl GroupDotsKernel<f32> for Cuda {}
impl SoftmaxKernel<f32> for Cuda {}
impl BatchKernel<f32> for Cuda {}

impl SinkhornKernel<f32> for Cuda {
    fn assign(
        scores: &Matrix<f32, Self>,
        beside: Option<&Matrix<f32, Self>>,
        settings: Sinkhorn,
    ) -> Result<Matrix<f32, Self>, CudaError> {
        let (device, (n, columns)) = (scores.device(), *scores.shape());
        let y = device.try_zeros_like(&(n, columns))?;
        let (own, beside) = (contiguous(scores)?, beside.map(contiguous).transpose()?);
        let rows = |of: &Matrix<f32, Self>| sinkhorn::cuda::Scores { at: address(of), rows: of.shape().0 };
        let beside = beside.as_ref().map_or(sinkhorn::cuda::Scores { at: 0, rows: 0 }, rows);
        sinkhorn::cuda::assign(&gpu(device)?, settings, columns, [beside, rows(&own)], address(&y)).map_err(error)?;
        Ok(y)
    }
}

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

impl BatchNormKernel<f32> for Cuda {
    type Running = super::Buffer;
    type Moments = MomentsGpu;

    fn batch_norm_forward(
        &self,
        x: &Matrix<f32, Self>,
        weight_bias: Option<&WeightBias<f32, Self>>,
        running: Running<f32, Self>,
    ) -> Result<Normalised<f32, Self>, CudaError> {
        let (rows, channels) = *x.shape();
        let (kept_x, gpu) = (contiguous(x)?, gpu(self)?);
        let on = Rows { gpu: &gpu, scalar: Scalar::F32, rows, channels };
        let running = [running.mean, running.var].map(|at| running.all.at() + 4 * at.start as u64);
        let found = on.moments(address(&kept_x), params(weight_bias), running).map_err(error)?;
        let y = self.try_zeros_like(&(rows, channels))?;
        on.apply(address(&kept_x), found.affine.at(), ResidualGpu::None, false, address(&y)).map_err(error)?;
        Ok((y, found))
    }

    fn batch_norm_backward(
        &self,
        x: &Matrix<f32, Self>,
        moments: &MomentsGpu,
        weight_bias: Option<&WeightBias<f32, Self>>,
        gy: &Buffer<f32, Self>,
        gradients: &mut Gradients<f32, Self>,
    ) -> Result<(), CudaError> {
        let (rows, channels) = *x.shape();
        let (kept_x, gpu) = (contiguous(x)?, gpu(self)?);
        let on = Rows { gpu: &gpu, scalar: Scalar::F32, rows, channels };
        let mut g_params = Params::default();
        if let Some((weight, bias)) = weight_bias {
            g_params.weight = *gradients.get_or_alloc_mut(weight)?.device_ptr();
            g_params.bias = *gradients.get_or_alloc_mut(bias)?.device_ptr();
        }
        let gx = *gradients.get_or_alloc_mut(x)?.device_ptr();
        let of = Kept { x: address(&kept_x), moments, output: 0 };
        on.backward(of, params(weight_bias), g_params, [*gy.device_ptr(), 0, gx], true).map_err(error)
    }
}

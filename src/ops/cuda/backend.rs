//! Our differentiable operations on dfdx tensors of a GPU: the same kernels that the encoder uses.

use std::{
    collections::HashMap,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cudarc::driver::{DriverError, sys::CUresult};
use dfdx::prelude::*;

use super::{
    Contiguous, Gpu, GpuError, Scalar, Viewed,
    address::{lasting, of_storage},
    nvidia::Nvidia,
};
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

impl ReadLater<f32> for Cuda {
    fn read_later<S: Shape>(tensor: &Tensor<S, f32, Self>) -> Result<Later<Vec<f32>>, CudaError> {
        let gpu = gpu(tensor.device())?;
        // A copy that is made here may go at once: its memory is used again by later work alone.
        gpu.read_later(Contiguous::of(tensor)?.view()).map_err(error)
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
        let (x, w, gpu) = (Contiguous::of(x)?, Contiguous::of(w)?, gpu(self)?);
        let y = Contiguous::zeros(self, (n, out))?;
        let (conv, on) = layer(&gpu, n, input, out);
        conv.forward_gpu(on, x.view(), w.view(), y.view(), false).map_err(error)?;
        Ok(y.tensor())
    }

    fn linear_backward_x(
        &self,
        w: &Matrix<f32, Self>,
        gx: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let (out, input) = *w.shape();
        let (w, gpu) = (Contiguous::of(w)?, gpu(self)?);
        let (conv, on) = layer(&gpu, rows, input, out);
        conv.backward_data_gpu(on, of_storage(gy), w.view(), of_storage(gx), true).map_err(error)
    }

    fn linear_backward_w(
        &self,
        x: &Matrix<f32, Self>,
        gw: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
        out: usize,
    ) -> Result<(), CudaError> {
        let (rows, input) = *x.shape();
        let (x, gpu) = (Contiguous::of(x)?, gpu(self)?);
        let (conv, on) = layer(&gpu, rows, input, out);
        conv.backward_weight_gpu(on, x.view(), of_storage(gy), of_storage(gw)).map_err(error)
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
        let all = Contiguous::zeros(anchors.device(), (n,))?;
        let own = Contiguous::zeros(anchors.device(), (n, pairs.own))?;
        let (a, c) = (Contiguous::of(&anchors)?, Contiguous::of(&candidates)?);
        let logits = ContrastGpu::new(&gpu, math(), [n, m, dim], pairs, tau);
        logits.forward([a.view(), c.view()], [all.view(), own.view()]).map_err(error)?;
        let (all, own): (PerRow<f32, Self>, Matrix<f32, Self>) = (all.tensor(), own.tensor());
        let (kept, all_ghost, own_ghost, gpu) = (Contiguous::of(&all)?, all.ghost(), own.ghost(), gpu.clone());
        tape.add_backward_op(move |gradients| {
            // SAFETY: of all four: dfdx lets the storage go with the gradients alone, which outlive this step.
            let of = |storage: &mut Buffer<f32, Self>| unsafe { lasting(storage) };
            let slopes = [of(gradients.get_or_alloc_mut(&all_ghost)?), of(gradients.get_or_alloc_mut(&own_ghost)?)];
            let g_anchors = of(gradients.get_or_alloc_mut(&anchors)?);
            let g_candidates = if R::OWNS_TAPE { Some(of(gradients.get_or_alloc_mut(&candidates)?)) } else { None };
            let logits = ContrastGpu::new(&gpu, math(), [n, m, dim], pairs, tau);
            logits.backward([a.view(), c.view()], kept.view(), slopes, g_anchors, g_candidates).map_err(error)
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
        let y = Contiguous::zeros(device, (n, columns))?;
        let (own, beside) = (Contiguous::of(scores)?, beside.map(Contiguous::of).transpose()?);
        let beside = beside.as_ref().map(Viewed::view);
        sinkhorn::cuda::assign(&gpu(device)?, settings, columns, beside, own.view(), y.view()).map_err(error)?;
        Ok(y.tensor())
    }
}

impl NormalizeKernel<f32> for Cuda {
    fn normalize_forward(&self, x: &Matrix<f32, Self>) -> Result<Matrix<f32, Self>, CudaError> {
        let (rows, dim) = *x.shape();
        let (x, y) = (Contiguous::of(x)?, Contiguous::zeros(self, (rows, dim))?);
        normalize::cuda::forward(&gpu(self)?, x.view(), [rows, dim], y.view(), None).map_err(error)?;
        Ok(y.tensor())
    }

    fn normalize_backward(
        &self,
        x: &Matrix<f32, Self>,
        y: &Matrix<f32, Self>,
        gx: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
    ) -> Result<(), CudaError> {
        let (rows, dim) = *x.shape();
        let (x, y) = (Contiguous::of(x)?, Contiguous::of(y)?);
        let inputs = [x.view(), y.view(), of_storage(gy)];
        normalize::cuda::backward(&gpu(self)?, inputs, [rows, dim], of_storage(gx)).map_err(error)
    }
}

/// Weight and bias as kernels read them.
struct Parameters([Contiguous<(usize,)>; 2]);

impl Parameters {
    fn of(weight_bias: Option<&WeightBias<f32, Cuda>>) -> Result<Option<Self>, CudaError> {
        weight_bias.map(|(w, b)| Ok(Self([Contiguous::of(w)?, Contiguous::of(b)?]))).transpose()
    }

    fn views(&self) -> Params<'_> {
        Params { weight: self.0[0].view(), bias: self.0[1].view() }
    }
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
        let (x, params, gpu) = (Contiguous::of(x)?, Parameters::of(weight_bias)?, gpu(self)?);
        let on = Rows { gpu: &gpu, scalar: Scalar::F32, rows, channels };
        let all = running.all.view();
        let running = [running.mean, running.var].map(|range| all.part(range));
        let params = params.as_ref().map(Parameters::views);
        let found = on.moments(x.view(), params, Some(running)).map_err(error)?;
        let y = Contiguous::zeros(self, (rows, channels))?;
        on.apply(x.view(), found.affine.view(), ResidualGpu::None, false, y.view()).map_err(error)?;
        Ok((y.tensor(), found))
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
        let (kept_x, params, gpu) = (Contiguous::of(x)?, Parameters::of(weight_bias)?, gpu(self)?);
        let on = Rows { gpu: &gpu, scalar: Scalar::F32, rows, channels };
        // SAFETY: of all three: dfdx lets the storage go with the gradients alone, which outlive this step.
        let of = |storage: &mut Buffer<f32, Self>| unsafe { lasting(storage) };
        let mut g_params = None;
        if let Some((weight, bias)) = weight_bias {
            g_params = Some(Params {
                weight: of(gradients.get_or_alloc_mut(weight)?),
                bias: of(gradients.get_or_alloc_mut(bias)?),
            });
        }
        let gx = of(gradients.get_or_alloc_mut(x)?);
        let of = Kept { x: kept_x.view(), moments, output: None };
        let params = params.as_ref().map(Parameters::views);
        on.backward(of, params, g_params, of_storage(gy), None, (gx, true)).map_err(error)
    }
}

//! Our differentiable operations on dfdx tensors of a GPU: the same kernels that the encoder uses.

use cudarc::driver::{DriverError, sys::CUresult};
use dfdx::prelude::*;

use super::{
    Contiguous, Gpu, GpuError, Viewed,
    address::{lasting, of_storage},
    nvidia,
};
use crate::ops::{
    contrast::{ContrastKernel, Logits, Pairs, PerRow, cuda::ContrastGpu},
    conv2d::{
        Conv2d, Size,
        cuda::{Math, OnGpu},
    },
    group_dots::GroupDotsKernel,
    later::{Later, ReadLater},
    linear::LinearKernel,
    normalize::{self, NormalizeKernel},
    over_batch::BatchKernel,
    product::Products,
    sinkhorn::{self, Sinkhorn, SinkhornKernel},
    softmax::SoftmaxKernel,
    tensor::{Buffer, Matrix, Traced, traced},
};

/// As an error of dfdx's, whose variants are fixed: the device notes what it was.
fn error(gpu: &Gpu) -> impl Fn(GpuError) -> CudaError {
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

/// Our side of a dfdx device.
fn gpu(cuda: &Cuda) -> Result<Gpu, CudaError> {
    nvidia::gpu(cuda).map_err(|_| CudaError::Driver(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)))
}

impl ReadLater<f32> for Cuda {
    fn read_later<S: Shape>(tensor: &Tensor<S, f32, Self>) -> Result<Later<Vec<f32>>, CudaError> {
        let gpu = gpu(tensor.device())?;
        // A copy that is made here may go at once: its memory is used again by later work alone.
        gpu.read_later(Contiguous::of(tensor)?.view()).map_err(error(&gpu))
    }
}

/// A linear layer is a 1x1 convolution of images of one pixel.
fn layer(gpu: &Gpu, rows: usize, input: usize, output: usize) -> (Conv2d, OnGpu<'_>) {
    let conv = Conv2d { kernel: 1, stride: 1, padding: 0, input, output, products: Products::Full };
    (conv, OnGpu { gpu, math: Math::F32, size: Size { n: rows, h: 1, w: 1 } })
}

impl LinearKernel<f32> for Cuda {
    fn linear_forward(&self, x: &Matrix<f32, Self>, w: &Matrix<f32, Self>) -> Result<Matrix<f32, Self>, CudaError> {
        let ((n, input), (out, w_input)) = (*x.shape(), *w.shape());
        assert_eq!(input, w_input);
        let (x, w, gpu) = (Contiguous::of(x)?, Contiguous::of(w)?, gpu(self)?);
        let y = Contiguous::zeros(self, (n, out))?;
        let (conv, on) = layer(&gpu, n, input, out);
        conv.forward_gpu(on, x.view(), w.view(), y.view(), false).map_err(error(&gpu))?;
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
        conv.backward_data_gpu(on, of_storage(gy), w.view(), of_storage(gx), true).map_err(error(&gpu))
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
        conv.backward_weight_gpu(on, x.view(), of_storage(gy), of_storage(gw)).map_err(error(&gpu))
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
        let logits = ContrastGpu::new(&gpu, Math::F32, [n, m, dim], pairs, tau);
        logits.forward([a.view(), c.view()], [all.view(), own.view()]).map_err(error(&gpu))?;
        let (all, own): (PerRow<f32, Self>, Matrix<f32, Self>) = (all.tensor(), own.tensor());
        let (kept, all_ghost, own_ghost, gpu) = (Contiguous::of(&all)?, all.ghost(), own.ghost(), gpu.clone());
        tape.add_backward_op(move |gradients| {
            // SAFETY: of all four: dfdx lets the storage go with the gradients alone, which outlive this step.
            let of = |storage: &mut Buffer<f32, Self>| unsafe { lasting(storage) };
            let slopes = [of(gradients.get_or_alloc_mut(&all_ghost)?), of(gradients.get_or_alloc_mut(&own_ghost)?)];
            let g_anchors = of(gradients.get_or_alloc_mut(&anchors)?);
            let g_candidates = if R::OWNS_TAPE { Some(of(gradients.get_or_alloc_mut(&candidates)?)) } else { None };
            let logits = ContrastGpu::new(&gpu, Math::F32, [n, m, dim], pairs, tau);
            logits.backward([a.view(), c.view()], kept.view(), slopes, g_anchors, g_candidates).map_err(error(&gpu))
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
        let gpu = gpu(device)?;
        sinkhorn::cuda::assign(&gpu, settings, columns, beside, own.view(), y.view()).map_err(error(&gpu))?;
        Ok(y.tensor())
    }
}

impl NormalizeKernel<f32> for Cuda {
    fn normalize_forward(&self, x: &Matrix<f32, Self>) -> Result<Matrix<f32, Self>, CudaError> {
        let (rows, dim) = *x.shape();
        let (x, y) = (Contiguous::of(x)?, Contiguous::zeros(self, (rows, dim))?);
        let gpu = gpu(self)?;
        normalize::cuda::forward(&gpu, x.view(), [rows, dim], y.view(), None).map_err(error(&gpu))?;
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
        let gpu = gpu(self)?;
        normalize::cuda::backward(&gpu, inputs, [rows, dim], of_storage(gx)).map_err(error(&gpu))
    }
}

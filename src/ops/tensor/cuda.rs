//! The losses' operations on a GPU through the CUDA driver, with the same kernels as the encoder, in f32.
//!
//! dfdx keeps the storage of tensors private, but gives access to the storage of gradients. So a tensor with our values is
//! created as a gradient, which costs a copy. To read a tensor that dfdx made, it is multiplied by ones: the gradient of the ones
//! then equals the tensor exactly. This costs a few passes over the values.

use std::{
    collections::HashMap,
    rc::Rc,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use cudarc::driver::{CudaDevice, DevicePtr, DeviceSlice, DriverError, sys::CUresult};
use dfdx::prelude::*;

use super::{
    Buffer, GpuTensors, Logits, Matrix, Rows, TensorDevice, Traced, TracedPerRow, TracedRows, TracedScalar, traced,
};
#[cfg(feature = "nccl")]
use crate::ops::cuda::Wire;
use crate::ops::{
    contrast::{self, Pairs, cuda::ContrastGpu},
    conv2d::{
        Conv2d, Size,
        cuda::{Math, OnGpu as Pass},
    },
    cuda::{Buffer as OnGpu, Gpu, GpuError, Kind, View, nvidia},
    matmul::MatmulPrecision,
    normalize,
    pending::Pending,
    sinkhorn::{self, Sinkhorn},
};

/// Opens dfdx's device with the number `index`.
///
/// # Errors
/// When there is no such device, or it is too old.
pub fn open(index: usize) -> Result<Cuda, GpuError> {
    nvidia::check(index)?;
    Cuda::try_build(index, 0).map_err(|error| GpuError::NoDevice(format!("cuda:{index}: {error:?}")))
}

/// The [`Gpu`] of a dfdx device, on the same stream. It is the same one for all calls with the same device number.
///
/// # Errors
/// When the device fails.
pub fn gpu(cuda: &Cuda) -> Result<Gpu, GpuError> {
    static GPUS: OnceLock<Mutex<HashMap<usize, Gpu>>> = OnceLock::new();
    let device = raw(cuda)?;
    let ordinal = device.ordinal();
    let mut gpus = GPUS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = gpus.get(&ordinal) {
        return Ok(gpu.clone());
    }
    let gpu = Gpu::new(nvidia::Nvidia::new(device)?);
    gpus.insert(ordinal, gpu.clone());
    Ok(gpu)
}

/// Joins the ranks of `id` by NCCL, on the stream of a dfdx device. Blocks until all ranks have joined.
///
/// # Errors
/// When NCCL cannot reach the other ranks, or two ranks have the same GPU.
#[cfg(feature = "nccl")]
pub fn join_by_nccl(cuda: &Cuda, place: [usize; 2], id: nvidia::nccl::Id) -> Result<Arc<dyn Wire>, GpuError> {
    Ok(Arc::new(nvidia::nccl::Nccl::join(raw(cuda)?, place, id)?))
}

/// The cudarc device of a dfdx device. dfdx keeps it private, but a storage gives access to its device.
fn raw(cuda: &Cuda) -> Result<Arc<CudaDevice>, GpuError> {
    let storage: <Cuda as Storage<f32>>::Vec =
        cuda.try_alloc_len(1).map_err(|error| GpuError::NoDevice(format!("{error:?}")))?;
    Ok(storage.device())
}

/// A view of a dfdx storage, e.g. of a gradient.
fn of_storage(values: &<Cuda as Storage<f32>>::Vec) -> View<'_> {
    // SAFETY: the view borrows the storage, which therefore stays in place while the view is used.
    unsafe { lasting(values) }
}

/// A view of a dfdx storage, with a lifetime that the caller chooses.
///
/// # Safety
/// The storage must stay where it is as long as the view is used.
unsafe fn lasting<'a>(values: &<Cuda as Storage<f32>>::Vec) -> View<'a> {
    // SAFETY: the storage has `len` elements, and stays in place, as the caller promises.
    unsafe { View::foreign(*values.device_ptr(), Kind::F32, values.len()) }
}

/// A tensor with a copy of the values of a view.
fn tensor<S: Shape>(cuda: &Cuda, gpu: &Gpu, values: View, shape: S) -> Result<Tensor<S, f32, Cuda>, GpuError> {
    let like = cuda.try_zeros_like(&shape).map_err(failed)?;
    let mut gradients = Gradients::leaky();
    gpu.copy(values, of_storage(gradients.get_or_alloc_mut(&like).map_err(failed)?))?;
    Ok(gradients.get(&like))
}

/// The values of a tensor that dfdx made.
fn values(tensor: &Matrix<f32, Cuda>) -> Result<Rc<OnGpu>, CudaError> {
    let gpu = ours(tensor.device())?;
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

/// The [`Gpu`] of a dfdx device, with dfdx's error type.
fn ours(cuda: &Cuda) -> Result<Gpu, CudaError> {
    gpu(cuda).map_err(|_| CudaError::Driver(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)))
}

/// Converts our errors to dfdx's, whose variants are fixed. The GPU keeps the original error (see [`Gpu::note`]).
fn noted(gpu: &Gpu) -> impl Fn(GpuError) -> CudaError {
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

/// Converts an error of dfdx to ours.
fn failed(error: CudaError) -> GpuError {
    GpuError::Failed { what: "making a tensor".into(), why: error.to_string() }
}

/// Rows from values that one of our kernels wrote.
fn rows(cuda: &Cuda, gpu: &Gpu, values: OnGpu, shape: (usize, usize)) -> Result<Rows<f32, Cuda>, CudaError> {
    let tensor = tensor(cuda, gpu, values.view(), shape).map_err(noted(gpu))?;
    Ok(Rows::new(tensor, Rc::new(values)))
}

/// Memory for n rows.
fn take(gpu: &Gpu, (n, columns): (usize, usize)) -> Result<OnGpu, CudaError> {
    gpu.take(Kind::F32, n * columns).map_err(noted(gpu))
}

/// A linear layer is a 1x1 convolution of images of one pixel.
fn layer(gpu: &Gpu, rows: usize, input: usize, output: usize) -> (Conv2d, Pass<'_>) {
    let conv = Conv2d { kernel: 1, stride: 1, padding: 0, input, output, matmul: MatmulPrecision::Full };
    (conv, Pass { gpu, math: Math::F32, size: Size { n: rows, h: 1, w: 1 }, parts: 1 })
}

impl TensorDevice<f32> for Cuda {
    type Values = Rc<OnGpu>;

    fn values(tensor: &Matrix<f32, Self>) -> Result<Rc<OnGpu>, CudaError> {
        values(tensor)
    }

    fn read_later(tensor: &Matrix<f32, Self>) -> Result<Pending<Vec<f32>>, CudaError> {
        // The copied values may be dropped at once: only later work on the stream uses their memory again.
        values(tensor)?.read_later().map_err(noted(&ours(tensor.device())?))
    }

    fn read_rows_later(rows: &Rows<f32, Self>) -> Result<Pending<Vec<f32>>, CudaError> {
        rows.values().read_later().map_err(noted(&ours(rows.device())?))
    }

    fn linear_forward(x: &Rows<f32, Self>, w: &Rows<f32, Self>) -> Result<Rows<f32, Self>, CudaError> {
        let ((n, input), (out, w_input)) = (x.shape(), w.shape());
        assert_eq!(input, w_input);
        let gpu = ours(x.device())?;
        let (y, (conv, on)) = (take(&gpu, (n, out))?, layer(&gpu, n, input, out));
        conv.forward_gpu(on, x.values().view(), w.values().view(), y.view(), false).map_err(noted(&gpu))?;
        rows(x.device(), &gpu, y, (n, out))
    }

    fn linear_backward_x(
        w: &Rows<f32, Self>,
        gx: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let ((out, input), gpu) = (w.shape(), ours(w.device())?);
        let (conv, on) = layer(&gpu, rows, input, out);
        let gx = of_storage(gx);
        conv.backward_data_gpu(on, of_storage(gy), w.values().view(), gx, true).map_err(noted(&gpu))
    }

    fn linear_backward_w(
        x: &Rows<f32, Self>,
        gw: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
        out: usize,
    ) -> Result<(), CudaError> {
        let ((rows, input), gpu) = (x.shape(), ours(x.device())?);
        let (conv, on) = layer(&gpu, rows, input, out);
        conv.backward_weight_gpu(on, x.values().view(), of_storage(gy), of_storage(gw)).map_err(noted(&gpu))
    }

    fn normalize_forward(x: &Rows<f32, Self>) -> Result<Rows<f32, Self>, CudaError> {
        let ((n, dim), gpu) = (x.shape(), ours(x.device())?);
        let y = take(&gpu, (n, dim))?;
        normalize::cuda::forward(&gpu, x.values().view(), [n, dim], y.view(), None).map_err(noted(&gpu))?;
        rows(x.device(), &gpu, y, (n, dim))
    }

    fn normalize_backward(
        x: &Rows<f32, Self>,
        y: &Rows<f32, Self>,
        gx: &mut Buffer<f32, Self>,
        gy: &Buffer<f32, Self>,
    ) -> Result<(), CudaError> {
        let ((n, dim), gpu) = (x.shape(), ours(x.device())?);
        let inputs = [x.values().view(), y.values().view(), of_storage(gy)];
        normalize::cuda::backward(&gpu, inputs, [n, dim], of_storage(gx)).map_err(noted(&gpu))
    }

    fn contrast<R: Tape<f32, Self>>(
        anchors: TracedRows<f32, Self>,
        candidates: Rows<f32, Self, R>,
        pairs: Pairs,
        tau: f64,
    ) -> Result<Logits<f32, Self>, CudaError>
    where
        OwnedTape<f32, Self>: Merge<R>,
    {
        let (anchors, tape) = anchors.split_tape();
        let (candidates, candidates_tape) = candidates.split_tape();
        let mut tape = tape.merge(candidates_tape);
        let (cuda, (n, dim), m) = (anchors.device().clone(), anchors.shape(), candidates.shape().0);
        let tau = tau as f32;
        let gpu = ours(&cuda)?;
        let (kept, own) = (take(&gpu, (n, 1))?, take(&gpu, (n, pairs.own))?);
        let inputs = [anchors.values().view(), candidates.values().view()];
        let logits = ContrastGpu::new(&gpu, Math::F32, [n, m, dim], pairs, tau);
        logits.forward(inputs, [kept.view(), own.view()]).map_err(noted(&gpu))?;
        let all: Tensor<(usize,), f32, Self> = tensor(&cuda, &gpu, kept.view(), (n,)).map_err(noted(&gpu))?;
        let own = tensor(&cuda, &gpu, own.view(), (n, pairs.own)).map_err(noted(&gpu))?;
        let (all_ghost, own_ghost) = (all.ghost(), own.ghost());
        tape.add_backward_op(move |gradients| {
            // SAFETY: for all four views: dfdx frees the storage only together with the gradients, which outlive this step.
            let of = |storage: &mut Buffer<f32, Self>| unsafe { lasting(storage) };
            let slopes = [of(gradients.get_or_alloc_mut(&all_ghost)?), of(gradients.get_or_alloc_mut(&own_ghost)?)];
            let g_anchors = of(gradients.get_or_alloc_mut(anchors.tensor())?);
            let g_candidates =
                if R::OWNS_TAPE { Some(of(gradients.get_or_alloc_mut(candidates.tensor())?)) } else { None };
            let inputs = [anchors.values().view(), candidates.values().view()];
            let logits = ContrastGpu::new(&gpu, Math::F32, [n, m, dim], pairs, tau);
            logits.backward(inputs, kept.view(), slopes, g_anchors, g_candidates).map_err(noted(&gpu))
        });
        Ok((all.put_tape(tape), traced(own)))
    }

    fn interleave(a: &Rows<f32, Self>, b: &Rows<f32, Self>) -> Result<Rows<f32, Self>, CudaError> {
        let ((n, dim), k, gpu) = (a.shape(), b.shape().0 / a.shape().0, ours(a.device())?);
        let both = take(&gpu, (n * (k + 1), dim))?;
        let inputs = [a.values().view(), b.values().view()];
        contrast::cuda::interleave(&gpu, inputs, [n, k, dim], both.view()).map_err(noted(&gpu))?;
        rows(a.device(), &gpu, both, (n * (k + 1), dim))
    }

    fn scale_rows(of: &Rows<f32, Self>, factors: &Rows<f32, Self>) -> Result<Rows<f32, Self>, CudaError> {
        let ((n, dim), gpu) = (of.shape(), ours(of.device())?);
        let scaled = take(&gpu, (n, dim))?;
        let inputs = [of.values().view(), factors.values().view()];
        contrast::cuda::scale_rows(&gpu, inputs, [n, dim], scaled.view()).map_err(noted(&gpu))?;
        rows(of.device(), &gpu, scaled, (n, dim))
    }

    fn assign(
        scores: &Rows<f32, Self>,
        beside: Option<&Rows<f32, Self>>,
        settings: Sinkhorn,
    ) -> Result<Matrix<f32, Self>, CudaError> {
        let ((n, columns), gpu) = (scores.shape(), ours(scores.device())?);
        let (y, beside) = (take(&gpu, (n, columns))?, beside.map(|rows| rows.values().view()));
        sinkhorn::cuda::assign(&gpu, settings, columns, beside, scores.values().view(), y.view())
            .map_err(noted(&gpu))?;
        tensor(scores.device(), &gpu, y.view(), (n, columns)).map_err(noted(&gpu))
    }

    // The methods below are compositions of dfdx's operations.

    fn group_dots(a: Traced<f32, Self>, b: Traced<f32, Self>) -> Result<Traced<f32, Self>, CudaError> {
        let ((n, width), k) = (*a.shape(), b.shape().0 / a.shape().0);
        let b: Tensor<(usize, usize, usize), f32, Self, _> = b.try_reshape_like(&(n, k, width))?;
        let a = a.try_broadcast_like::<_, Axis<1>>(&(n, k, width))?;
        a.try_mul(b)?.try_sum::<(usize, usize), Axis<2>>()
    }

    #[allow(clippy::disallowed_methods, reason = "the GPU does not use the C library")]
    fn log_sum_exp(s: Traced<f32, Self>) -> Result<TracedPerRow<f32, Self>, CudaError> {
        s.try_logsumexp::<(usize,), Axis<1>>()
    }

    #[allow(clippy::disallowed_methods, reason = "the GPU does not use the C library")]
    fn log_softmax(s: Traced<f32, Self>) -> Result<Traced<f32, Self>, CudaError> {
        s.try_log_softmax::<Axis<1>>()
    }

    fn cross_entropy(
        s: Traced<f32, Self>,
        q: Matrix<f32, Self>,
        tau: f64,
    ) -> Result<TracedPerRow<f32, Self>, CudaError> {
        Self::log_softmax(s.try_div(tau as f32)?)?.try_mul(q)?.try_sum::<(usize,), Axis<1>>()?.try_negate()
    }

    #[allow(clippy::disallowed_methods, reason = "the GPU does not use the C library")]
    fn exp(x: Traced<f32, Self>) -> Result<Traced<f32, Self>, CudaError> {
        x.try_exp()
    }

    #[allow(clippy::disallowed_methods, reason = "a GPU sums as it likes")]
    fn batch_mean(x: TracedPerRow<f32, Self>) -> Result<TracedScalar<f32, Self>, CudaError> {
        x.try_mean::<Rank0, _>()
    }
}

impl GpuTensors for Cuda {
    fn rows_at(&self, gpu: &Gpu, at: View, shape: (usize, usize)) -> Result<Rows<f32, Self>, GpuError> {
        let values = gpu.take(Kind::F32, shape.0 * shape.1)?;
        gpu.copy(at, values.view())?;
        let tensor = tensor(self, gpu, values.view(), shape)?;
        Ok(Rows::new(tensor, Rc::new(values)))
    }

    fn lend(_: &Gpu, rows: &Rows<f32, Self>) -> Result<Rc<OnGpu>, GpuError> {
        Ok(rows.values().clone())
    }

    fn read_gradient(
        gpu: &Gpu,
        gradients: &mut Gradients<f32, Self>,
        of: &Matrix<f32, Self>,
    ) -> Result<OnGpu, GpuError> {
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

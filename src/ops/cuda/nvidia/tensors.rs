//! Our differentiable operations on dfdx tensors of a GPU: the same kernels that the encoder uses, in f32.

use std::rc::Rc;

use dfdx::prelude::*;

use super::adapter::{self, failed, gpu, lasting, noted, of_storage};
use crate::ops::{
    contrast::{self, ContrastKernel, Logits, Pairs, PerRow, cuda::ContrastGpu},
    conv2d::{
        Conv2d, Size,
        cuda::{Math, OnGpu as Pass},
    },
    cuda::{Bridge, Buffer as OnGpu, Gpu, GpuError, Kind, View},
    group_dots::GroupDotsKernel,
    later::{Later, ReadLater},
    linear::LinearKernel,
    normalize::{self, NormalizeKernel},
    over_batch::BatchKernel,
    product::Products,
    sinkhorn::{self, Sinkhorn, SinkhornKernel},
    softmax::SoftmaxKernel,
    tensor::{Buffer, Matrix, Rows, Seen, TracedRows, traced},
};

impl Seen<f32> for Cuda {
    type Values = Rc<OnGpu>;

    fn values(tensor: &Matrix<f32, Self>) -> Result<Rc<OnGpu>, CudaError> {
        adapter::values(tensor)
    }
}

/// What one of our kernels wrote, as rows.
fn rows(cuda: &Cuda, gpu: &Gpu, values: OnGpu, shape: (usize, usize)) -> Result<Rows<f32, Cuda>, CudaError> {
    let tensor = adapter::tensor(cuda, gpu, values.view(), shape).map_err(noted(gpu))?;
    Ok(Rows::new(tensor, Rc::new(values)))
}

/// Room for rows.
fn take(gpu: &Gpu, (n, columns): (usize, usize)) -> Result<OnGpu, CudaError> {
    gpu.take(Kind::F32, n * columns).map_err(noted(gpu))
}

impl ReadLater<f32> for Cuda {
    fn read_later(tensor: &Matrix<f32, Self>) -> Result<Later<Vec<f32>>, CudaError> {
        // The copy may go at once: its memory is used again by later work alone.
        adapter::values(tensor)?.read_later().map_err(noted(&gpu(tensor.device())?))
    }

    fn read_rows_later(rows: &Rows<f32, Self>) -> Result<Later<Vec<f32>>, CudaError> {
        rows.values().read_later().map_err(noted(&gpu(rows.device())?))
    }
}

/// A linear layer is a 1x1 convolution of images of one pixel.
fn layer(gpu: &Gpu, rows: usize, input: usize, output: usize) -> (Conv2d, Pass<'_>) {
    let conv = Conv2d { kernel: 1, stride: 1, padding: 0, input, output, products: Products::Full };
    (conv, Pass { gpu, math: Math::F32, size: Size { n: rows, h: 1, w: 1 } })
}

impl LinearKernel<f32> for Cuda {
    fn linear_forward(x: &Rows<f32, Self>, w: &Rows<f32, Self>) -> Result<Rows<f32, Self>, CudaError> {
        let ((n, input), (out, w_input)) = (x.shape(), w.shape());
        assert_eq!(input, w_input);
        let gpu = gpu(x.device())?;
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
        let ((out, input), gpu) = (w.shape(), gpu(w.device())?);
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
        let ((rows, input), gpu) = (x.shape(), gpu(x.device())?);
        let (conv, on) = layer(&gpu, rows, input, out);
        conv.backward_weight_gpu(on, x.values().view(), of_storage(gy), of_storage(gw)).map_err(noted(&gpu))
    }
}

impl ContrastKernel<f32> for Cuda {
    fn contrast<R: Tape<f32, Self>>(
        anchors: TracedRows<f32, Self>,
        candidates: Rows<f32, Self, R>,
        pairs: Pairs,
        tau: f32,
    ) -> Result<Logits<f32, Self>, CudaError>
    where
        OwnedTape<f32, Self>: Merge<R>,
    {
        let (anchors, tape) = anchors.split_tape();
        let (candidates, candidates_tape) = candidates.split_tape();
        let mut tape = tape.merge(candidates_tape);
        let (cuda, (n, dim), m) = (anchors.device().clone(), anchors.shape(), candidates.shape().0);
        let gpu = gpu(&cuda)?;
        let (kept, own) = (take(&gpu, (n, 1))?, take(&gpu, (n, pairs.own))?);
        let inputs = [anchors.values().view(), candidates.values().view()];
        let logits = ContrastGpu::new(&gpu, Math::F32, [n, m, dim], pairs, tau);
        logits.forward(inputs, [kept.view(), own.view()]).map_err(noted(&gpu))?;
        let all: PerRow<f32, Self> = adapter::tensor(&cuda, &gpu, kept.view(), (n,)).map_err(noted(&gpu))?;
        let own = adapter::tensor(&cuda, &gpu, own.view(), (n, pairs.own)).map_err(noted(&gpu))?;
        let (all_ghost, own_ghost) = (all.ghost(), own.ghost());
        tape.add_backward_op(move |gradients| {
            // SAFETY: of all four: dfdx lets the storage go with the gradients alone, which outlive this step.
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
        let ((n, dim), k, gpu) = (a.shape(), b.shape().0 / a.shape().0, gpu(a.device())?);
        let both = take(&gpu, (n * (k + 1), dim))?;
        let inputs = [a.values().view(), b.values().view()];
        contrast::cuda::interleave(&gpu, inputs, [n, k, dim], both.view()).map_err(noted(&gpu))?;
        rows(a.device(), &gpu, both, (n * (k + 1), dim))
    }

    fn scale_rows(of: &Rows<f32, Self>, factors: &Rows<f32, Self>) -> Result<Rows<f32, Self>, CudaError> {
        let ((n, dim), gpu) = (of.shape(), gpu(of.device())?);
        let scaled = take(&gpu, (n, dim))?;
        let inputs = [of.values().view(), factors.values().view()];
        contrast::cuda::scale_rows(&gpu, inputs, [n, dim], scaled.view()).map_err(noted(&gpu))?;
        rows(of.device(), &gpu, scaled, (n, dim))
    }
}

/// As compositions of dfdx's operations.
impl GroupDotsKernel<f32> for Cuda {}
impl SoftmaxKernel<f32> for Cuda {}
impl BatchKernel<f32> for Cuda {}

impl SinkhornKernel<f32> for Cuda {
    fn assign(
        scores: &Rows<f32, Self>,
        beside: Option<&Rows<f32, Self>>,
        settings: Sinkhorn,
    ) -> Result<Matrix<f32, Self>, CudaError> {
        let ((n, columns), gpu) = (scores.shape(), gpu(scores.device())?);
        let (y, beside) = (take(&gpu, (n, columns))?, beside.map(|rows| rows.values().view()));
        sinkhorn::cuda::assign(&gpu, settings, columns, beside, scores.values().view(), y.view())
            .map_err(noted(&gpu))?;
        adapter::tensor(scores.device(), &gpu, y.view(), (n, columns)).map_err(noted(&gpu))
    }
}

impl NormalizeKernel<f32> for Cuda {
    fn normalize_forward(x: &Rows<f32, Self>) -> Result<Rows<f32, Self>, CudaError> {
        let ((n, dim), gpu) = (x.shape(), gpu(x.device())?);
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
        let ((n, dim), gpu) = (x.shape(), gpu(x.device())?);
        let inputs = [x.values().view(), y.values().view(), of_storage(gy)];
        normalize::cuda::backward(&gpu, inputs, [n, dim], of_storage(gx)).map_err(noted(&gpu))
    }
}

impl Bridge<f32> for Cuda {
    fn rows_at(&self, gpu: &Gpu, at: View, shape: (usize, usize)) -> Result<Rows<f32, Self>, GpuError> {
        let values = gpu.take(Kind::F32, shape.0 * shape.1)?;
        gpu.copy(at, values.view())?;
        let tensor = adapter::tensor(self, gpu, values.view(), shape)?;
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

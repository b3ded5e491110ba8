//! Convolutions on a GPU.

use super::{Gpu, Params};
use crate::{
    backend::{
        Branch, Convolutions, Learned, Memory, Residual, Source, Statistics,
        layers::{BatchNorm, ConvNorm},
    },
    ops::{
        batch_norm::cuda::{MomentsGpu, Normalised, Params as Affine, ResidualGpu, Rows},
        conv2d::{Size, cuda::MOMENT_ROWS},
        cuda::{Buffer, GpuError, Kind, View},
        parts::parts,
        pool::{self, cuda::Images},
        tensor::GpuTensors,
    },
};

/// A convolution's output, and the batch norm to apply to it.
#[derive(Debug)]
pub struct Normed {
    raw: Buffer,
    by: By,
    channels: usize,
    /// Number of parts of the batch in this rank's images.
    parts: usize,
}

/// A normalisation: by the batch's statistics, or by the running ones.
#[derive(Debug)]
enum By {
    Batch(MomentsGpu),
    Running(Buffer),
}

impl Normed {
    fn affine(&self) -> View<'_> {
        match &self.by {
            By::Batch(moments) => moments.affine.view(),
            By::Running(affine) => affine.view(),
        }
    }
}

/// A convolution's output after batch norm and ReLU; also the output before them, if a backward pass needs it.
#[derive(Debug)]
pub struct Inner {
    output: Buffer,
    normed: Option<Normed>,
}

fn read<'a, D>(x: &Source<'a, Gpu<D>>) -> View<'a>
where
    Gpu<D>: Convolutions<Buffer = Buffer, Inner = Inner>,
{
    match x {
        Source::Plain(x) => x.view(),
        Source::Inner(x) => x.output.view(),
    }
}

/// A norm's weight and bias.
pub(super) fn affine_of<'a>(layer: &BatchNorm, params: &'a Params) -> Option<Affine<'a>> {
    layer.affine.as_ref().map(|[weight, bias]| Affine { weight: params.of(weight), bias: params.of(bias) })
}

/// The gradients of a norm's weight and bias.
pub(super) fn gradients_of<'a>(layer: &BatchNorm, gradients: &'a Buffer) -> Option<Affine<'a>> {
    let part = |range: &std::ops::Range<usize>| gradients.view().part(range.clone());
    layer.affine.as_ref().map(|[weight, bias]| Affine { weight: part(weight), bias: part(bias) })
}

impl<D: GpuTensors> Gpu<D> {
    fn rows(&self, len: usize, channels: usize, parts: usize) -> Rows<'_> {
        Rows { gpu: self.device(), scalar: self.scalar(), rows: len / channels, channels, parts }
    }

    /// Gathers batch norm's sums from all ranks that share statistics. Each rank's sums are a branch of the tree over parts.
    fn gather_branches(&self, own: Buffer) -> Result<Buffer, GpuError> {
        self.exchange.gather_group(self.device(), own)
    }

    fn pixels(&self, size: Size, channels: usize) -> Images<'_> {
        Images { gpu: self.device(), scalar: self.scalar(), size, channels }
    }

    fn apply(&self, x: &Normed, residual: ResidualGpu) -> Result<Buffer, GpuError> {
        let (raw, y) = (x.raw.view(), x.raw.take_alike()?);
        self.rows(raw.len(), x.channels, x.parts).apply(raw, x.affine(), residual, true, y.view())?;
        Ok(y)
    }

    /// Replaces `g`, the gradient of the norm's output, or of `output` after its ReLU if given, by the gradient of the norm's
    /// input. `masked` receives the gradient of the ReLU's input. The gradients of weight and bias are sums over all ranks that
    /// share statistics, so only the first of these ranks adds them.
    fn through_norm(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: &Normed,
        output: Option<&Buffer>,
        g: &Buffer,
        masked: Option<&Buffer>,
    ) -> Result<(), GpuError> {
        let By::Batch(moments) = &x.by else {
            unreachable!("only what was normalised by the batch's statistics has a backward pass");
        };
        let g = g.view();
        let of = Normalised { x: x.raw.view(), moments, output: output.map(Buffer::view) };
        let gradients = gradients_of(layer, learned.gradients).filter(|_| self.ranks().is_first_of_group());
        let (params, rows) = (affine_of(layer, learned.params), self.rows(g.len(), x.channels, x.parts));
        rows.backward(of, params, gradients, g, masked.map(Buffer::view), (g, false), &|own| self.gather_branches(own))
    }
}

impl<D: GpuTensors> Convolutions for Gpu<D> {
    type Normed = Normed;
    type Inner = Inner;
    type Argmax = Buffer;

    fn conv_norm(
        &self,
        layer: &ConvNorm,
        branch: &mut Branch<Self>,
        x: Source<Self>,
        size: Size,
    ) -> Result<Normed, GpuError> {
        let ConvNorm { conv, kernel, norm } = layer;
        let raw = self.take(conv.output_size(size).pixels() * conv.output)?;
        let (on, weight) = (self.over(size), branch.params.factors(kernel));
        let known = match &branch.statistics {
            Statistics::Batch(_) => conv.forward_moments_gpu(on, read(&x), weight, raw.view())?,
            Statistics::Running(_) => {
                conv.forward_gpu(on, read(&x), weight, raw.view(), false)?;
                None
            }
        };
        let running = norm.running.clone().map(|range| branch.statistics.all().view().part(range));
        let (parts, params) = (parts(size.n), affine_of(norm, branch.params));
        let rows = self.rows(raw.view().len(), conv.output, parts);
        let by = match &branch.statistics {
            Statistics::Batch(_) => {
                let known = known.map(|pieces| (pieces, MOMENT_ROWS));
                By::Batch(rows.moments(raw.view(), known, params, Some(running), &|own| self.gather_branches(own))?)
            }
            Statistics::Running(_) => By::Running(rows.eval(params, running)?),
        };
        Ok(Normed { raw, by, channels: conv.output, parts })
    }

    fn inner(&self, x: Normed, keep: bool) -> Result<Inner, GpuError> {
        let output = self.apply(&x, ResidualGpu::None)?;
        Ok(Inner { output, normed: keep.then_some(x) })
    }

    fn output(&self, x: &Normed, residual: Residual<Self>) -> Result<Buffer, GpuError> {
        self.apply(
            x,
            match residual {
                Residual::None => ResidualGpu::None,
                Residual::Plain(x) => ResidualGpu::Plain(x.view()),
                Residual::Normed(x) => ResidualGpu::Normalised(x.raw.view(), x.affine()),
            },
        )
    }

    fn norm_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Normed,
        output: Option<&Buffer>,
        g: Buffer,
    ) -> Result<Buffer, GpuError> {
        self.through_norm(layer, learned, &x, output, &g, None)?;
        Ok(g)
    }

    fn output_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Normed,
        output: Buffer,
        g: Buffer,
    ) -> Result<[Buffer; 2], GpuError> {
        let masked = g.take_alike()?;
        self.through_norm(layer, learned, &x, Some(&output), &g, Some(&masked))?;
        Ok([g, masked])
    }

    fn inner_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Inner,
        g: Buffer,
    ) -> Result<Buffer, GpuError> {
        let normed = x.normed.expect("kept for the backward pass");
        self.through_norm(layer, learned, &normed, Some(&x.output), &g, None)?;
        Ok(g)
    }

    fn conv_backward(
        &self,
        layer: &ConvNorm,
        learned: &mut Learned<Self>,
        x: Source<Self>,
        size: Size,
        g: &Buffer,
        onto: Option<Buffer>,
    ) -> Result<Buffer, GpuError> {
        let (ConvNorm { conv, kernel, .. }, accumulate) = (layer, onto.is_some());
        conv.backward_weight_gpu(self.over(size), read(&x), g.view(), learned.gradients.view().part(kernel.clone()))?;
        let gx = onto.map_or_else(|| self.take(size.pixels() * conv.input), Ok)?;
        let weight = learned.params.factors(kernel);
        conv.backward_data_gpu(self.over(size), g.view(), weight, gx.view(), accumulate)?;
        Ok(gx)
    }

    fn conv_backward_weight(
        &self,
        layer: &ConvNorm,
        learned: &mut Learned<Self>,
        x: &Buffer,
        size: Size,
        g: &Buffer,
    ) -> Result<(), GpuError> {
        let gradient = learned.gradients.view().part(layer.kernel.clone());
        layer.conv.backward_weight_gpu(self.over(size), x.view(), g.view(), gradient)
    }

    fn max_pool(&self, x: &Buffer, size: Size, channels: usize) -> Result<(Buffer, Buffer), GpuError> {
        let len = pool::pooled(size).pixels() * channels;
        let (y, argmax) = (self.take(len)?, self.device().take(Kind::U8, len)?);
        self.pixels(size, channels).max_pool(x.view(), y.view(), argmax.view())?;
        Ok((y, argmax))
    }

    fn max_pool_backward(&self, g: &Buffer, argmax: &Buffer, size: Size, channels: usize) -> Result<Buffer, GpuError> {
        let gx = self.take(size.pixels() * channels)?;
        self.pixels(size, channels).max_pool_backward(g.view(), argmax.view(), gx.view())?;
        Ok(gx)
    }

    fn average_pool(&self, x: &Buffer, size: Size, channels: usize) -> Result<Buffer, GpuError> {
        let features = self.take_reals(size.n * channels)?;
        self.pixels(size, channels).average_pool(x.view(), features.view())?;
        Ok(features)
    }

    fn average_pool_backward(&self, g: &Buffer, size: Size, channels: usize) -> Result<Buffer, GpuError> {
        let gx = self.take(size.pixels() * channels)?;
        self.pixels(size, channels).average_pool_backward(g.view(), gx.view())?;
        Ok(gx)
    }
}

//! Transformers on a GPU. All images pass through a block together.

use std::ops::Range;

use super::Gpu;
use crate::{
    backend::{
        Learned, Transformers,
        layers::{Block, Embedding, LayerNorm, Linear},
        transformers::block::{self, Kept, Layer, Norm, Operations, Types},
    },
    ops::{
        attention::{
            Attention,
            cuda::{Attended, Samples},
        },
        conv2d::{
            Size,
            cuda::{Added, Bias, OnGpu as Pass},
        },
        cuda::{Buffer, GpuError, Scalar, View},
        gelu::cuda::{gelu, gelu_backward},
        layer_norm::cuda::NormRows,
        parts::parts,
        reductions::cuda::add_column_sums,
        tensor::GpuTensors,
        tokens::cuda::{Tokens, interpolate},
    },
};

/// The input rows of a layer norm, and their statistics.
#[derive(Debug)]
pub struct Normed {
    x: Buffer,
    statistics: Buffer,
}

/// The types of a block's rows on a GPU.
pub struct OnGpu;

impl Types for OnGpu {
    type Rows = Buffer;
    type Normed = Normed;
    /// Queries, keys and values side by side, [.., 3 width].
    type Qkv = Buffer;
    /// The log of each softmax's denominator, for the backward pass of the attention.
    type Weights = Buffer;
}

impl<D: GpuTensors> Gpu<D> {
    fn tokens(&self, [samples, tokens]: [usize; 2], width: usize) -> Tokens<'_> {
        Tokens { gpu: self.device(), scalar: self.scalar(), samples, tokens, width }
    }

    fn norm_rows<'a>(
        &'a self,
        layer: &LayerNorm,
        params: &'a super::Params,
        scalar: Scalar,
        x: &Buffer,
    ) -> NormRows<'a> {
        let (weight, bias) = (params.of(&layer.weight), params.of(&layer.bias));
        let dim = layer.weight.len();
        NormRows { gpu: self.device(), scalar, rows: x.view().len() / dim, dim, weight, bias }
    }

    /// The normalised rows, and `x` with its statistics.
    fn normalise(
        &self,
        layer: &LayerNorm,
        params: &super::Params,
        scalar: Scalar,
        x: Buffer,
    ) -> Result<(Buffer, Normed), GpuError> {
        let (on, y) = (self.norm_rows(layer, params, scalar, &x), x.take_alike()?);
        let statistics = on.take_statistics()?;
        on.forward(x.view(), statistics.view(), y.view())?;
        Ok((y, Normed { x, statistics }))
    }
}

/// The gradients of a norm's weight and bias.
fn gradients_of<'a>(layer: &LayerNorm, gradients: &'a Buffer) -> [View<'a>; 2] {
    [&layer.weight, &layer.bias].map(|range| gradients.view().part(range.clone()))
}

impl<D: GpuTensors> Transformers for Gpu<D> {
    type Tokens = Buffer;
    type KeptBlock = Kept<OnGpu>;
    type KeptNorm = Normed;

    fn embed(
        &self,
        layer: &Embedding,
        params: &super::Params,
        buffers: &Buffer,
        images: &Buffer,
        size: Size,
    ) -> Result<Buffer, GpuError> {
        let (width, grid) = (layer.width(), layer.grid_of(size));
        let embedded = self.take(grid.pixels() * width)?;
        let weight = params.factors(&layer.weight);
        layer.patches.forward_gpu(self.over(size), images.view(), weight, embedded.view(), false)?;
        let own = buffers.view().part(layer.positions.clone());
        let other = match (grid.h, grid.w) == (layer.grid, layer.grid) {
            true => None,
            false => Some(interpolate(self.device(), own, layer.grid, [grid.h, grid.w], width)?),
        };
        let positions = other.as_ref().map_or(own, Buffer::view);
        let tokens = self.tokens([size.n, layer.tokens(size)], width);
        let x = self.take(tokens.samples * tokens.tokens * width)?;
        let learned = [&layer.cls_token, &layer.bias].map(|range| params.of(range));
        tokens.embed(embedded.view(), positions, learned, x.view())?;
        Ok(x)
    }

    fn embed_backward(
        &self,
        layer: &Embedding,
        learned: &mut Learned<Self>,
        images: &Buffer,
        size: Size,
        g: Buffer,
    ) -> Result<(), GpuError> {
        let (width, gpu) = (layer.width(), self.device());
        let gradient = |range: &Range<usize>| learned.gradients.view().part(range.clone());
        let tokens = self.tokens([size.n, layer.tokens(size)], width);
        let g_cls = self.take_reals(size.n * width)?;
        tokens.class_tokens(g.view(), g_cls.view())?;
        add_column_sums(gpu, Scalar::F32, g_cls.view(), [size.n, width], parts(size.n), gradient(&layer.cls_token))?;
        if layer.frozen {
            return Ok(());
        }
        let patches = layer.grid_of(size).pixels();
        let g_patches = self.take(patches * width)?;
        tokens.patch_tokens(g.view(), g_patches.view())?;
        add_column_sums(gpu, self.scalar(), g_patches.view(), [patches, width], parts(size.n), gradient(&layer.bias))?;
        let weight = gradient(&layer.weight);
        layer.patches.backward_weight_gpu(self.over(size), images.view(), g_patches.view(), weight)
    }

    fn block(
        &self,
        layer: &Block,
        params: &super::Params,
        shape: [usize; 2],
        x: Buffer,
        keep: bool,
    ) -> Result<(Buffer, Option<Kept<OnGpu>>), GpuError> {
        let (y, kept) = block::forward(&BlockOnGpu { gpu: self, layer, params, gradients: None, shape }, x)?;
        Ok((y, keep.then_some(kept)))
    }

    fn block_backward(
        &self,
        layer: &Block,
        learned: &mut Learned<Self>,
        shape: [usize; 2],
        kept: Kept<OnGpu>,
        g: Buffer,
    ) -> Result<Buffer, GpuError> {
        let gradients = Some(learned.gradients.view());
        block::backward(&mut BlockOnGpu { gpu: self, layer, params: learned.params, gradients, shape }, kept, g)
    }

    fn class_tokens(&self, shape: [usize; 2], x: Buffer) -> Result<Buffer, GpuError> {
        let width = x.view().len() / (shape[0] * shape[1]);
        let cls = self.take_reals(shape[0] * width)?;
        self.tokens(shape, width).class_tokens(x.view(), cls.view())?;
        Ok(cls)
    }

    fn class_tokens_backward(&self, shape: [usize; 2], g: Buffer) -> Result<Buffer, GpuError> {
        let width = g.view().len() / shape[0];
        let all = self.take(shape[0] * shape[1] * width)?;
        self.tokens(shape, width).spread_class_tokens(g.view(), all.view())?;
        Ok(all)
    }

    fn layer_norm(&self, layer: &LayerNorm, params: &super::Params, x: Buffer) -> Result<(Buffer, Normed), GpuError> {
        self.normalise(layer, params, Scalar::F32, x)
    }

    fn layer_norm_backward(
        &self,
        layer: &LayerNorm,
        learned: &mut Learned<Self>,
        n: usize,
        kept: Normed,
        g: &Buffer,
    ) -> Result<Buffer, GpuError> {
        let (gx, of) = (kept.x.take_alike()?, [kept.x.view(), kept.statistics.view()]);
        let on = self.norm_rows(layer, learned.params, Scalar::F32, &kept.x);
        on.backward(of, g.view(), gx.view(), false, parts(n), gradients_of(layer, learned.gradients))?;
        Ok(gx)
    }
}

/// A block and the shape of the images that pass through it.
struct BlockOnGpu<'a, D> {
    gpu: &'a Gpu<D>,
    layer: &'a Block,
    params: &'a super::Params,
    /// The gradients of all parameters, in a backward pass.
    gradients: Option<View<'a>>,
    shape: [usize; 2],
}

impl<'a, D: GpuTensors> BlockOnGpu<'a, D> {
    fn samples(&self) -> Samples<'a> {
        Samples { gpu: self.gpu.device(), math: self.gpu.math(), samples: self.shape[0] }
    }

    fn attend(&self) -> Attention {
        self.layer.attention(self.shape[1])
    }

    /// Rows as pixels.
    fn pixels(&self) -> Size {
        Size { n: self.shape[0] * self.shape[1], h: 1, w: 1 }
    }

    /// A pass over all rows.
    fn over(&self) -> Pass<'a> {
        Pass { parts: self.parts(), ..self.gpu.over(self.pixels()) }
    }

    /// Number of parts of the batch in the images.
    fn parts(&self) -> usize {
        parts(self.shape[0])
    }

    fn take(&self, columns: usize) -> Result<Buffer, GpuError> {
        self.gpu.take(self.pixels().n * columns)
    }

    fn norm(&self, norm: Norm) -> &'a LayerNorm {
        match norm {
            Norm::First => &self.layer.norm1,
            Norm::Second => &self.layer.norm2,
        }
    }

    fn norm_rows(&self, norm: Norm, x: &Buffer) -> NormRows<'a> {
        self.gpu.norm_rows(self.norm(norm), self.params, self.gpu.scalar(), x)
    }

    fn linear_of(&self, layer: Layer) -> &'a Linear {
        match layer {
            Layer::Proj => &self.layer.proj,
            Layer::Fc1 => &self.layer.fc1,
            Layer::Fc2 => &self.layer.fc2,
        }
    }

    fn gradient(&self, range: &Range<usize>) -> View<'a> {
        self.gradients.expect("a backward pass has gradients").part(range.clone())
    }

    /// y = x w^T + bias, plus the tensor `added` if given.
    fn forward(&self, layer: &Linear, x: &Buffer, added: Option<&Buffer>) -> Result<Buffer, GpuError> {
        let y = self.take(layer.output)?;
        let bias = Bias { exact: self.params.of(&layer.bias), stored: self.params.factors(&layer.bias) };
        let added = Added { bias: Some(bias), tensor: added.map(Buffer::view) };
        let (on, weight) = (self.over(), self.params.factors(&layer.weight));
        layer.pointwise().forward_added_gpu(on, x.view(), weight, added, y.view())?;
        Ok(y)
    }

    /// gx = g w.
    fn backward(&self, layer: &Linear, g: &Buffer) -> Result<Buffer, GpuError> {
        let gx = self.take(layer.input)?;
        let (on, weight) = (self.over(), self.params.factors(&layer.weight));
        layer.pointwise().backward_data_gpu(on, g.view(), weight, gx.view(), false)?;
        Ok(gx)
    }

    fn add_gradients(&self, layer: &Linear, x: &Buffer, g: &Buffer) -> Result<(), GpuError> {
        let (on, rows) = (self.over(), self.pixels().n);
        layer.pointwise().backward_weight_gpu(on, x.view(), g.view(), self.gradient(&layer.weight))?;
        let (gpu, scalar) = (self.gpu.device(), self.gpu.scalar());
        add_column_sums(gpu, scalar, g.view(), [rows, layer.output], self.parts(), self.gradient(&layer.bias))
    }
}

impl<D: GpuTensors> Operations for BlockOnGpu<'_, D> {
    type Types = OnGpu;
    type Error = GpuError;

    fn layer_norm(&self, norm: Norm, x: Buffer) -> Result<(Buffer, Normed), GpuError> {
        self.gpu.normalise(self.norm(norm), self.params, self.gpu.scalar(), x)
    }

    fn normed(&self, norm: Norm, x: &Normed) -> Result<Buffer, GpuError> {
        let y = x.x.take_alike()?;
        self.norm_rows(norm, &x.x).apply(x.x.view(), x.statistics.view(), y.view())?;
        Ok(y)
    }

    fn norm_backward(&mut self, norm: Norm, x: Normed, g_normed: Buffer, g: Buffer) -> Result<Buffer, GpuError> {
        let layer = self.norm(norm);
        let gradients = [&layer.weight, &layer.bias].map(|range| self.gradient(range));
        let of = [x.x.view(), x.statistics.view()];
        self.norm_rows(norm, &x.x).backward(of, g_normed.view(), g.view(), true, self.parts(), gradients)?;
        Ok(g)
    }

    fn linear(&self, layer: Layer, x: &Buffer, residual: Option<&Normed>) -> Result<Buffer, GpuError> {
        self.forward(self.linear_of(layer), x, residual.map(|rows| &rows.x))
    }

    fn linear_backward(&self, layer: Layer, g: &Buffer) -> Result<Buffer, GpuError> {
        self.backward(self.linear_of(layer), g)
    }

    fn add_gradient(&mut self, layer: Layer, x: &Buffer, g: &Buffer) -> Result<(), GpuError> {
        self.add_gradients(self.linear_of(layer), x, g)
    }

    fn qkv(&self, x: &Buffer) -> Result<Buffer, GpuError> {
        self.forward(&self.layer.qkv, x, None)
    }

    fn qkv_backward(&mut self, x: Buffer, g: Buffer) -> Result<Buffer, GpuError> {
        self.add_gradients(&self.layer.qkv, &x, &g)?;
        self.backward(&self.layer.qkv, &g)
    }

    fn attention(&self, qkv: &Buffer) -> Result<(Buffer, Buffer), GpuError> {
        let attention = self.attend();
        let (y, logs) = (self.take(attention.width)?, attention.take_logs(self.samples())?);
        attention.forward_gpu(self.samples(), qkv.view(), y.view(), Some(logs.view()))?;
        Ok((y, logs))
    }

    fn attention_backward(&self, qkv: Buffer, (y, logs): (Buffer, Buffer), g: Buffer) -> Result<Buffer, GpuError> {
        let g_qkv = qkv.take_alike()?;
        let of = Attended { qkv: qkv.view(), y: y.view(), logs: logs.view() };
        self.attend().backward_gpu(self.samples(), of, g.view(), g_qkv.view())?;
        Ok(g_qkv)
    }

    fn gelu(&self, x: &Buffer) -> Result<Buffer, GpuError> {
        let y = x.take_alike()?;
        gelu(self.gpu.device(), self.gpu.scalar(), x.view(), y.view())?;
        Ok(y)
    }

    fn gelu_backward(&self, x: Buffer, g: &mut Buffer) -> Result<Buffer, GpuError> {
        let y = x.take_alike()?;
        gelu_backward(self.gpu.device(), self.gpu.scalar(), x.view(), g.view(), y.view())?;
        Ok(y)
    }
}

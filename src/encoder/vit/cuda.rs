//! A vision transformer on a GPU: the same passes as on the CPU, and what they keep, on the device.

use super::{
    Block, Linear, Norm, Vit,
    layers::pixels,
    tokens::{Tokens, interpolate},
};
use crate::{
    encoder::cuda::Arenas,
    ops::{
        attention::cuda::{Attended, Samples},
        columns::cuda::add_column_sums,
        conv2d::{
            Size,
            cuda::{Added, OnGpu},
        },
        cuda::{Buffer, GpuError, Kind, Scalar, View},
        gelu::cuda::{gelu, gelu_backward},
        layer_norm::cuda::NormRows,
    },
};

/// What the backward pass needs of a forward pass.
#[derive(Debug)]
pub struct SavedGpu {
    size: Size,
    blocks: Vec<SavedBlock>,
    /// Class tokens before the last norm (f32).
    cls: Normed,
}

/// A layer norm's input and its rows' statistics.
#[derive(Debug)]
struct Normed {
    x: Buffer,
    statistics: Buffer,
}

/// One block's intermediate results. Outputs of norms and of the GELU, and the attention's weights, are computed again.
#[derive(Debug)]
struct SavedBlock {
    input: Normed,
    qkv: Buffer,
    /// The attention's output, before `proj`, and the logs beside it.
    attended: Buffer,
    logs: Buffer,
    /// Input of the perceptron's half.
    middle: Normed,
    /// Output of `fc1`, before the GELU.
    hidden: Buffer,
}

impl Vit {
    /// Features [n, width] (f32) of images [n, h, w, 3] in the arithmetic's storage; with `keep`, what
    /// the backward pass needs, too. Training, momentum branch and evaluation compute the same.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_gpu(
        &self,
        on: &Arenas,
        images: View,
        size: Size,
        keep: bool,
    ) -> Result<(Buffer, Option<SavedGpu>), GpuError> {
        let pass = Pass { net: self, on, tokens: self.tokens(on, size) };
        let mut x = pass.embed(images, size)?;
        let mut blocks = Vec::new();
        for block in &self.blocks {
            let (output, saved) = pass.block(block, x)?;
            blocks.extend(Some(saved).filter(|_| keep));
            x = output;
        }
        let width = self.shape.width;
        let cls = on.gpu.take(Kind::F32, size.n * width)?;
        pass.tokens.class_tokens(x.view(), cls.view())?;
        drop(x);
        let features = on.gpu.take(Kind::F32, size.n * width)?;
        let cls = pass.normalise(&self.norm, Scalar::F32, size.n, cls, &features)?;
        Ok((features, keep.then_some(SavedGpu { size, blocks, cls })))
    }

    /// Adds to `gradients` (f32, laid out like the parameters) those of one forward pass, from its features' gradient (f32);
    /// a frozen patch embedding's are left alone.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward_gpu(
        &self,
        on: &Arenas,
        images: View,
        saved: SavedGpu,
        g_features: View,
        gradients: View,
    ) -> Result<(), GpuError> {
        let SavedGpu { size, blocks, cls } = saved;
        let pass = Pass { net: self, on, tokens: self.tokens(on, size) };
        let g_cls = cls.x.take_alike()?;
        pass.norm_backward(&self.norm, Scalar::F32, size.n, &cls, [g_features, g_cls.view()], false, gradients)?;
        drop(cls);

        // Only the class tokens lead to the features.
        let g = pass.take(self.shape.width)?;
        pass.tokens.spread_class_tokens(g_cls.view(), g.view())?;
        drop(g_cls);
        for (block, kept) in self.blocks.iter().zip(blocks).rev() {
            pass.block_backward(block, kept, &g, gradients)?;
        }
        pass.embed_backward(images, size, &g, gradients)
    }

    fn tokens<'a>(&self, on: &Arenas<'a>, size: Size) -> Tokens<'a> {
        let (width, grid) = (self.shape.width, self.patches.output_size(size));
        Tokens { gpu: on.gpu, scalar: on.math.scalar(), samples: size.n, tokens: 1 + grid.h * grid.w, width }
    }
}

/// One pass under way.
struct Pass<'a> {
    net: &'a Vit,
    on: &'a Arenas<'a>,
    tokens: Tokens<'a>,
}

impl Pass<'_> {
    fn rows(&self) -> usize {
        self.tokens.samples * self.tokens.tokens
    }

    /// A buffer of so many elements per token.
    fn take(&self, elements: usize) -> Result<Buffer, GpuError> {
        self.on.gpu.take(self.tokens.scalar, self.rows() * elements)
    }

    fn samples(&self) -> Samples<'_> {
        Samples { gpu: self.on.gpu, math: self.on.math, samples: self.tokens.samples }
    }

    fn on(&self, size: Size) -> OnGpu<'_> {
        OnGpu { gpu: self.on.gpu, math: self.on.math, size }
    }

    fn norm_rows(&self, norm: &Norm, scalar: Scalar, rows: usize) -> NormRows<'_> {
        let (weight, bias) = (self.on.param(&norm.weight), self.on.param(&norm.bias));
        NormRows { gpu: self.on.gpu, scalar, rows, dim: self.net.shape.width, weight, bias }
    }

    /// y = norm(x), for rows of the tokens' width; keeps x and its statistics.
    fn normalise(&self, norm: &Norm, scalar: Scalar, rows: usize, x: Buffer, y: &Buffer) -> Result<Normed, GpuError> {
        let on = self.norm_rows(norm, scalar, rows);
        let statistics = on.take_statistics()?;
        on.forward(x.view(), statistics.view(), y.view())?;
        Ok(Normed { x, statistics })
    }

    #[allow(clippy::too_many_arguments, reason = "a norm, its rows, and where gradients come from and go to")]
    fn norm_backward(
        &self,
        norm: &Norm,
        scalar: Scalar,
        rows: usize,
        of: &Normed,
        [gy, gx]: [View; 2],
        accumulate: bool,
        gradients: View,
    ) -> Result<(), GpuError> {
        let g_params = [&norm.weight, &norm.bias].map(|range| gradients.part(range.clone()));
        let of = [of.x.view(), of.statistics.view()];
        self.norm_rows(norm, scalar, rows).backward(of, gy, gx, accumulate, g_params)
    }

    /// y [rows, output] = x w^T + bias, plus the tensor `added`, where there is one.
    fn linear(&self, layer: &Linear, x: &Buffer, added: Option<&Buffer>, y: &Buffer) -> Result<(), GpuError> {
        let added = Added { bias: Some(self.on.param(&layer.bias)), tensor: added.map(Buffer::view) };
        let (conv, on) = (layer.pointwise(), self.on(pixels(self.rows())));
        conv.forward_added_gpu(on, x.view(), self.on.kernel(&layer.weight), added, y.view())
    }

    /// gx [rows, input] = gy w.
    fn linear_backward_data(&self, layer: &Linear, gy: &Buffer, gx: &Buffer) -> Result<(), GpuError> {
        let (conv, on) = (layer.pointwise(), self.on(pixels(self.rows())));
        conv.backward_data_gpu(on, gy.view(), self.on.kernel(&layer.weight), gx.view(), false)
    }

    /// Adds the gradients of weight and bias.
    fn linear_backward_params(&self, layer: &Linear, x: &Buffer, gy: &Buffer, gradients: View) -> Result<(), GpuError> {
        let [weight, bias] = [&layer.weight, &layer.bias].map(|range| gradients.part(range.clone()));
        let (conv, on, rows) = (layer.pointwise(), self.on(pixels(self.rows())), self.rows());
        conv.backward_weight_gpu(on, x.view(), gy.view(), weight)?;
        add_column_sums(self.on.gpu, self.tokens.scalar, gy.view(), [rows, layer.output], bias)
    }

    /// The class token and the embedded patches, positions added.
    fn embed(&self, images: View, size: Size) -> Result<Buffer, GpuError> {
        let (net, patch, width) = (self.net, self.net.patches.kernel, self.net.shape.width);
        assert!(
            size.h.is_multiple_of(patch) && size.w.is_multiple_of(patch),
            "patches of {patch} do not tile {size:?}"
        );
        let grid = net.patches.output_size(size);
        let embedded = self.on.gpu.take(self.tokens.scalar, grid.pixels() * width)?;
        let weight = self.on.kernel(&net.patch_embed.weight);
        net.patches.forward_gpu(self.on(size), images, weight, embedded.view(), false)?;
        let own = self.on.buffers;
        let other = match (grid.h, grid.w) == (net.grid, net.grid) {
            true => None,
            false => Some(interpolate(self.on.gpu, own, net.grid, [grid.h, grid.w], width)?),
        };
        let positions = other.as_ref().map_or(own, Buffer::view);
        let x = self.take(width)?;
        let [cls, bias] = [&net.cls_token, &net.patch_embed.bias].map(|range| self.on.param(range));
        self.tokens.embed(embedded.view(), positions, [cls, bias], x.view())?;
        Ok(x)
    }

    /// A block's output and its intermediate results.
    fn block(&self, block: &Block, input: Buffer) -> Result<(Buffer, SavedBlock), GpuError> {
        let (width, rows, scalar) = (self.net.shape.width, self.rows(), self.tokens.scalar);
        let attention = self.net.attention(self.tokens.tokens);

        let normed = self.take(width)?;
        let input = self.normalise(&block.norm1, scalar, rows, input, &normed)?;
        let qkv = self.take(block.qkv.output)?;
        self.linear(&block.qkv, &normed, None, &qkv)?;
        let (attended, logs) = (self.take(width)?, attention.take_logs(self.samples())?);
        attention.forward_gpu(self.samples(), qkv.view(), attended.view(), Some(logs.view()))?;
        let middle = self.take(width)?;
        self.linear(&block.proj, &attended, Some(&input.x), &middle)?;

        let middle = self.normalise(&block.norm2, scalar, rows, middle, &normed)?;
        let hidden = self.take(block.fc1.output)?;
        self.linear(&block.fc1, &normed, None, &hidden)?;
        let active = self.take(block.fc1.output)?;
        gelu(self.on.gpu, scalar, hidden.view(), active.view())?;
        // The norm's output is not needed any more: its buffer becomes the block's output.
        let output = normed;
        self.linear(&block.fc2, &active, Some(&middle.x), &output)?;
        Ok((output, SavedBlock { input, qkv, attended, logs, middle, hidden }))
    }

    /// `g` goes from the gradient of the block's output to that of its input.
    fn block_backward(&self, block: &Block, kept: SavedBlock, g: &Buffer, gradients: View) -> Result<(), GpuError> {
        // The residual connection passes g on as it is; each half adds its own part.
        let (width, rows, scalar) = (self.net.shape.width, self.rows(), self.tokens.scalar);
        let SavedBlock { input, qkv, attended, logs, middle, hidden } = kept;
        let (normed, g_normed) = (self.take(width)?, self.take(width)?);

        let (active, g_hidden) = (self.take(block.fc1.output)?, self.take(block.fc1.output)?);
        self.linear_backward_data(&block.fc2, g, &g_hidden)?;
        gelu_backward(self.on.gpu, scalar, hidden.view(), g_hidden.view(), active.view())?;
        self.linear_backward_params(&block.fc2, &active, g, gradients)?;
        drop((hidden, active));
        self.norm_rows(&block.norm2, scalar, rows).apply(middle.x.view(), middle.statistics.view(), normed.view())?;
        self.linear_backward_params(&block.fc1, &normed, &g_hidden, gradients)?;
        self.linear_backward_data(&block.fc1, &g_hidden, &g_normed)?;
        drop(g_hidden);
        self.norm_backward(&block.norm2, scalar, rows, &middle, [g_normed.view(), g.view()], true, gradients)?;
        drop(middle);

        self.linear_backward_params(&block.proj, &attended, g, gradients)?;
        let g_attended = &g_normed;
        self.linear_backward_data(&block.proj, g, g_attended)?;
        let g_qkv = self.take(block.qkv.output)?;
        let of = Attended { qkv: qkv.view(), y: attended.view(), logs: logs.view() };
        let attention = self.net.attention(self.tokens.tokens);
        attention.backward_gpu(self.samples(), of, g_attended.view(), g_qkv.view())?;
        drop((qkv, attended, logs));
        self.norm_rows(&block.norm1, scalar, rows).apply(input.x.view(), input.statistics.view(), normed.view())?;
        self.linear_backward_params(&block.qkv, &normed, &g_qkv, gradients)?;
        self.linear_backward_data(&block.qkv, &g_qkv, &g_normed)?;
        self.norm_backward(&block.norm1, scalar, rows, &input, [g_normed.view(), g.view()], true, gradients)
    }

    /// Gradients of class token and patch embedding, from that of the tokens.
    fn embed_backward(&self, images: View, size: Size, g: &Buffer, gradients: View) -> Result<(), GpuError> {
        let (net, width, gpu) = (self.net, self.net.shape.width, self.on.gpu);
        let g_cls = gpu.take(Kind::F32, size.n * width)?;
        self.tokens.class_tokens(g.view(), g_cls.view())?;
        add_column_sums(gpu, Scalar::F32, g_cls.view(), [size.n, width], gradients.part(net.cls_token.clone()))?;
        if net.stop_grad_patch_embed {
            return Ok(());
        }
        let patches = net.patches.output_size(size).pixels();
        let g_patches = gpu.take(self.tokens.scalar, patches * width)?;
        self.tokens.patch_tokens(g.view(), g_patches.view())?;
        let [weight, bias] =
            [&net.patch_embed.weight, &net.patch_embed.bias].map(|range| gradients.part(range.clone()));
        add_column_sums(gpu, self.tokens.scalar, g_patches.view(), [patches, width], bias)?;
        net.patches.backward_weight_gpu(self.on(size), images, g_patches.view(), weight)
    }
}

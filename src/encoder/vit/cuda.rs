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
        cuda::{Buffer, GpuError, Scalar},
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
    /// Features [n, width] (f32) of images [n, h, w, 3] in the arithmetic's storage at address `images`; with `keep`, what
    /// the backward pass needs, too. Training, momentum branch and evaluation compute the same.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_gpu(
        &self,
        on: &Arenas,
        images: u64,
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
        let cls = on.gpu.take(size.n * width * 4)?;
        pass.tokens.class_tokens(x.at(), cls.at())?;
        drop(x);
        let features = on.gpu.take(size.n * width * 4)?;
        let cls = pass.normalise(&self.norm, Scalar::F32, size.n, cls, &features)?;
        Ok((features, keep.then_some(SavedGpu { size, blocks, cls })))
    }

    /// Adds to `gradients` (the address of an f32 buffer laid out like the parameters) those of one forward pass, from its
    /// features' gradient (f32); a frozen patch embedding's are left alone.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward_gpu(
        &self,
        on: &Arenas,
        images: u64,
        saved: SavedGpu,
        g_features: u64,
        gradients: u64,
    ) -> Result<(), GpuError> {
        let SavedGpu { size, blocks, cls } = saved;
        let pass = Pass { net: self, on, tokens: self.tokens(on, size) };
        let g_cls = on.gpu.take(cls.x.bytes())?;
        pass.norm_backward(&self.norm, Scalar::F32, size.n, &cls, [g_features, g_cls.at()], false, gradients)?;
        drop(cls);

        // Only the class tokens lead to the features.
        let g = pass.take(self.shape.width)?;
        pass.tokens.spread_class_tokens(g_cls.at(), g.at())?;
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
        self.on.gpu.take(self.rows() * elements * self.tokens.scalar.bytes())
    }

    fn samples(&self) -> Samples<'_> {
        Samples { gpu: self.on.gpu, math: self.on.math, samples: self.tokens.samples }
    }

    fn on(&self, size: Size) -> OnGpu<'_> {
        OnGpu { gpu: self.on.gpu, math: self.on.math, size }
    }

    fn norm_rows(&self, norm: &Norm, scalar: Scalar, rows: usize) -> NormRows<'_> {
        let (weight, bias) = (self.on.param(norm.weight.start), self.on.param(norm.bias.start));
        NormRows { gpu: self.on.gpu, scalar, rows, dim: self.net.shape.width, weight, bias }
    }

    /// y = norm(x), for rows of the tokens' width; keeps x and its statistics.
    fn normalise(&self, norm: &Norm, scalar: Scalar, rows: usize, x: Buffer, y: &Buffer) -> Result<Normed, GpuError> {
        let on = self.norm_rows(norm, scalar, rows);
        let statistics = self.on.gpu.take(on.statistics_bytes())?;
        on.forward(x.at(), statistics.at(), y.at())?;
        Ok(Normed { x, statistics })
    }

    #[allow(clippy::too_many_arguments)]
    fn norm_backward(
        &self,
        norm: &Norm,
        scalar: Scalar,
        rows: usize,
        of: &Normed,
        [gy, gx]: [u64; 2],
        accumulate: bool,
        gradients: u64,
    ) -> Result<(), GpuError> {
        let g_params = [&norm.weight, &norm.bias].map(|range| gradients + 4 * range.start as u64);
        let of = [of.x.at(), of.statistics.at()];
        self.norm_rows(norm, scalar, rows).backward(of, gy, gx, accumulate, g_params)
    }

    /// y [rows, output] = x w^T + bias, plus the tensor at address `added`, where there is one.
    fn linear(&self, layer: &Linear, x: &Buffer, added: u64, y: &Buffer) -> Result<(), GpuError> {
        let added = Added { bias: self.on.param(layer.bias.start), tensor: added };
        let (conv, on) = (layer.pointwise(), self.on(pixels(self.rows())));
        conv.forward_added_gpu(on, x.at(), self.on.kernel(layer.weight.start), added, y.at())
    }

    /// gx [rows, input] = gy w.
    fn linear_backward_data(&self, layer: &Linear, gy: &Buffer, gx: &Buffer) -> Result<(), GpuError> {
        let (conv, on) = (layer.pointwise(), self.on(pixels(self.rows())));
        conv.backward_data_gpu(on, gy.at(), self.on.kernel(layer.weight.start), gx.at(), false)
    }

    /// Adds the gradients of weight and bias.
    fn linear_backward_params(&self, layer: &Linear, x: &Buffer, gy: &Buffer, gradients: u64) -> Result<(), GpuError> {
        let at = |index: usize| gradients + 4 * index as u64;
        let (conv, on, rows) = (layer.pointwise(), self.on(pixels(self.rows())), self.rows());
        conv.backward_weight_gpu(on, x.at(), gy.at(), at(layer.weight.start))?;
        add_column_sums(self.on.gpu, self.tokens.scalar, gy.at(), [rows, layer.output], at(layer.bias.start))
    }

    /// The class token and the embedded patches, positions added.
    fn embed(&self, images: u64, size: Size) -> Result<Buffer, GpuError> {
        let (net, patch, width) = (self.net, self.net.patches.kernel, self.net.shape.width);
        assert!(
            size.h.is_multiple_of(patch) && size.w.is_multiple_of(patch),
            "patches of {patch} do not tile {size:?}"
        );
        let grid = net.patches.output_size(size);
        let embedded = self.on.gpu.take(grid.pixels() * width * self.tokens.scalar.bytes())?;
        let weight = self.on.kernel(net.patch_embed.weight.start);
        net.patches.forward_gpu(self.on(size), images, weight, embedded.at(), false)?;
        let (mut positions, mut other) = (self.on.buffer(0), None);
        if (grid.h, grid.w) != (net.grid, net.grid) {
            let found = interpolate(self.on.gpu, positions, net.grid, [grid.h, grid.w], width)?;
            positions = other.insert(found).at();
        }
        let x = self.take(width)?;
        let [cls, bias] = [net.cls_token.start, net.patch_embed.bias.start].map(|index| self.on.param(index));
        self.tokens.embed(embedded.at(), positions, [cls, bias], x.at())?;
        Ok(x)
    }

    /// A block's output and its intermediate results.
    fn block(&self, block: &Block, input: Buffer) -> Result<(Buffer, SavedBlock), GpuError> {
        let (width, rows, scalar) = (self.net.shape.width, self.rows(), self.tokens.scalar);
        let attention = self.net.attention(self.tokens.tokens);

        let normed = self.take(width)?;
        let input = self.normalise(&block.norm1, scalar, rows, input, &normed)?;
        let qkv = self.take(block.qkv.output)?;
        self.linear(&block.qkv, &normed, 0, &qkv)?;
        let (attended, logs) = (self.take(width)?, self.on.gpu.take(attention.logs_bytes(self.tokens.samples))?);
        let of = Attended { qkv: qkv.at(), y: attended.at(), logs: logs.at() };
        attention.forward_gpu(self.samples(), of)?;
        let middle = self.take(width)?;
        self.linear(&block.proj, &attended, input.x.at(), &middle)?;

        let middle = self.normalise(&block.norm2, scalar, rows, middle, &normed)?;
        let hidden = self.take(block.fc1.output)?;
        self.linear(&block.fc1, &normed, 0, &hidden)?;
        let active = self.take(block.fc1.output)?;
        gelu(self.on.gpu, scalar, hidden.at(), rows * block.fc1.output, active.at())?;
        // The norm's output is not needed any more: its buffer becomes the block's output.
        let output = normed;
        self.linear(&block.fc2, &active, middle.x.at(), &output)?;
        Ok((output, SavedBlock { input, qkv, attended, logs, middle, hidden }))
    }

    /// `g` goes from the gradient of the block's output to that of its input.
    fn block_backward(&self, block: &Block, kept: SavedBlock, g: &Buffer, gradients: u64) -> Result<(), GpuError> {
        // The residual connection passes g on as it is; each half adds its own part.
        let (width, rows, scalar) = (self.net.shape.width, self.rows(), self.tokens.scalar);
        let SavedBlock { input, qkv, attended, logs, middle, hidden } = kept;
        let (normed, g_normed) = (self.take(width)?, self.take(width)?);

        let (active, g_hidden) = (self.take(block.fc1.output)?, self.take(block.fc1.output)?);
        self.linear_backward_data(&block.fc2, g, &g_hidden)?;
        gelu_backward(self.on.gpu, scalar, hidden.at(), rows * block.fc1.output, g_hidden.at(), active.at())?;
        self.linear_backward_params(&block.fc2, &active, g, gradients)?;
        drop((hidden, active));
        self.norm_rows(&block.norm2, scalar, rows).apply(middle.x.at(), middle.statistics.at(), normed.at())?;
        self.linear_backward_params(&block.fc1, &normed, &g_hidden, gradients)?;
        self.linear_backward_data(&block.fc1, &g_hidden, &g_normed)?;
        drop(g_hidden);
        self.norm_backward(&block.norm2, scalar, rows, &middle, [g_normed.at(), g.at()], true, gradients)?;
        drop(middle);

        self.linear_backward_params(&block.proj, &attended, g, gradients)?;
        let g_attended = &g_normed;
        self.linear_backward_data(&block.proj, g, g_attended)?;
        let g_qkv = self.take(block.qkv.output)?;
        let of = Attended { qkv: qkv.at(), y: attended.at(), logs: logs.at() };
        let attention = self.net.attention(self.tokens.tokens);
        attention.backward_gpu(self.samples(), of, g_attended.at(), g_qkv.at())?;
        drop((qkv, attended, logs));
        self.norm_rows(&block.norm1, scalar, rows).apply(input.x.at(), input.statistics.at(), normed.at())?;
        self.linear_backward_params(&block.qkv, &normed, &g_qkv, gradients)?;
        self.linear_backward_data(&block.qkv, &g_qkv, &g_normed)?;
        self.norm_backward(&block.norm1, scalar, rows, &input, [g_normed.at(), g.at()], true, gradients)
    }

    /// Gradients of class token and patch embedding, from that of the tokens.
    fn embed_backward(&self, images: u64, size: Size, g: &Buffer, gradients: u64) -> Result<(), GpuError> {
        let (net, width, gpu) = (self.net, self.net.shape.width, self.on.gpu);
        let at = |index: usize| gradients + 4 * index as u64;
        let g_cls = gpu.take(size.n * width * 4)?;
        self.tokens.class_tokens(g.at(), g_cls.at())?;
        add_column_sums(gpu, Scalar::F32, g_cls.at(), [size.n, width], at(net.cls_token.start))?;
        if net.stop_grad_patch_embed {
            return Ok(());
        }
        let patches = net.patches.output_size(size).pixels();
        let g_patches = gpu.take(patches * width * self.tokens.scalar.bytes())?;
        self.tokens.patch_tokens(g.at(), g_patches.at())?;
        let bias = at(net.patch_embed.bias.start);
        add_column_sums(gpu, self.tokens.scalar, g_patches.at(), [patches, width], bias)?;
        let weight = at(net.patch_embed.weight.start);
        net.patches.backward_weight_gpu(self.on(size), images, g_patches.at(), weight)
    }
}

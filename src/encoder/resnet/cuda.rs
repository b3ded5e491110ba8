//! A residual network on a GPU: the same passes as on the CPU, their parameters, activations and gradients on the device.

use super::{
    ResNet,
    block::{Block, ConvBatchNorm},
};
use crate::{
    encoder::cuda::{Arenas, Statistics},
    ops::{
        batch_norm::cuda::{MomentsGpu, Normalised, Params, ResidualGpu, Rows},
        conv2d::{Size, cuda::OnGpu},
        cuda::{Buffer, GpuError, Kind, View},
        pool::{self, cuda::Images},
    },
};

/// What the backward pass needs of a forward pass.
#[derive(Debug)]
pub struct SavedGpu {
    size: Size,
    stem: Unit,
    stem_output: Buffer,
    /// Winning taps and output of the max-pooling.
    pooled: Option<(Buffer, Buffer)>,
    blocks: Vec<SavedBlock>,
    /// Size of the last block's output.
    last: Size,
}

/// A convolution's output before its batch norm, and that batch's statistics.
#[derive(Debug)]
struct Unit {
    raw: Buffer,
    moments: MomentsGpu,
}

/// One block's intermediate results; the last output is the block's.
#[derive(Debug)]
struct SavedBlock {
    units: Vec<Unit>,
    shortcut: Option<Unit>,
    outputs: Vec<Buffer>,
}

/// A normalisation to be applied: by the batch's statistics, or by the running ones.
enum Norm {
    Batch(MomentsGpu),
    Running(Buffer),
}

impl Norm {
    fn affine(&self) -> View<'_> {
        match self {
            Norm::Batch(moments) => moments.affine.view(),
            Norm::Running(affine) => affine.view(),
        }
    }
}

impl ResNet {
    /// Features [n, feature_dim] (f32) of images [n, h, w, 3] in the arithmetic's storage; with `keep`,
    /// what the backward pass needs, too.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward_gpu(
        &self,
        on: &Arenas,
        statistics: Statistics,
        images: View,
        size: Size,
        keep: bool,
    ) -> Result<(Buffer, Option<SavedGpu>), GpuError> {
        let pass = Pass { on, statistics };
        let (raw, norm) = pass.conv(&self.stem, images, size)?;
        let channels = self.stem.conv.output;
        let mut at = self.stem.conv.output_size(size);
        let stem_output = pass.apply(&self.stem, &raw, &norm, ResidualGpu::None, at)?;
        let stem = keep_unit(raw, norm, keep);
        let mut pooled = None;
        if self.max_pool {
            let out = pool::pooled(at);
            let (y, taps) = (pass.take(out, channels)?, on.gpu.take(Kind::U8, out.pixels() * channels)?);
            pass.images(at, channels).max_pool(stem_output.view(), y.view(), taps.view())?;
            pooled = Some((taps, y));
            at = out;
        }
        let mut blocks: Vec<SavedBlock> = Vec::new();
        let mut output: Option<Buffer> = None;
        for block in &self.blocks {
            let x = output.as_ref().or(pooled.as_ref().map(|(_, y)| y)).unwrap_or(&stem_output).view();
            let (y, kept) = pass.block(block, x, &mut at, keep)?;
            if let (Some(input), Some(previous)) = (output.replace(y), blocks.last_mut()) {
                previous.outputs.push(input);
            }
            blocks.extend(kept);
        }
        let last = output.expect("a network has blocks");
        let features = on.gpu.take(Kind::F32, size.n * self.feature_dim)?;
        pass.images(at, self.feature_dim).average_pool(last.view(), features.view())?;
        if let Some(block) = blocks.last_mut() {
            block.outputs.push(last);
        }
        let saved = stem.map(|stem| SavedGpu { size, stem, stem_output, pooled, blocks, last: at });
        Ok((features, saved))
    }

    /// Adds to `gradients` (f32, laid out like the parameters) those of one forward pass, from its features' gradient (f32).
    /// The images' gradient is written to `image_gradient`, where it is wanted.
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
        image_gradient: Option<View>,
    ) -> Result<(), GpuError> {
        let pass = Pass { on, statistics: Statistics::Batch };
        let SavedGpu { size, stem, stem_output, pooled, mut blocks, last } = saved;
        let mut g = pass.take(last, self.feature_dim)?;
        pass.images(last, self.feature_dim).average_pool_backward(g_features, g.view())?;

        let sizes = self.input_sizes_gpu(size);
        while let Some(kept) = blocks.pop() {
            let i = blocks.len();
            let input = match (blocks.last(), &pooled) {
                (Some(previous), _) => previous.outputs.last().expect("a block has outputs").view(),
                (None, Some((_, pooled))) => pooled.view(),
                (None, None) => stem_output.view(),
            };
            g = pass.block_backward(&self.blocks[i], input, sizes[i], kept, g, gradients)?;
        }

        let stem_size = self.stem.conv.output_size(size);
        if let Some((taps, _)) = pooled {
            let unpooled = pass.take(stem_size, self.stem.conv.output)?;
            pass.images(stem_size, self.stem.conv.output).max_pool_backward(g.view(), taps.view(), unpooled.view())?;
            g = unpooled;
        }
        pass.norm_backward(&self.stem, &stem, stem_size, Some(&stem_output), &g, None, gradients)?;
        pass.weight_backward(&self.stem, images, size, &g, gradients)?;
        if let Some(image_gradient) = image_gradient {
            pass.data_backward(&self.stem, size, &g, image_gradient, false)?;
        }
        Ok(())
    }

    /// Size of each block's input.
    fn input_sizes_gpu(&self, size: Size) -> Vec<Size> {
        let mut at = self.stem.conv.output_size(size);
        if self.max_pool {
            at = pool::pooled(at);
        }
        let mut sizes = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            sizes.push(at);
            at = block.convs.iter().fold(at, |at, unit| unit.conv.output_size(at));
        }
        sizes
    }
}

/// One pass under way.
struct Pass<'a> {
    on: &'a Arenas<'a>,
    statistics: Statistics,
}

impl Pass<'_> {
    fn take(&self, size: Size, channels: usize) -> Result<Buffer, GpuError> {
        self.on.gpu.take(self.on.math.scalar(), size.pixels() * channels)
    }

    fn images(&self, size: Size, channels: usize) -> Images<'_> {
        Images { gpu: self.on.gpu, scalar: self.on.math.scalar(), size, channels }
    }

    fn rows(&self, size: Size, channels: usize) -> Rows<'_> {
        Rows { gpu: self.on.gpu, scalar: self.on.math.scalar(), rows: size.pixels(), channels }
    }

    fn on(&self, size: Size) -> OnGpu<'_> {
        OnGpu { gpu: self.on.gpu, math: self.on.math, size }
    }

    /// A block's output; what is kept of it lacks that output. `size` becomes the output's.
    fn block(
        &self,
        block: &Block,
        x: View,
        size: &mut Size,
        keep: bool,
    ) -> Result<(Buffer, Option<SavedBlock>), GpuError> {
        let shortcut = match &block.shortcut {
            Some(unit) => Some(self.conv(unit, x, *size)?),
            None => None,
        };
        let (mut units, mut outputs) = (Vec::new(), Vec::new());
        let mut output: Option<Buffer> = None;
        for (i, unit) in block.convs.iter().enumerate() {
            let (raw, norm) = self.conv(unit, output.as_ref().map_or(x, Buffer::view), *size)?;
            *size = unit.conv.output_size(*size);
            let residual = match &shortcut {
                _ if i + 1 < block.convs.len() => ResidualGpu::None,
                None => ResidualGpu::Plain(x),
                Some((raw, norm)) => ResidualGpu::Normalised(raw.view(), norm.affine()),
            };
            let y = self.apply(unit, &raw, &norm, residual, *size)?;
            units.extend(keep_unit(raw, norm, keep));
            outputs.extend(output.replace(y).filter(|_| keep));
        }
        let shortcut = shortcut.and_then(|(raw, norm)| keep_unit(raw, norm, keep));
        Ok((output.expect("a block has convolutions"), keep.then_some(SavedBlock { units, shortcut, outputs })))
    }

    /// A convolution's output and the batch norm behind it.
    fn conv(&self, unit: &ConvBatchNorm, x: View, size: Size) -> Result<(Buffer, Norm), GpuError> {
        let out = unit.conv.output_size(size);
        let raw = self.take(out, unit.conv.output)?;
        unit.conv.forward_gpu(self.on(size), x, self.on.kernel(&unit.kernel), raw.view(), false)?;
        let running = [&unit.running_mean, &unit.running_var].map(|range| self.on.buffer(range));
        let (rows, params) = (self.rows(out, unit.conv.output), self.params(unit));
        let norm = match self.statistics {
            Statistics::Batch => Norm::Batch(rows.moments(raw.view(), params, Some(running))?),
            Statistics::Running => Norm::Running(rows.eval(params, running)?),
        };
        Ok((raw, norm))
    }

    fn apply(
        &self,
        unit: &ConvBatchNorm,
        raw: &Buffer,
        norm: &Norm,
        residual: ResidualGpu,
        size: Size,
    ) -> Result<Buffer, GpuError> {
        let y = self.take(size, unit.conv.output)?;
        self.rows(size, unit.conv.output).apply(raw.view(), norm.affine(), residual, true, y.view())?;
        Ok(y)
    }

    fn params(&self, unit: &ConvBatchNorm) -> Option<Params<'_>> {
        Some(Params { weight: self.on.param(&unit.weight), bias: self.on.param(&unit.bias) })
    }

    /// The gradient of a block's input, from that of its output `g`.
    fn block_backward(
        &self,
        block: &Block,
        x: View,
        size: Size,
        kept: SavedBlock,
        mut g: Buffer,
        gradients: View,
    ) -> Result<Buffer, GpuError> {
        let SavedBlock { mut units, shortcut, mut outputs } = kept;
        let mut sizes = vec![size];
        for unit in &block.convs {
            sizes.push(unit.conv.output_size(*sizes.last().expect("not empty")));
        }
        let count = block.convs.len();
        let last = &block.convs[count - 1];

        // The gradient before the block's ReLU goes to the last batch norm and to the shortcut.
        let masked = self.take(sizes[count], last.conv.output)?;
        let (unit, output) =
            (units.pop().expect("a unit per convolution"), outputs.pop().expect("a block has outputs"));
        self.norm_backward(last, &unit, sizes[count], Some(&output), &g, Some(&masked), gradients)?;
        drop((unit, output));
        let gx = match (&block.shortcut, shortcut) {
            (Some(projection), Some(unit)) => {
                let gx = self.take(size, projection.conv.input)?;
                self.norm_backward(projection, &unit, sizes[count], None, &masked, None, gradients)?;
                self.weight_backward(projection, x, size, &masked, gradients)?;
                self.data_backward(projection, size, &masked, gx.view(), false)?;
                gx
            }
            _ => masked,
        };
        for i in (0..count).rev() {
            let conv = &block.convs[i];
            // All but the first convolution read the output of the one before.
            let Some(input) = outputs.pop() else {
                self.weight_backward(conv, x, size, &g, gradients)?;
                self.data_backward(conv, size, &g, gx.view(), true)?;
                break;
            };
            self.weight_backward(conv, input.view(), sizes[i], &g, gradients)?;
            let g_input = self.take(sizes[i], conv.conv.input)?;
            self.data_backward(conv, sizes[i], &g, g_input.view(), false)?;
            let unit = units.pop().expect("a unit per convolution");
            self.norm_backward(&block.convs[i - 1], &unit, sizes[i], Some(&input), &g_input, None, gradients)?;
            g = g_input;
        }
        Ok(gx)
    }

    /// `g` goes, in place, from that of what follows the batch norm (its ReLU's output, or its own where that is None) to
    /// that of the convolution's output. `masked` receives g before the ReLU.
    #[allow(clippy::too_many_arguments, reason = "a norm, its rows, and where gradients come from and go to")]
    fn norm_backward(
        &self,
        layer: &ConvBatchNorm,
        unit: &Unit,
        size: Size,
        output: Option<&Buffer>,
        g: &Buffer,
        masked: Option<&Buffer>,
        gradients: View,
    ) -> Result<(), GpuError> {
        let of = Normalised { x: unit.raw.view(), moments: &unit.moments, output: output.map(Buffer::view) };
        let [weight, bias] = [&layer.weight, &layer.bias].map(|range| gradients.part(range.clone()));
        let (g_params, masked) = (Some(Params { weight, bias }), masked.map(Buffer::view));
        let rows = self.rows(size, layer.conv.output);
        rows.backward(of, self.params(layer), g_params, g.view(), masked, (g.view(), false))
    }

    fn weight_backward(
        &self,
        layer: &ConvBatchNorm,
        x: View,
        size: Size,
        g: &Buffer,
        gradients: View,
    ) -> Result<(), GpuError> {
        layer.conv.backward_weight_gpu(self.on(size), x, g.view(), gradients.part(layer.kernel.clone()))
    }

    fn data_backward(
        &self,
        layer: &ConvBatchNorm,
        size: Size,
        g: &Buffer,
        gx: View,
        accumulate: bool,
    ) -> Result<(), GpuError> {
        let weight = self.on.kernel(&layer.kernel);
        layer.conv.backward_data_gpu(self.on(size), g.view(), weight, gx, accumulate)
    }
}

fn keep_unit(raw: Buffer, norm: Norm, keep: bool) -> Option<Unit> {
    match norm {
        Norm::Batch(moments) if keep => Some(Unit { raw, moments }),
        Norm::Batch(_) | Norm::Running(_) => None,
    }
}

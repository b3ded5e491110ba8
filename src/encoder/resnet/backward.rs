//! Backward pass: from the features' gradient to the parameters'.

use super::{
    ImageGradient, ResNet,
    block::{Block, ConvBatchNorm},
    forward::{Saved, SavedBlock, Unit},
};
use crate::ops::{
    Real,
    batch_norm::{Affine, Moments, Relu, backward_input, backward_sums},
    buffers::Buffers,
    conv2d::{Size, Source},
    gemm::Threads,
    parts::add,
    pool,
};

/// One backward pass under way.
pub(super) struct Pass<'a, E> {
    pub(super) params: &'a [E],
    pub(super) gradients: &'a mut [E],
    pub(super) memory: &'a mut Buffers<E>,
}

impl ResNet {
    #[allow(clippy::too_many_arguments)]
    pub fn backward<E: Real>(
        &self,
        params: &[E],
        images: &[E],
        saved: Saved<E>,
        g_features: &[E],
        gradients: &mut [E],
        memory: &mut Buffers<E>,
        image_gradient: ImageGradient<E>,
    ) {
        let mut pass = Pass { params, gradients, memory };
        let sizes = self.input_sizes(saved.size);
        let Saved { size, stem, stem_output, pooled, mut blocks } = saved;

        let last = blocks.last().expect("a network has blocks");
        let mut g = pass.memory.take(last.output.len());
        pool::average_pool_backward(g_features, sizes[self.blocks.len()], self.feature_dim, &mut g);

        while let Some(kept) = blocks.pop() {
            let i = blocks.len();
            let input = match (blocks.last(), &pooled) {
                (Some(previous), _) => &previous.output,
                (None, Some((_, pooled))) => pooled,
                (None, None) => &stem_output,
            };
            g = pass.block(&self.blocks[i], input, sizes[i], kept, g);
        }

        if let Some((taps, output)) = pooled {
            let mut unpooled = pass.memory.take(stem_output.len());
            let stem_size = self.stem.conv.output_size(size);
            pool::max_pool_backward(&g, &taps, stem_size, self.stem.conv.output, &mut unpooled);
            pass.memory.give(output);
            pass.memory.give(std::mem::replace(&mut g, unpooled));
        }
        let g_raw = pass.batch_norm(&self.stem, stem, &mut g, Relu::Output(&stem_output));
        pass.memory.give(stem_output);
        pass.memory.give(g);
        self.stem.conv.backward_weight(
            Source::plain(images),
            size,
            &g_raw,
            &mut pass.gradients[self.stem.kernel.clone()],
        );
        if let ImageGradient::Write(gx) = image_gradient {
            self.stem.conv.backward_data(&g_raw, size, &params[self.stem.kernel.clone()], E::zero(), gx);
        }
        pass.memory.give(g_raw);
    }

    /// Size of each block's input, and of the last one's output.
    fn input_sizes(&self, size: Size) -> Vec<Size> {
        let mut at = self.stem.conv.output_size(size);
        if self.max_pool {
            at = pool::pooled(at);
        }
        let mut sizes = vec![at];
        for block in &self.blocks {
            at = block.convs.iter().fold(at, |at, unit| unit.conv.output_size(at));
            sizes.push(at);
        }
        sizes
    }
}

impl<E: Real> Pass<'_, E> {
    /// The gradient of a block's input, from that of its output `g`.
    pub(super) fn block(&mut self, block: &Block, x: &[E], size: Size, kept: SavedBlock<E>, mut g: Vec<E>) -> Vec<E> {
        let SavedBlock { mut units, shortcut, output } = kept;
        let mut sizes = vec![size];
        for unit in &block.convs[..block.convs.len() - 1] {
            sizes.push(unit.conv.output_size(*sizes.last().expect("not empty")));
        }
        // The ReLU behind the addition passes its gradient on to both branches.
        let mut layers = block.convs.iter().zip(sizes).rev();
        let (mut layer, mut at) = layers.next().expect("a block has convolutions");
        let unit = units.pop().expect("a unit per convolution");
        let mut g_raw = self.batch_norm(layer, unit, &mut g, Relu::Output(&output));
        self.memory.give(output);
        let mut gx = match (&block.shortcut, shortcut) {
            (Some(projection), Some(unit)) => {
                let g_projection = self.batch_norm(projection, unit, &mut g, Relu::None);
                let mut gx = self.memory.take(x.len());
                self.conv(projection, Source::plain(x), size, &g_projection, E::zero(), &mut gx);
                self.memory.give(g_projection);
                self.memory.give(g);
                gx
            }
            _ => g,
        };
        // All but the first convolution read what the one before left, normalised and rectified.
        for (previous, previous_size) in layers {
            let unit = units.pop().expect("a unit per convolution");
            let affine = self.affine(previous, &unit.moments);
            let mut g_input = self.memory.take(unit.raw.len());
            let source = Source { images: &unit.raw, relu_of: Some(&affine) };
            self.conv(layer, source, at, &g_raw, E::zero(), &mut g_input);
            self.memory.give(g_raw);
            g_raw = self.batch_norm(previous, unit, &mut g_input, Relu::Of(&affine));
            self.memory.give(g_input);
            (layer, at) = (previous, previous_size);
        }
        self.conv(layer, Source::plain(x), at, &g_raw, E::one(), &mut gx);
        self.memory.give(g_raw);
        gx
    }

    /// The affine map that a batch norm was in the forward pass.
    fn affine(&self, layer: &ConvBatchNorm, moments: &Moments<E>) -> Affine<E> {
        let weight_bias = (&self.params[layer.weight.clone()], &self.params[layer.bias.clone()]);
        Affine::new(&moments.mean, &moments.inv_std, Some(weight_bias))
    }

    /// Adds the gradients of a batch norm's parameters and returns that of its input. `g` is that of its output or, with
    /// a ReLU behind it, of the ReLU's output: it then becomes that of the ReLU's input.
    fn batch_norm(&mut self, layer: &ConvBatchNorm, unit: Unit<E>, g: &mut [E], relu: Relu<E>) -> Vec<E> {
        let Unit { mut raw, moments } = unit;
        let sums = backward_sums(&raw, &moments, g, relu);
        add(&mut self.gradients[layer.weight.clone()], &sums.g_normalised, Threads::One);
        add(&mut self.gradients[layer.bias.clone()], &sums.g, Threads::One);
        backward_input(&mut raw, &moments, Some(&self.params[layer.weight.clone()]), &sums, g, relu);
        raw
    }

    /// Adds the gradient of a convolution's weights; gx = that of its input + beta gx.
    fn conv(&mut self, layer: &ConvBatchNorm, x: Source<E>, size: Size, g: &[E], beta: E, gx: &mut [E]) {
        layer.conv.backward_weight(x, size, g, &mut self.gradients[layer.kernel.clone()]);
        layer.conv.backward_data(g, size, &self.params[layer.kernel.clone()], beta, gx);
    }
}

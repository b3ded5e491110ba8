//! Backward pass: from the features' gradient to the parameters'.

use super::{
    ImageGradient, ResNet,
    block::{Block, ConvBatchNorm},
    forward::{Saved, SavedBlock, Unit},
};
use crate::ops::{
    Real,
    batch_norm::{backward_input, backward_sums, relu_backward},
    buffers::Buffers,
    conv2d::Size,
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

        let last = blocks.last().expect("a network has blocks").outputs.last().expect("a block has outputs");
        let mut g = pass.memory.take(last.len());
        pool::average_pool_backward(g_features, sizes[self.blocks.len()], self.feature_dim, &mut g);

        while let Some(kept) = blocks.pop() {
            let i = blocks.len();
            let input = match (blocks.last(), &pooled) {
                (Some(previous), _) => previous.outputs.last().expect("a block has outputs"),
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
        relu_backward(&stem_output, &mut g);
        pass.memory.give(stem_output);
        pass.conv_batch_norm(&self.stem, images, size, stem, &mut g);
        if let ImageGradient::Write(gx) = image_gradient {
            self.stem.conv.backward_data(&g, size, &params[self.stem.kernel.clone()], E::zero(), gx);
        }
        pass.memory.give(g);
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
        let SavedBlock { units, shortcut, mut outputs } = kept;
        let output = outputs.pop().expect("a block has outputs");
        relu_backward(&output, &mut g);
        self.memory.give(output);

        let mut gx = self.memory.take(x.len());
        match (&block.shortcut, shortcut) {
            (Some(projection), Some(unit)) => {
                let mut g = self.copy(&g);
                self.conv_batch_norm(projection, x, size, unit, &mut g);
                projection.conv.backward_data(&g, size, &self.params[projection.kernel.clone()], E::zero(), &mut gx);
                self.memory.give(g);
            }
            _ => gx.copy_from_slice(&g),
        }

        let mut sizes = vec![size];
        for unit in &block.convs[..block.convs.len() - 1] {
            sizes.push(unit.conv.output_size(*sizes.last().expect("not empty")));
        }
        for ((conv, unit), size) in block.convs.iter().zip(units).zip(sizes).rev() {
            // All but the first convolution read the output of the one before.
            let input = outputs.pop();
            self.conv_batch_norm(conv, input.as_deref().unwrap_or(x), size, unit, &mut g);
            let kernel = &self.params[conv.kernel.clone()];
            match input {
                Some(input) => {
                    let mut g_input = self.memory.take(input.len());
                    conv.conv.backward_data(&g, size, kernel, E::zero(), &mut g_input);
                    relu_backward(&input, &mut g_input);
                    self.memory.give(input);
                    self.memory.give(std::mem::replace(&mut g, g_input));
                }
                None => conv.conv.backward_data(&g, size, kernel, E::one(), &mut gx),
            }
        }
        self.memory.give(g);
        gx
    }

    /// Adds the gradients of a convolution and its batch norm; `g` goes from that of the batch norm's output to that of
    /// the convolution's.
    fn conv_batch_norm(&mut self, layer: &ConvBatchNorm, x: &[E], size: Size, unit: Unit<E>, g: &mut [E]) {
        let Unit { raw, moments } = unit;
        let sums = backward_sums(&raw, &moments, g);
        add(&mut self.gradients[layer.weight.clone()], &sums.g_normalised);
        add(&mut self.gradients[layer.bias.clone()], &sums.g);
        backward_input(&raw, &moments, Some(&self.params[layer.weight.clone()]), &sums, g);
        self.memory.give(raw);
        layer.conv.backward_weight(x, size, g, &mut self.gradients[layer.kernel.clone()]);
    }

    fn copy(&mut self, values: &[E]) -> Vec<E> {
        let mut copy = self.memory.take(values.len());
        copy.copy_from_slice(values);
        copy
    }
}

fn add<E: Real>(gradient: &mut [E], more: &[E]) {
    for (g, m) in gradient.iter_mut().zip(more) {
        *g += *m;
    }
}

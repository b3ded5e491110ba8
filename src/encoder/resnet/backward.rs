//! Backward pass of a residual network: from the gradient of the features to those of the parameters.

use super::{
    ResNet,
    block::Block,
    forward::{Saved, SavedBlock},
};
use crate::{
    backend::{Backend, Learned, Source},
    ops::{conv2d::Size, pool},
};

impl ResNet {
    /// The backward pass of one forward pass of `images`, from the gradient `g_features` of its features. Adds to the gradients
    /// of the parameters. Returns the gradient of the images if `of_images` is true.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward<B: Backend>(
        &self,
        on: &B,
        learned: &mut Learned<B>,
        images: &B::Buffer,
        saved: Saved<B>,
        g_features: &B::Buffer,
        of_images: bool,
    ) -> Result<Option<B::Buffer>, B::Error> {
        let Saved { size, stem, pooled, blocks, mut output } = saved;
        let sizes = self.input_sizes(size);
        let mut g = on.average_pool_backward(g_features, sizes[self.blocks.len()], self.feature_dim)?;
        for ((block, size), (input, saved)) in self.blocks.iter().zip(sizes).zip(blocks).rev() {
            g = backward(on, block, learned, &input, size, saved, output, g)?;
            // A block's input is the output of the previous block.
            output = input;
        }
        if let Some((argmax, stem_output)) = pooled {
            g = on.max_pool_backward(&g, &argmax, self.stem.conv.output_size(size), self.stem.conv.output)?;
            output = stem_output;
        }
        let g = on.norm_backward(&self.stem.norm, learned, stem, Some(&output), g)?;
        drop(output);
        if of_images {
            return on.conv_backward(&self.stem, learned, Source::Plain(images), size, &g, None).map(Some);
        }
        on.conv_backward_weight(&self.stem, learned, images, size, &g)?;
        Ok(None)
    }

    /// The size of each block's input, then that of the last block's output.
    fn input_sizes(&self, size: Size) -> Vec<Size> {
        let mut at = self.stem.conv.output_size(size);
        if self.max_pool {
            at = pool::pooled(at);
        }
        let mut sizes = vec![at];
        for block in &self.blocks {
            at = block.convs.iter().fold(at, |at, layer| layer.conv.output_size(at));
            sizes.push(at);
        }
        sizes
    }
}

/// The gradient of a block's input `x`, from the gradient `g` of its output. Adds to the gradients of the parameters.
#[allow(clippy::too_many_arguments, reason = "a block, what went through it, and where gradients go")]
pub(super) fn backward<B: Backend>(
    on: &B,
    block: &Block,
    learned: &mut Learned<B>,
    x: &B::Buffer,
    size: Size,
    saved: SavedBlock<B>,
    output: B::Buffer,
    g: B::Buffer,
) -> Result<B::Buffer, B::Error> {
    let SavedBlock { mut inner, last: normed, shortcut } = saved;
    let (last, before) = block.convs.split_last().expect("a block has convolutions");
    let mut sizes = vec![size];
    for layer in before {
        sizes.push(layer.conv.output_size(*sizes.last().expect("not empty")));
    }
    // The gradient of the sum flows to both branches: g through the last norm, gx to the shortcut.
    let [mut g, mut gx] = on.output_backward(&last.norm, learned, normed, output, g)?;
    if let (Some(layer), Some(normed)) = (&block.shortcut, shortcut) {
        let g = on.norm_backward(&layer.norm, learned, normed, None, gx)?;
        gx = on.conv_backward(layer, learned, Source::Plain(x), size, &g, None)?;
    }
    for (layer, size) in block.convs.iter().zip(&sizes).rev() {
        // Every convolution but the first reads the output of the previous one.
        let Some(read) = inner.pop() else { break };
        let g_read = on.conv_backward(layer, learned, Source::Inner(&read), *size, &g, None)?;
        drop(g);
        g = on.inner_backward(&block.convs[inner.len()].norm, learned, read, g_read)?;
    }
    on.conv_backward(&block.convs[0], learned, Source::Plain(x), size, &g, Some(gx))
}

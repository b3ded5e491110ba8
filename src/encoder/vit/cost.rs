//! Counts the multiply-adds of a vision transformer.

use super::Vit;
use crate::{backend::layers::Block, encoder::cost::of_convolution, ops::conv2d::Size};

impl Vit {
    /// Multiply-adds to compute the features of images of `size`.
    pub fn multiply_adds(&self, size: Size) -> u64 {
        let tokens = self.embedding.tokens(size);
        let linear = |block: &Block| {
            [&block.qkv, &block.proj, &block.fc1, &block.fc2].iter().map(|l| l.input * l.output).sum::<usize>()
        };
        // The last term is attention: queries times keys, and weights times values.
        let blocks = self.blocks.iter().map(|block| tokens * linear(block) + 2 * tokens * tokens * self.shape.width);
        of_convolution(&self.embedding.patches, size) + (size.n * blocks.sum::<usize>()) as u64
    }
}

//! Counts the multiply-adds of a residual network.

use super::ResNet;
use crate::{
    encoder::cost::of_convolution,
    ops::{conv2d::Size, pool},
};

impl ResNet {
    /// Multiply-adds to compute the features of images of `size`.
    pub fn multiply_adds(&self, size: Size) -> u64 {
        let mut total = of_convolution(&self.stem.conv, size);
        let mut at = self.stem.conv.output_size(size);
        if self.max_pool {
            at = pool::pooled(at);
        }
        for block in &self.blocks {
            total += block.shortcut.as_ref().map_or(0, |unit| of_convolution(&unit.conv, at));
            for unit in &block.convs {
                total += of_convolution(&unit.conv, at);
                at = unit.conv.output_size(at);
            }
        }
        total
    }
}

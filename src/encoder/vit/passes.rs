//! Forward and backward pass. There are no batch statistics: training, momentum branch and evaluation compute the same.

use super::Vit;
use crate::{
    backend::{Backend, Features, Learned},
    ops::conv2d::Size,
};

/// What the backward pass needs of a forward pass.
pub struct Saved<B: Backend> {
    size: Size,
    blocks: Vec<B::KeptBlock>,
    /// Of the last norm, on the class tokens.
    norm: B::KeptNorm,
}

impl Vit {
    /// Features [n, width] of images [n, h, w, 3] and, with `keep`, what the backward pass needs. `buffers` are the branch's.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward<B: Backend>(
        &self,
        on: &B,
        params: &B::Params,
        buffers: &B::Buffer,
        images: &B::Buffer,
        size: Size,
        keep: bool,
    ) -> Features<B, Saved<B>> {
        let shape = [size.n, self.embedding.tokens(size)];
        let mut x = on.embed(&self.embedding, params, buffers, images, size)?;
        let mut blocks = Vec::new();
        for block in &self.blocks {
            let (y, kept) = on.block(block, params, shape, x, keep)?;
            blocks.extend(kept);
            x = y;
        }
        let cls = on.class_tokens(shape, x)?;
        let (features, norm) = on.layer_norm(&self.norm, params, cls)?;
        Ok((features, keep.then_some(Saved { size, blocks, norm })))
    }

    /// Adds to the gradients those of one forward pass of `images`, from its features' gradient; those of a frozen patch
    /// embedding are left alone.
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
    ) -> Result<(), B::Error> {
        let Saved { size, blocks, norm } = saved;
        let shape = [size.n, self.embedding.tokens(size)];
        let g_cls = on.layer_norm_backward(&self.norm, learned, size.n, norm, g_features)?;
        // Only the class tokens lead to the features.
        let mut g = on.class_tokens_backward(shape, g_cls)?;
        for (block, kept) in self.blocks.iter().zip(blocks).rev() {
            g = on.block_backward(block, learned, shape, kept, g)?;
        }
        on.embed_backward(&self.embedding, learned, images, size, g)
    }
}

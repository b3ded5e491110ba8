//! Forward and backward pass of a vision transformer. It has no batch statistics, so training, momentum branch and evaluation
//! compute the same.

use super::Vit;
use crate::{
    backend::{Backend, Features, Learned},
    ops::conv2d::Size,
};

/// The results of a forward pass that the backward pass needs.
pub struct Saved<B: Backend> {
    size: Size,
    blocks: Vec<B::KeptBlock>,
    /// The results of the last norm, which normalises the class tokens.
    norm: B::KeptNorm,
}

impl Vit {
    /// Features [n, width] of images [n, h, w, 3] and, with `keep`, the results that the backward pass needs. `buffers` are those
    /// of the branch.
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

    /// The backward pass of one forward pass of `images`, from the gradient `g_features` of its features. Adds to the
    /// gradients of the parameters, except those of a frozen patch embedding.
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
        // The features depend on the class tokens only.
        let mut g = on.class_tokens_backward(shape, g_cls)?;
        for (block, kept) in self.blocks.iter().zip(blocks).rev() {
            g = on.block_backward(block, learned, shape, kept, g)?;
        }
        on.embed_backward(&self.embedding, learned, images, size, g)
    }
}

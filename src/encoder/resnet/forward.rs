//! Forward pass of a residual network, for training, the momentum branch and evaluation.

use super::ResNet;
use crate::{
    backend::{Backend, Branch, Features, Residual, Source},
    encoder::resnet::block::Block,
    ops::{conv2d::Size, pool},
};

/// The results of a forward pass that the backward pass needs.
pub struct Saved<B: Backend> {
    pub(super) size: Size,
    pub(super) stem: B::Normed,
    /// The positions of the maxima of the max-pooling, and its input: the stem's output.
    pub(super) pooled: Option<(B::Argmax, B::Buffer)>,
    /// Each block's input and intermediate results.
    pub(super) blocks: Vec<(B::Buffer, SavedBlock<B>)>,
    /// The last block's output.
    pub(super) output: B::Buffer,
}

/// One block's intermediate results.
pub struct SavedBlock<B: Backend> {
    /// The outputs of all convolutions but the last.
    pub inner: Vec<B::Inner>,
    pub last: B::Normed,
    pub shortcut: Option<B::Normed>,
}

impl ResNet {
    /// Features [n, feature_dim] of images [n, h, w, 3] and, with `keep`, the results that the backward pass needs.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward<B: Backend>(
        &self,
        on: &B,
        branch: &mut Branch<B>,
        images: &B::Buffer,
        size: Size,
        keep: bool,
    ) -> Features<B, Saved<B>> {
        let stem = on.conv_norm(&self.stem, branch, Source::Plain(images), size)?;
        let mut at = self.stem.conv.output_size(size);
        let mut x = on.output(&stem, Residual::None)?;
        let stem = keep.then_some(stem);
        let mut pooled = None;
        if self.max_pool {
            let (y, argmax) = on.max_pool(&x, at, self.stem.conv.output)?;
            let stem_output = std::mem::replace(&mut x, y);
            pooled = keep.then_some((argmax, stem_output));
            at = pool::pooled(at);
        }
        let mut blocks = Vec::new();
        for block in &self.blocks {
            let (y, saved) = forward(on, block, branch, &x, &mut at, keep)?;
            let input = std::mem::replace(&mut x, y);
            blocks.extend(saved.map(|saved| (input, saved)));
        }
        let features = on.average_pool(&x, at, self.feature_dim)?;
        Ok((features, stem.map(|stem| Saved { size, stem, pooled, blocks, output: x })))
    }
}

/// A block's output. Replaces `size`, that of the input, by that of the output.
pub(super) fn forward<B: Backend>(
    on: &B,
    block: &Block,
    branch: &mut Branch<B>,
    x: &B::Buffer,
    size: &mut Size,
    keep: bool,
) -> Features<B, SavedBlock<B>> {
    let shortcut = block.shortcut.as_ref().map(|layer| on.conv_norm(layer, branch, Source::Plain(x), *size));
    let shortcut = shortcut.transpose()?;
    let (last, before) = block.convs.split_last().expect("a block has convolutions");
    let mut inner: Vec<B::Inner> = Vec::new();
    for layer in before {
        let normed = on.conv_norm(layer, branch, inner.last().map_or(Source::Plain(x), Source::Inner), *size)?;
        *size = layer.conv.output_size(*size);
        let next = on.inner(normed, keep)?;
        if !keep {
            inner.clear();
        }
        inner.push(next);
    }
    let normed = on.conv_norm(last, branch, inner.last().map_or(Source::Plain(x), Source::Inner), *size)?;
    *size = last.conv.output_size(*size);
    if !keep {
        inner.clear(); // no longer read: the output can take its memory
    }
    let residual = shortcut.as_ref().map_or(Residual::Plain(x), Residual::Normed);
    let output = on.output(&normed, residual)?;
    Ok((output, keep.then_some(SavedBlock { inner, last: normed, shortcut })))
}

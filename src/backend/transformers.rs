//! Embedding, blocks and norms: the building blocks of vision transformers. A block is one operation, because the host takes
//! each group of images through a whole block. Its computation is written once, in [`block`].

pub mod block;

use super::{
    Learned, Memory,
    layers::{Block, Embedding, LayerNorm},
};
use crate::ops::conv2d::Size;

/// A block's output, and the results that its backward pass needs, if they are kept.
pub type Passed<B> =
    Result<(<B as Transformers>::Tokens, Option<<B as Transformers>::KeptBlock>), <B as Memory>::Error>;

/// The operations of vision transformers. The class token is the first token of each image.
pub trait Transformers: Memory {
    /// Tokens [n, tokens, width] between two blocks.
    type Tokens;
    /// The results of a block that its backward pass needs.
    type KeptBlock;
    /// The results of a layer norm that its backward pass needs.
    type KeptNorm;

    /// The tokens of images [n, h, w, 3]: the class token and the embedded patches, plus the positions in `buffers`.
    fn embed(
        &self,
        layer: &Embedding,
        params: &Self::Params,
        buffers: &Self::Buffer,
        images: &Self::Buffer,
        size: Size,
    ) -> Result<Self::Tokens, Self::Error>;

    /// Adds to the gradients of class token and patch embedding, from the gradient `g` of the tokens.
    fn embed_backward(
        &self,
        layer: &Embedding,
        learned: &mut Learned<Self>,
        images: &Self::Buffer,
        size: Size,
        g: Self::Tokens,
    ) -> Result<(), Self::Error>;

    /// A block's output and, with `keep`, the results that its backward pass needs. `shape` is the number of images, and the
    /// number of tokens of an image.
    fn block(
        &self,
        layer: &Block,
        params: &Self::Params,
        shape: [usize; 2],
        x: Self::Tokens,
        keep: bool,
    ) -> Passed<Self>;

    /// The gradient of a block's input, from the gradient `g` of its output. Adds to the gradients of the parameters.
    fn block_backward(
        &self,
        layer: &Block,
        learned: &mut Learned<Self>,
        shape: [usize; 2],
        kept: Self::KeptBlock,
        g: Self::Tokens,
    ) -> Result<Self::Tokens, Self::Error>;

    /// The class tokens [n, width] of the last block's output, in reals.
    fn class_tokens(&self, shape: [usize; 2], x: Self::Tokens) -> Result<Self::Buffer, Self::Error>;

    /// The gradient of the last block's output, from the gradient `g` of its class tokens.
    fn class_tokens_backward(&self, shape: [usize; 2], g: Self::Buffer) -> Result<Self::Tokens, Self::Error>;

    /// Normalises rows, in reals.
    fn layer_norm(
        &self,
        layer: &LayerNorm,
        params: &Self::Params,
        x: Self::Buffer,
    ) -> Result<(Self::Buffer, Self::KeptNorm), Self::Error>;

    /// The gradient of the input of a layer norm, for the rows of `n` images. Adds to the gradients of the parameters.
    fn layer_norm_backward(
        &self,
        layer: &LayerNorm,
        learned: &mut Learned<Self>,
        n: usize,
        kept: Self::KeptNorm,
        g: &Self::Buffer,
    ) -> Result<Self::Buffer, Self::Error>;
}

//! What vision transformers are made of. A block is one operation, since the host takes groups of images through all of it;
//! what it computes is written once, in [`block`].

pub mod block;

use super::{
    Learned, Memory,
    layers::{Block, Embedding, LayerNorm},
};
use crate::ops::conv2d::Size;

/// A block's output and, where it is kept, what its backward pass needs.
pub type Passed<B> =
    Result<(<B as Transformers>::Tokens, Option<<B as Transformers>::KeptBlock>), <B as Memory>::Error>;

/// Transformers' tokens, each image's class token first.
pub trait Transformers: Memory {
    /// Tokens [n, tokens, width] between two blocks.
    type Tokens;
    /// What a block's backward pass needs.
    type KeptBlock;
    /// What a layer norm's backward pass needs.
    type KeptNorm;

    /// The tokens of images [n, h, w, 3]: the class token and the embedded patches, positions (of `buffers`) added.
    fn embed(
        &self,
        layer: &Embedding,
        params: &Self::Params,
        buffers: &Self::Buffer,
        images: &Self::Buffer,
        size: Size,
    ) -> Result<Self::Tokens, Self::Error>;

    /// Adds to the gradients of class token and patches, from that of the tokens.
    fn embed_backward(
        &self,
        layer: &Embedding,
        learned: &mut Learned<Self>,
        images: &Self::Buffer,
        size: Size,
        g: Self::Tokens,
    ) -> Result<(), Self::Error>;

    /// A block's output for `n` images of `tokens` tokens each and, with `keep`, what its backward pass needs.
    fn block(
        &self,
        layer: &Block,
        params: &Self::Params,
        shape: [usize; 2],
        x: Self::Tokens,
        keep: bool,
    ) -> Passed<Self>;

    /// The gradient of its input from that of its output. Adds to the gradients of the parameters.
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

    /// The gradient of the last block's output from that of its class tokens.
    fn class_tokens_backward(&self, shape: [usize; 2], g: Self::Buffer) -> Result<Self::Tokens, Self::Error>;

    /// The normalised rows, in reals.
    fn layer_norm(
        &self,
        layer: &LayerNorm,
        params: &Self::Params,
        x: Self::Buffer,
    ) -> Result<(Self::Buffer, Self::KeptNorm), Self::Error>;

    /// The gradient of its input, rows of `n` images. Adds to the gradients of the parameters.
    fn layer_norm_backward(
        &self,
        layer: &LayerNorm,
        learned: &mut Learned<Self>,
        n: usize,
        kept: Self::KeptNorm,
        g: &Self::Buffer,
    ) -> Result<Self::Buffer, Self::Error>;
}

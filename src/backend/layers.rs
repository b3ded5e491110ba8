//! Descriptions of layers for backends: their shapes, and the ranges of their tensors in the flat buffers of a branch.

use std::ops::Range;

use crate::ops::{
    attention::Attention,
    conv2d::{Conv2d, Size},
    matmul::MatmulPrecision,
};

/// A convolution and the batch norm after it.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    pub conv: Conv2d,
    pub kernel: Range<usize>,
    pub norm: BatchNorm,
}

/// A batch norm: its parameters, if it has any, and its running statistics.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// Weight and bias.
    pub affine: Option<[Range<usize>; 2]>,
    /// Running mean and variance.
    pub running: [Range<usize>; 2],
}

/// A linear layer of a projector or predictor, with optional bias, batch norm and ReLU.
#[derive(Clone, Debug)]
pub struct Dense {
    pub input: usize,
    pub output: usize,
    /// [output, input]
    pub weight: Range<usize>,
    pub bias: Option<Range<usize>>,
    pub norm: Option<BatchNorm>,
    pub relu: bool,
}

/// A linear layer on tokens.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
    pub input: usize,
    pub output: usize,
    pub matmul: MatmulPrecision,
}

impl Linear {
    /// The layer as a 1x1 convolution whose pixels are the tokens.
    pub fn pointwise(&self) -> Conv2d {
        let Self { input, output, matmul, .. } = *self;
        Conv2d { kernel: 1, stride: 1, padding: 0, input, output, matmul }
    }
}

/// A layer norm.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

/// A block of a transformer: x += proj(attention(qkv(norm1(x)))), then x += fc2(gelu(fc1(norm2(x)))).
#[derive(Clone, Debug)]
pub struct Block {
    pub norm1: LayerNorm,
    pub qkv: Linear,
    pub proj: Linear,
    pub norm2: LayerNorm,
    pub fc1: Linear,
    pub fc2: Linear,
    pub heads: usize,
    /// Whether the block is the last one. Only the class tokens of its output are read.
    pub last: bool,
}

impl Block {
    /// The range of all parameters of the block, which are contiguous.
    pub fn params(&self) -> Range<usize> {
        self.norm1.weight.start..self.fc2.bias.end
    }

    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.qkv.input
    }

    /// The block's attention for images of `tokens` tokens.
    pub fn attention(&self, tokens: usize) -> Attention {
        Attention { tokens, heads: self.heads, width: self.width() }
    }
}

/// The embedding of images as tokens: a class token, embedded patches, and fixed positions.
#[derive(Clone, Debug)]
pub struct Embedding {
    pub patches: Conv2d,
    pub weight: Range<usize>,
    pub bias: Range<usize>,
    pub cls_token: Range<usize>,
    /// A range in the buffers of a branch.
    pub positions: Range<usize>,
    /// Patches per row and column of the images that the positions are laid out for.
    pub grid: usize,
    /// Whether training leaves the weight and bias of the patches unchanged.
    pub frozen: bool,
}

impl Embedding {
    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.patches.output
    }

    /// The grid of patches of images of `size`; a patch counts as a pixel.
    ///
    /// # Panics
    /// When the patches do not tile the images.
    pub fn grid_of(&self, size: Size) -> Size {
        let patch = self.patches.kernel;
        assert!(
            size.h.is_multiple_of(patch) && size.w.is_multiple_of(patch),
            "patches of {patch} do not tile {size:?}"
        );
        self.patches.output_size(size)
    }

    /// Tokens of an image.
    pub fn tokens(&self, size: Size) -> usize {
        let grid = self.grid_of(size);
        1 + grid.h * grid.w
    }
}

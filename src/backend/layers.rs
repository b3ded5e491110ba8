//! Layers as backends run them: shapes, and where a layer's tensors lie in the flat buffers of a branch.

use std::ops::Range;

use crate::ops::{
    attention::Attention,
    conv2d::{Conv2d, Size},
    matmul::MatmulPrecision,
};

/// A convolution and the batch norm behind it.
#[derive(Clone, Debug)]
pub struct ConvNorm {
    pub conv: Conv2d,
    pub kernel: Range<usize>,
    pub norm: BatchNorm,
}

/// A batch norm: parameters, where it has any, and running statistics.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    /// Weight and bias.
    pub affine: Option<[Range<usize>; 2]>,
    /// Running mean and variance.
    pub running: [Range<usize>; 2],
}

/// A linear layer with what follows it in a projector or predictor: bias, batch norm, ReLU, where there are any.
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
    /// The same layer as a convolution: tokens as pixels.
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

/// A transformer's block: x += proj(attention(qkv(norm1(x)))), then x += fc2(gelu(fc1(norm2(x)))).
#[derive(Clone, Debug)]
pub struct Block {
    pub norm1: LayerNorm,
    pub qkv: Linear,
    pub proj: Linear,
    pub norm2: LayerNorm,
    pub fc1: Linear,
    pub fc2: Linear,
    pub heads: usize,
    /// Whether the block is the last one, of whose output the class tokens alone are read.
    pub last: bool,
}

impl Block {
    /// All of its parameters, which lie one behind the other.
    pub fn params(&self) -> Range<usize> {
        self.norm1.weight.start..self.fc2.bias.end
    }

    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.qkv.input
    }

    /// Its attention among `tokens` tokens.
    pub fn attention(&self, tokens: usize) -> Attention {
        Attention { tokens, heads: self.heads, width: self.width() }
    }
}

/// What makes tokens of images: a class token, patches, and fixed positions.
#[derive(Clone, Debug)]
pub struct Embedding {
    pub patches: Conv2d,
    pub weight: Range<usize>,
    pub bias: Range<usize>,
    pub cls_token: Range<usize>,
    /// Among the buffers of a branch.
    pub positions: Range<usize>,
    /// Patches per row and column of the images that the positions are laid out for.
    pub grid: usize,
    /// Whether the patches' weight and bias stay as they are.
    pub frozen: bool,
}

impl Embedding {
    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.patches.output
    }

    /// The patches of images of `size`, as pixels.
    ///
    /// # Panics
    /// When they do not tile the images.
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

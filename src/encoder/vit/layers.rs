//! The building blocks of a vision transformer, how their tensors are named and laid out, and what a linear layer does.

use std::ops::Range;

#[cfg(any(test, feature = "cuda"))]
use crate::ops::conv2d::{Conv2d, Size};
use crate::ops::{arena::Layout, layer_norm::Affine, product::Products};

/// A linear layer; the ranges are places in the flat buffer.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
    pub input: usize,
    pub output: usize,
    pub products: Products,
}

/// A layer norm.
#[derive(Clone, Debug)]
pub struct Norm {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

/// A block: x += proj(attention(qkv(norm1(x)))), then x += fc2(gelu(fc1(norm2(x)))).
#[derive(Clone, Debug)]
pub struct Block {
    pub norm1: Norm,
    pub qkv: Linear,
    pub proj: Linear,
    pub norm2: Norm,
    pub fc1: Linear,
    pub fc2: Linear,
}

#[cfg(any(test, feature = "cuda"))]
impl Linear {
    /// The same layer as a convolution: tokens as pixels.
    pub fn pointwise(&self) -> Conv2d {
        let Self { input, output, products, .. } = *self;
        Conv2d { kernel: 1, stride: 1, padding: 0, input, output, products }
    }
}

impl Block {
    /// All of its parameters, which lie one behind the other.
    pub fn params(&self) -> Range<usize> {
        self.norm1.weight.start..self.fc2.bias.end
    }
}

/// Rows as pixels.
#[cfg(any(test, feature = "cuda"))]
pub fn pixels(rows: usize) -> Size {
    Size { n: rows, h: 1, w: 1 }
}

impl Norm {
    /// Its weight and bias.
    pub fn affine<'a, E>(&self, params: &'a [E]) -> Affine<'a, E> {
        Affine { weight: &params[self.weight.clone()], bias: &params[self.bias.clone()] }
    }
}

/// Lays out the tensors in timm's order while layers are described.
#[derive(Debug, Default)]
pub struct Builder {
    params: Layout,
    buffers: Layout,
}

impl Builder {
    /// A trainable tensor.
    pub fn param(&mut self, name: &str, shape: &[usize]) -> Range<usize> {
        let index = self.params.push(name, shape);
        self.params.entries[index].range()
    }

    /// A tensor that training leaves alone.
    pub fn buffer(&mut self, name: &str, shape: &[usize]) {
        self.buffers.push(name, shape);
    }

    /// A linear layer.
    pub fn linear(&mut self, name: &str, input: usize, output: usize) -> Linear {
        let weight = self.param(&format!("{name}.weight"), &[output, input]);
        let bias = self.param(&format!("{name}.bias"), &[output]);
        Linear { weight, bias, input, output, products: Products::Full }
    }

    /// A layer norm.
    pub fn norm(&mut self, name: &str, width: usize) -> Norm {
        let weight = self.param(&format!("{name}.weight"), &[width]);
        let bias = self.param(&format!("{name}.bias"), &[width]);
        Norm { weight, bias }
    }

    /// A block with tokens of `width` and a perceptron of `hidden`.
    pub fn block(&mut self, name: &str, width: usize, hidden: usize) -> Block {
        Block {
            norm1: self.norm(&format!("{name}.norm1"), width),
            qkv: self.linear(&format!("{name}.attn.qkv"), width, 3 * width),
            proj: self.linear(&format!("{name}.attn.proj"), width, width),
            norm2: self.norm(&format!("{name}.norm2"), width),
            fc1: self.linear(&format!("{name}.mlp.fc1"), width, hidden),
            fc2: self.linear(&format!("{name}.mlp.fc2"), hidden, width),
        }
    }

    /// The layouts of parameters and of buffers.
    pub fn finish(self) -> (Layout, Layout) {
        (self.params, self.buffers)
    }
}

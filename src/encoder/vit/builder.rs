//! Names and layout of the tensors of a vision transformer.

use std::ops::Range;

use crate::{
    backend::layers::{Block, LayerNorm, Linear},
    ops::{arena::Layout, matmul::MatmulPrecision},
};

/// Builds descriptions of layers, and lays out their tensors in timm's order.
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

    /// A tensor that is not trained.
    pub fn buffer(&mut self, name: &str, shape: &[usize]) -> Range<usize> {
        let index = self.buffers.push(name, shape);
        self.buffers.entries[index].range()
    }

    /// A linear layer.
    pub fn linear(&mut self, name: &str, input: usize, output: usize) -> Linear {
        let weight = self.param(&format!("{name}.weight"), &[output, input]);
        let bias = self.param(&format!("{name}.bias"), &[output]);
        Linear { weight, bias, input, output, matmul: MatmulPrecision::Full }
    }

    /// A layer norm.
    pub fn norm(&mut self, name: &str, width: usize) -> LayerNorm {
        let weight = self.param(&format!("{name}.weight"), &[width]);
        let bias = self.param(&format!("{name}.bias"), &[width]);
        LayerNorm { weight, bias }
    }

    /// A block with tokens of `width`, a perceptron of width `hidden`, and `heads` attention heads.
    pub fn block(&mut self, name: &str, width: usize, hidden: usize, heads: usize) -> Block {
        Block {
            norm1: self.norm(&format!("{name}.norm1"), width),
            qkv: self.linear(&format!("{name}.attn.qkv"), width, 3 * width),
            proj: self.linear(&format!("{name}.attn.proj"), width, width),
            norm2: self.norm(&format!("{name}.norm2"), width),
            fc1: self.linear(&format!("{name}.mlp.fc1"), width, hidden),
            fc2: self.linear(&format!("{name}.mlp.fc2"), hidden, width),
            heads,
            last: false,
        }
    }

    /// The layouts of parameters and of buffers.
    pub fn finish(self) -> (Layout, Layout) {
        (self.params, self.buffers)
    }
}

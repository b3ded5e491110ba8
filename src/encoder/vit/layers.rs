//! The building blocks of a vision transformer, how their tensors are named and laid out, and what a linear layer does.

use std::ops::Range;

use crate::ops::{
    Real,
    arena::Layout,
    columns::{add_column_sums, add_to_rows, fill_rows},
    conv2d::{Conv2d, Size, Source},
    layer_norm::Affine,
    parts::parts,
    product::Products,
};

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

impl Linear {
    /// y [rows, output] = x w^T + bias, for x [rows, input], the tokens of `images` images.
    pub fn forward<E: Real>(&self, params: &[E], x: &[E], images: usize, y: &mut [E]) {
        fill_rows(&params[self.bias.clone()], y);
        self.add_product(params, x, images, y);
    }

    /// y += x w^T + bias.
    pub fn add_forward<E: Real>(&self, params: &[E], x: &[E], images: usize, y: &mut [E]) {
        self.add_product(params, x, images, y);
        add_to_rows(&params[self.bias.clone()], y);
    }

    /// Adds the gradients of weight and bias, summed over the parts of the batch; writes the gradient of x [rows, input] to `gx`.
    pub fn backward<E: Real>(&self, params: &[E], x: &[E], gy: &[E], images: usize, gx: &mut [E], gradients: &mut [E]) {
        let (conv, size) = (self.pointwise(), pixels(images, gy.len() / self.output));
        add_column_sums(gy, parts(images), &mut gradients[self.bias.clone()]);
        conv.backward_weight(Source::plain(x), size, gy, &mut gradients[self.weight.clone()]);
        conv.backward_data(gy, size, &params[self.weight.clone()], E::zero(), gx);
    }

    fn add_product<E: Real>(&self, params: &[E], x: &[E], images: usize, y: &mut [E]) {
        let size = pixels(images, x.len() / self.input);
        self.pointwise().forward(Source::plain(x), size, &params[self.weight.clone()], E::one(), y, None);
    }

    /// The same layer as a convolution: tokens as pixels.
    pub fn pointwise(&self) -> Conv2d {
        let Self { input, output, products, .. } = *self;
        Conv2d { kernel: 1, stride: 1, padding: 0, input, output, products }
    }
}

/// Rows of `images` images as pixels.
pub fn pixels(images: usize, rows: usize) -> Size {
    Size { n: images, h: rows / images, w: 1 }
}

impl Norm {
    /// Its weight and bias.
    pub fn affine<'a, E>(&self, params: &'a [E]) -> Affine<'a, E> {
        Affine { weight: &params[self.weight.clone()], bias: &params[self.bias.clone()] }
    }

    /// The gradients of its weight and bias.
    pub fn gradients<'a, E>(&self, gradients: &'a mut [E]) -> [&'a mut [E]; 2] {
        gradients.get_disjoint_mut([self.weight.clone(), self.bias.clone()]).expect("tensors do not overlap")
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

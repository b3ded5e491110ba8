//! Lists the operations of a residual network.

use super::ResNet;
use crate::{
    backend::{
        cost::{Operation, Operations, Pass},
        layers::ConvNorm,
    },
    ops::{conv2d::Size, pool},
};

/// What follows a batch norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// A ReLU.
    Relu,
    /// The addition of the residual, then a ReLU.
    Sum,
    /// An addition that applies the norm itself, as it does to the shortcut's.
    Nothing,
}

impl ResNet {
    /// The operations of a forward pass over images of `size`, and of the backward pass after it.
    pub fn operations(&self, size: Size) -> Vec<Operation> {
        let mut all = Operations::default();
        let mut at = conv_norm(&mut all, &self.stem, size, After::Relu, false);
        if self.max_pool {
            let (channels, pooled) = (self.stem.conv.output, pool::pooled(at));
            let layer = format!("max-pooling, {channels} channels, {}x{}", at.h, at.w);
            let elements = (at.pixels() + pooled.pixels()) * channels;
            for pass in [Pass::Forward, Pass::Backward] {
                all.add(&layer, pass, 0, elements);
            }
            at = pooled;
        }
        for block in &self.blocks {
            if let Some(shortcut) = &block.shortcut {
                conv_norm(&mut all, shortcut, at, After::Nothing, true);
            }
            let last = block.convs.len() - 1;
            for (i, layer) in block.convs.iter().enumerate() {
                at = conv_norm(&mut all, layer, at, if i == last { After::Sum } else { After::Relu }, true);
            }
        }
        for pass in [Pass::Forward, Pass::Backward] {
            all.add("average pooling", pass, 0, at.pixels() * self.feature_dim);
        }
        all.into_vec()
    }
}

/// Adds a convolution, its batch norm and what follows. Returns the size of the output.
///
/// The forward pass reads the norm's input again to apply it. The backward pass goes over its tensors twice: for the sums of
/// the batch, then for the gradient.
fn conv_norm(all: &mut Operations, layer: &ConvNorm, size: Size, after: After, of_input: bool) -> Size {
    let out = all.convolution(&layer.conv, size, of_input);
    let (channels, elements) = (layer.conv.output, out.pixels() * layer.conv.output);
    let norm = format!("batch norm, {channels} channels, {}x{}", out.h, out.w);
    let [forward, backward] = match after {
        // Input to output; input, output and gradient, twice, to gradient.
        After::Relu => [2, 7],
        // Input and residual to output. The first reading writes the gradient that flows on to the residual.
        After::Sum => [3, 7],
        // The sum reads the input; input and gradient, twice, to gradient.
        After::Nothing => [1, 5],
    };
    all.add(&norm, Pass::Forward, 0, forward * elements);
    all.add(&norm, Pass::Backward, 0, backward * elements);
    out
}

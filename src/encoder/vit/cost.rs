//! Lists the operations of a vision transformer.

use super::Vit;
use crate::{
    backend::{
        cost::{Operation, Operations, Pass},
        layers::Block,
    },
    ops::conv2d::Size,
};

impl Vit {
    /// The operations of a forward pass over images of `size`, and of the backward pass after it.
    pub fn operations(&self, size: Size) -> Vec<Operation> {
        let mut all = Operations::default();
        let tokens = self.embedding.tokens(size);
        all.convolution(&self.embedding.patches, size, false);
        for block in &self.blocks {
            add(&mut all, block, [size.n, tokens]);
        }
        all.into_vec()
    }
}

/// Adds a block. Its backward pass computes the outputs of norms and of the GELU again.
fn add(all: &mut Operations, block: &Block, [n, tokens]: [usize; 2]) {
    let (rows, width) = (n * tokens, block.width());
    let (tensor, hidden) = (rows * width, rows * block.fc1.output);
    // `proj` and `fc2` add the residual.
    for (layer, added) in [(&block.qkv, 0), (&block.proj, tensor), (&block.fc1, 0), (&block.fc2, tensor)] {
        all.linear([layer.input, layer.output], rows, added);
    }
    // Queries times keys, and weights times values. Backward: the weights again, and four products for the gradients of weights,
    // values, queries and keys. No matrix of weights is moved.
    let (attention, product) = (format!("attention, {} heads, {tokens} tokens", block.heads), tokens * tensor);
    all.add(&attention, Pass::Forward, 2 * product, 4 * tensor);
    all.add(&attention, Pass::Backward, 5 * product, 8 * tensor);
    let norm = format!("layer norm, width {width}");
    for _ in 0..2 {
        all.add(&norm, Pass::Forward, 0, 2 * tensor);
        all.add(&norm, Pass::Backward, 0, (2 + 4) * tensor);
    }
    let gelu = format!("GELU, width {}", block.fc1.output);
    all.add(&gelu, Pass::Forward, 0, 2 * hidden);
    all.add(&gelu, Pass::Backward, 0, 4 * hidden);
}

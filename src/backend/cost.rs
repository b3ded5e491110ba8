//! What operations multiply and move at least, whatever computes them.

use crate::ops::conv2d::{Conv2d, Size};

/// The pass that an operation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    Backward,
}

/// What an operation multiplies and moves at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The layer and its shape. Equal layers have the same text.
    pub layer: String,
    pub pass: Pass,
    pub multiply_adds: u64,
    /// Elements that are read and written, each once: activations, gradients, parameters. What a kernel computes on the way, such
    /// as the sums of a batch norm after a convolution, is not moved.
    pub elements: u64,
}

/// The operations of a network, in the order in which they are added.
#[derive(Debug, Default)]
pub struct Operations(Vec<Operation>);

impl Operations {
    /// Adds an operation.
    pub fn add(&mut self, layer: &str, pass: Pass, multiply_adds: usize, elements: usize) {
        let (multiply_adds, elements) = (multiply_adds as u64, elements as u64);
        self.0.push(Operation { layer: layer.to_owned(), pass, multiply_adds, elements });
    }

    /// Adds the passes of a convolution over images of `size`; without `of_input`, the backward pass computes only the gradient of
    /// the weights. Returns the size of its output.
    pub fn convolution(&mut self, conv: &Conv2d, size: Size, of_input: bool) -> Size {
        let Conv2d { kernel, stride, input, output, .. } = *conv;
        let stride = if stride == 1 { String::new() } else { format!(" stride {stride}") };
        let layer = format!("{kernel}x{kernel}{stride}, {input} to {output} channels, {}x{}", size.h, size.w);
        let out = conv.output_size(size);
        let (x, y, multiply_adds) = (size.pixels() * input, out.pixels() * output, out.pixels() * conv.weights());
        let elements = x + y + conv.weights();
        self.add(&layer, Pass::Forward, multiply_adds, elements);
        for _ in 0..1 + usize::from(of_input) {
            self.add(&layer, Pass::Backward, multiply_adds, elements);
        }
        out
    }

    /// Adds the passes of a linear layer over `rows` rows. `added` is the number of elements that its forward pass adds to the output.
    pub fn linear(&mut self, [input, output]: [usize; 2], rows: usize, added: usize) {
        let (layer, multiply_adds) = (format!("linear, {input} to {output}"), rows * input * output);
        let elements = rows * (input + output) + input * output;
        self.add(&layer, Pass::Forward, multiply_adds, elements + added);
        // The gradients of the input and of the weights.
        for _ in 0..2 {
            self.add(&layer, Pass::Backward, multiply_adds, elements);
        }
    }

    /// All operations.
    pub fn into_vec(self) -> Vec<Operation> {
        self.0
    }
}

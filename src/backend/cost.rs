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
        let strided = if stride == 1 { String::new() } else { format!(" stride {stride}") };
        let layer = format!("{kernel}x{kernel}{strided}, {input} to {output} channels, {}x{}", size.h, size.w);
        let out = conv.output_size(size);
        // A kernel narrower than the stride skips pixels.
        let seen =
            |pixels: usize, outputs: usize| pixels.min(outputs * kernel.min(stride) + kernel.saturating_sub(stride));
        let (x, y) = (size.n * seen(size.h, out.h) * seen(size.w, out.w) * input, out.pixels() * output);
        let multiply_adds = out.pixels() * conv.weights();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::MatmulPrecision;

    /// A 3x3 kernel sees every pixel at stride 2, a 1x1 kernel a quarter of them.
    #[test]
    fn pixels_that_a_kernel_skips_are_not_moved() {
        let elements = |kernel, padding| {
            let conv = Conv2d { kernel, stride: 2, padding, input: 8, output: 16, matmul: MatmulPrecision::Full };
            let mut all = Operations::default();
            assert_eq!(all.convolution(&conv, Size { n: 2, h: 6, w: 8 }, false), Size { n: 2, h: 3, w: 4 });
            all.into_vec()[0].elements
        };
        let output = 2 * 3 * 4 * 16;
        assert_eq!(elements(3, 1), 2 * 6 * 8 * 8 + output + 9 * 8 * 16);
        assert_eq!(elements(1, 0), 2 * 3 * 4 * 8 + output + 8 * 16);
    }
}

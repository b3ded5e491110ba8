//! The blocks of a residual network, with the names and layout of their tensors.

use crate::{
    backend::layers::{BatchNorm, ConvNorm},
    ops::{arena::Layout, conv2d::Conv2d, matmul::MatmulPrecision},
};

/// A residual block: a chain of convolutions, and a shortcut. The shortcut is a projection, or the identity if None.
#[derive(Clone, Debug)]
pub struct Block {
    pub convs: Vec<ConvNorm>,
    pub shortcut: Option<ConvNorm>,
}

impl Block {
    /// Output channels.
    pub fn output(&self) -> usize {
        self.convs.last().expect("a block has convolutions").conv.output
    }
}

/// Builds descriptions of blocks, and lays out their tensors in torch's order.
#[derive(Debug, Default)]
pub struct Builder {
    params: Layout,
    buffers: Layout,
}

impl Builder {
    /// A convolution called `conv` ([input, output] channels), followed by a batch norm called `norm`.
    pub fn conv_norm(
        &mut self,
        conv: &str,
        norm: &str,
        [input, output]: [usize; 2],
        kernel: usize,
        stride: usize,
    ) -> ConvNorm {
        let place = |layout: &mut Layout, name: String, shape: &[usize]| {
            let index = layout.push(name, shape);
            layout.entries[index].range()
        };
        let (params, buffers) = (&mut self.params, &mut self.buffers);
        ConvNorm {
            conv: Conv2d { kernel, stride, padding: kernel / 2, input, output, matmul: MatmulPrecision::Full },
            kernel: place(params, format!("{conv}.weight"), &[output, input, kernel, kernel]),
            norm: BatchNorm {
                affine: Some(["weight", "bias"].map(|name| place(params, format!("{norm}.{name}"), &[output]))),
                running: ["mean", "var"].map(|name| place(buffers, format!("{norm}.running_{name}"), &[output])),
            },
        }
    }

    /// A residual block with `planes` inner channels: two 3x3 convolutions, or 1x1, 3x3 and a widening 1x1.
    pub fn block(&mut self, name: &str, input: usize, planes: usize, stride: usize, bottleneck: bool) -> Block {
        // (kernel, stride, output) of each convolution
        let shape = if bottleneck {
            vec![(1, 1, planes), (3, stride, planes), (1, 1, 4 * planes)]
        } else {
            vec![(3, stride, planes), (3, 1, planes)]
        };
        let mut channels = input;
        let mut convs = Vec::new();
        for (i, (kernel, stride, output)) in shape.into_iter().enumerate() {
            let (conv, norm) = (format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1));
            convs.push(self.conv_norm(&conv, &norm, [channels, output], kernel, stride));
            channels = output;
        }
        let projects = stride != 1 || input != channels;
        let shortcut = projects.then(|| {
            let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
            self.conv_norm(&conv, &norm, [input, channels], 1, stride)
        });
        Block { convs, shortcut }
    }

    /// The layouts of parameters and of buffers.
    pub fn finish(self) -> (Layout, Layout) {
        (self.params, self.buffers)
    }
}

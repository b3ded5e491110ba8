//! The building blocks of a residual network, and how their tensors are named and laid out.

use std::ops::Range;

use crate::ops::{arena::Layout, conv2d::Conv2d, product::Products};

/// A convolution and the batch norm behind it; the ranges are places in the flat buffers.
#[derive(Clone, Debug)]
pub struct ConvBatchNorm {
    pub conv: Conv2d,
    pub kernel: Range<usize>,
    pub weight: Range<usize>,
    pub bias: Range<usize>,
    pub running_mean: Range<usize>,
    pub running_var: Range<usize>,
}

/// A residual block: convolutions in a row, beside a shortcut that is the identity or a projection.
#[derive(Clone, Debug)]
pub struct Block {
    pub convs: Vec<ConvBatchNorm>,
    pub shortcut: Option<ConvBatchNorm>,
}

impl Block {
    /// Output channels.
    pub fn output(&self) -> usize {
        self.convs.last().expect("a block has convolutions").conv.output
    }
}

/// Lays out the tensors in torch's order while blocks are described.
#[derive(Debug, Default)]
pub struct Builder {
    params: Layout,
    buffers: Layout,
}

impl Builder {
    /// A convolution called `conv` ([input, output] channels) with the batch norm called `norm` behind it.
    pub fn conv_batch_norm(
        &mut self,
        conv: &str,
        norm: &str,
        [input, output]: [usize; 2],
        kernel: usize,
        stride: usize,
    ) -> ConvBatchNorm {
        let place = |layout: &mut Layout, name: String, shape: &[usize]| {
            let index = layout.push(name, shape);
            layout.entries[index].range()
        };
        let (params, buffers) = (&mut self.params, &mut self.buffers);
        ConvBatchNorm {
            conv: Conv2d { kernel, stride, padding: kernel / 2, input, output, products: Products::Full },
            kernel: place(params, format!("{conv}.weight"), &[output, input, kernel, kernel]),
            weight: place(params, format!("{norm}.weight"), &[output]),
            bias: place(params, format!("{norm}.bias"), &[output]),
            running_mean: place(buffers, format!("{norm}.running_mean"), &[output]),
            running_var: place(buffers, format!("{norm}.running_var"), &[output]),
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
            convs.push(self.conv_batch_norm(&conv, &norm, [channels, output], kernel, stride));
            channels = output;
        }
        let projects = stride != 1 || input != channels;
        let shortcut = projects.then(|| {
            let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
            self.conv_batch_norm(&conv, &norm, [input, channels], 1, stride)
        });
        Block { convs, shortcut }
    }

    /// The layouts of parameters and of buffers.
    pub fn finish(self) -> (Layout, Layout) {
        (self.params, self.buffers)
    }
}

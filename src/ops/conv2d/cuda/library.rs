//! Convolutions whose patches are single pixels as products by the device's library.
//!
//! Images [pixels, channels] and weights [output, input] are stored row by row. In the library's column-major order they are
//! [channels, pixels] and [input, output].

use super::{Added, Conv2d, GpuError, Kind, Math, OnGpu, View};
use crate::ops::{
    cuda::{Matrices, Product},
    parts::power,
};

/// Number of parts of a batch that algorithms are chosen for. Every share of the batch gets the algorithm of this many parts, so its
/// bits are those of the whole batch.
const PARTS: usize = 16;
/// Most elements of the weight gradients that are kept apart (256 MiB).
const APART: usize = 1 << 26;

impl Conv2d {
    /// Whether the library multiplies these operands. Our kernels do where patches are of many pixels, where f32 is multiplied in
    /// full, and where operands do not fill loads of 16 bytes.
    pub(super) fn is_for_library(&self, on: OnGpu, operands: [View; 3], added: Added) -> bool {
        let mut all = operands.into_iter().chain(added.bias.map(|bias| bias.stored)).chain(added.tensor);
        let whole = |channels: usize| channels.is_multiple_of(16 / on.math.scalar().bytes());
        on.gpu.traits().library
            && self.is_pointwise()
            && on.math != Math::F32
            && whole(self.input)
            && whole(self.output)
            && all.all(|operand| operand.is_aligned(16))
    }

    /// y = conv(x, weight) plus the tensors of `added`.
    pub(super) fn multiply_forward(
        &self,
        on: OnGpu,
        x: View,
        weight: View,
        added: Added,
        y: View,
    ) -> Result<(), GpuError> {
        let product = of_pixels(on, [self.output, self.input], [true, false]);
        on.gpu.multiply(product, matrices([weight, x], added, y))
    }

    /// gx = conv^T(gy, weight) plus the tensors of `added`.
    pub(super) fn multiply_data(
        &self,
        on: OnGpu,
        gy: View,
        weight: View,
        added: Added,
        gx: View,
    ) -> Result<(), GpuError> {
        let product = of_pixels(on, [self.input, self.output], [false, false]);
        on.gpu.multiply(product, matrices([weight, gy], added, gx))
    }

    /// gw += the weight gradient, in f32. There is a product per part of the batch.
    pub(super) fn multiply_weight(&self, on: OnGpu, x: View, gy: View, gw: View) -> Result<(), GpuError> {
        let pixels = on.size.pixels() / on.parts;
        let at_a_time = power(|count| count * self.weights() <= APART).min(on.parts);
        let product = Product {
            m: self.input,
            n: self.output,
            k: pixels,
            transposed: [false, true],
            factors: on.math.scalar().into(),
            result: Kind::F32,
            count: at_a_time,
            chosen_for: [self.output, PARTS],
        };
        self.add_parts(on, gw, [at_a_time, 1], |launch, pieces| {
            let of_launch = |channels: usize| {
                let len = at_a_time * pixels * channels;
                launch * len..(launch + 1) * len
            };
            let factors = [x.part(of_launch(self.input)), gy.part(of_launch(self.output))];
            on.gpu.multiply(product, matrices(factors, Added::default(), pieces.view()))
        })
    }
}

/// The product of a matrix with the pixels of images, [m, k] times [k, pixels].
fn of_pixels(on: OnGpu, [m, k]: [usize; 2], transposed: [bool; 2]) -> Product {
    let (pixels, kind) = (on.size.pixels(), on.math.scalar().into());
    let chosen_for = [pixels / on.parts * PARTS, 1];
    Product { m, n: pixels, k, transposed, factors: kind, result: kind, count: 1, chosen_for }
}

fn matrices<'a>([a, b]: [View<'a>; 2], added: Added<'a>, d: View<'a>) -> Matrices<View<'a>> {
    Matrices { a, b, bias: added.bias.map(|bias| bias.stored), added: added.tensor, d }
}

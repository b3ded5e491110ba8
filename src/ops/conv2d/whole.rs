//! Convolutions of images so small that every output pixel sees all input pixels, computed as products of whole images.
//!
//! On 2x2 pixels a 3x3 kernel joins 16 pairs of an output and an input pixel, on a single pixel one pair. Per pair of channels
//! the definition takes 36 and 9 multiplications there, and Winograd's algorithm 36, most of them with zeros of the padding. So
//! the weights are laid out by pairs of pixels here, and an image is a row of a matrix.

use std::ops::Range;

use rayon::prelude::*;

use super::{Conv2d, Size, Source, packed};
use crate::ops::{
    Real,
    batch_norm::TileMoments,
    matmul::{Left, Operand, Panels, Start, WithOperand, multiply_leaves},
    matrix::Matrix,
    parts::{Threads, Work, parts, write_tree},
};

/// Output channels per task of the weight gradient.
const OUTPUTS: usize = 32;

/// A convolution in which each output pixel sees all pixels of its image.
#[derive(Clone, Copy)]
pub struct Whole<'a> {
    conv: &'a Conv2d,
    size: Size,
}

impl<'a> Whole<'a> {
    /// None where some output pixel does not see the whole image.
    pub fn of(conv: &'a Conv2d, size: Size) -> Option<Self> {
        let keeps_the_size = conv.stride == 1 && conv.kernel == 2 * conv.padding + 1;
        let sees_all = size.h <= conv.padding + 1 && size.w <= conv.padding + 1;
        (conv.kernel > 1 && keeps_the_size && sees_all).then_some(Self { conv, size })
    }

    /// y = conv(x, weight) + beta y, as [`Conv2d::forward`].
    pub fn forward<E: Real>(self, x: Source<E>, weight: &[E], beta: E, y: &mut [E], moments: &mut TileMoments<E>) {
        let Conv2d { input, output, .. } = *self.conv;
        self.with_pairs(weight, |weight| self.product(x, [input, output], weight.t(), beta, y, moments));
    }

    /// gx = conv^T(gy, weight) + beta gx, as [`Conv2d::backward_data`].
    pub fn backward_data<E: Real>(self, gy: &[E], weight: &[E], beta: E, gx: &mut [E]) {
        let (Conv2d { input, output, .. }, gy) = (*self.conv, Source::plain(gy));
        self.with_pairs(weight, |weight| self.product(gy, [output, input], weight, beta, gx, &mut TileMoments::none()));
    }

    /// Pixels of an image.
    fn pixels(self) -> usize {
        self.size.h * self.size.w
    }

    /// The kernel's tap by which an output pixel sees an input pixel.
    fn tap(self, output: usize, input: usize) -> usize {
        let w = self.size.w;
        let [down, right] = [input / w + self.conv.padding - output / w, input % w + self.conv.padding - output % w];
        down * self.conv.kernel + right
    }

    /// Runs `work` with the weights laid out by pairs of pixels: [output pixel, output, input pixel, input].
    fn with_pairs<E: Real>(self, weight: &[E], work: impl FnOnce(Matrix<E>)) {
        let (Conv2d { input, output, .. }, pixels) = (*self.conv, self.pixels());
        let [rows, columns] = [pixels * output, pixels * input];
        E::with_scratch(rows * columns, |pairs| {
            pairs.par_chunks_exact_mut(columns).enumerate().for_each(|(row, pairs)| {
                let (seeing, o) = (row / output, row % output);
                for (seen, pair) in pairs.chunks_exact_mut(input).enumerate() {
                    pair.copy_from_slice(&weight[o * self.conv.patch() + self.tap(seeing, seen) * input..][..input]);
                }
            });
            work(Matrix::new(pairs, rows, columns));
        });
    }

    /// y [n, pixels, channels] = x weight + beta y, where an image is a row.
    fn product<E: Real>(
        self,
        x: Source<E>,
        [from, to]: [usize; 2],
        weight: Matrix<E>,
        beta: E,
        y: &mut [E],
        moments: &mut TileMoments<E>,
    ) {
        let (pixels, matmul) = (self.pixels(), self.conv.matmul);
        let conv = &Conv2d { kernel: 1, stride: 1, padding: 0, input: pixels * from, output: pixels * to, matmul };
        let size = Size { n: self.size.n, h: 1, w: 1 };
        matmul.run(packed::Forward { conv, x, size, weight, beta, y, channels: to, moments });
    }
}

/// gw += the weight gradient.
pub struct BackwardWeight<'a, E> {
    pub whole: Whole<'a>,
    pub x: Source<'a, E>,
    pub gy: &'a [E],
    pub gw: &'a mut [E],
}

/// The factors of the weight gradient of one tap of the kernel.
struct Tap<'a, E> {
    whole: Whole<'a>,
    x: &'a Source<'a, E>,
    gy: &'a [E],
    /// The pairs [output pixel, input pixel] that the tap joins.
    pairs: &'a [[usize; 2]],
    /// Images of a part of the batch.
    part: usize,
    /// Rows of a part: one per image and pair, then rows of zeros.
    leaf: usize,
}

impl<E: Real> Tap<'_, E> {
    /// Writes the gradient [outputs, input] of the tap's weights to `product`, for output channels from `first` on, over some
    /// parts of the batch.
    fn product<P: Operand<E>>(&self, parts: Range<usize>, first: usize, product: &mut [E]) {
        let input = self.whole.conv.input;
        let (outputs, depth) = (product.len() / input, parts.len() * self.leaf);
        E::with_scratch(depth * (outputs + input), |rows| {
            let (gradients, images) = rows.split_at_mut(depth * outputs);
            self.gather(parts.start, [first, outputs], gradients, images);
            let (gradients, images) = (Matrix::new(gradients, depth, outputs), Matrix::new(images, depth, input));
            E::with_scratch(Panels::<E>::len::<P>([depth, input]), |memory| {
                let images = Panels::pack::<P>(images, memory, Threads::One);
                Left::with_transposed::<P>(gradients, Threads::One, |gradients| {
                    let leaves = (parts.len() > 1).then_some(parts.len());
                    multiply_leaves::<E, P>(gradients, images, product, Start::Zero, leaves);
                });
            });
        });
    }

    /// Gathers, row by row from a part on, the gradients of `outputs` channels from `first` on, and the input pixels that the output
    /// pixels saw.
    fn gather(&self, part: usize, [first, outputs]: [usize; 2], gradients: &mut [E], images: &mut [E]) {
        let (Conv2d { input, output, .. }, pixels, pairs) = (*self.whole.conv, self.whole.pixels(), self.pairs);
        let rows = gradients.chunks_exact_mut(outputs).zip(images.chunks_exact_mut(input));
        for (row, (gradient, image)) in rows.enumerate() {
            let (part, met_at) = (part + row / self.leaf, row % self.leaf);
            if met_at >= self.part * pairs.len() {
                gradient.fill(E::zero());
                image.fill(E::zero());
                continue;
            }
            let (of, [seeing, seen]) = (part * self.part + met_at / pairs.len(), pairs[met_at % pairs.len()]);
            gradient.copy_from_slice(&self.gy[(of * pixels + seeing) * output + first..][..outputs]);
            self.x.copy_to((of * pixels + seen) * input, image);
        }
    }
}

impl<E: Real> WithOperand<E> for BackwardWeight<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { whole, x, gy, gw } = self;
        let (Conv2d { input, .. }, n, pixels) = (*whole.conv, whole.size.n, whole.pixels());
        // For each tap, the pairs of an output and an input pixel that it joins.
        let mut taps = vec![Vec::new(); whole.conv.kernel * whole.conv.kernel];
        for (seeing, seen) in (0..pixels).flat_map(|seeing| (0..pixels).map(move |seen| (seeing, seen))) {
            taps[whole.tap(seeing, seen)].push([seeing, seen]);
        }
        let parts = parts(n);
        // Parts that are multiplied at once.
        let together = if P::sums_in_order() { parts } else { 1 };
        gw.par_chunks_mut(OUTPUTS * whole.conv.patch()).enumerate().for_each(|(i, gw)| {
            let outputs = gw.len() / whole.conv.patch();
            for (tap, pairs) in taps.iter().enumerate().filter(|(_, pairs)| !pairs.is_empty()) {
                // Sums run over all images and pairs. Each part of the batch is a leaf, padded to whole elements.
                let leaf = (n / parts * pairs.len()).next_multiple_of(P::PACK);
                let of_tap = Tap { whole, x: &x, gy, pairs, part: n / parts, leaf };
                E::with_scratch(outputs * input, |product| {
                    write_tree(parts / together, product, Work::Alone, |group, product| {
                        of_tap.product::<P>(group * together..(group + 1) * together, i * OUTPUTS, product);
                    });
                    for (gw, product) in gw.chunks_exact_mut(whole.conv.patch()).zip(product.chunks_exact(input)) {
                        let gw = &mut gw[tap * input..][..input];
                        gw.iter_mut().zip(product).for_each(|(gw, product)| *gw += *product);
                    }
                });
            }
        });
    }
}

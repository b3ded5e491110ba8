//! Gradients with respect to the input and to the weights.

use rayon::prelude::*;

use super::{Conv2d, Size, Source, packed, rows_of, winograd};
use crate::ops::{
    Real,
    batch_norm::TileMoments,
    columns::WHOLE_VECTORS,
    gemm::{Matrix, Threads, gemm},
    simd::vectorized,
};

/// Into how many parts a batch is cut whose weight gradients are summed apart, then in order: the first that leaves each
/// [`PART_ROWS`] pixels, as every part costs a pass over the weights.
const WEIGHT_PARTS: [usize; 4] = [16, 8, 4, 2];
const PART_ROWS: usize = 96;
/// Weights per task when the parts are summed.
const SUM_PART: usize = 1 << 13;

/// gw += every part in `sums` [parts, weights], in order.
pub(in crate::ops::conv2d) fn add_in_order<E: Real>(sums: &[E], gw: &mut [E]) {
    let weights = gw.len();
    gw.par_chunks_mut(SUM_PART).enumerate().for_each(|(i, gw)| {
        for sum in sums.chunks_exact(weights) {
            let sum = &sum[i * SUM_PART..][..gw.len()];
            vectorized(
                #[inline(always)]
                || gw.iter_mut().zip(sum).for_each(|(g, s)| *g += *s),
            );
        }
    });
}

/// Pixels of each of the parts whose weight gradients are summed apart, and of a tile of one, at most `rows`.
pub(super) fn weight_parts(pixels: usize, rows: usize) -> [usize; 2] {
    let parts = WEIGHT_PARTS.into_iter().find(|parts| pixels >= parts * PART_ROWS).unwrap_or(1);
    let part = rows_of(pixels, parts);
    [part, rows_of(part, part.div_ceil(rows))]
}

impl Conv2d {
    /// gx = conv^T(gy, weight) + beta gx, with `beta` 0 or 1.
    ///
    /// Shapes as in [`Conv2d::forward`]; `size` is the input's.
    pub fn backward_data<E: Real>(&self, gy: &[E], size: Size, weight: &[E], beta: E, gx: &mut [E]) {
        assert_eq!(gx.len(), size.pixels() * self.input);
        let out = self.output_size(size);
        if self.stride == 1 {
            // The gradient of a convolution of stride 1 is a convolution with the mirrored weights.
            let mirrored =
                Conv2d { padding: self.kernel - 1 - self.padding, input: self.output, output: self.input, ..*self };
            let (x, moments) = (Source::plain(gy), &mut TileMoments::none());
            if let Some(tiling) = winograd::Tiling::of(&mirrored, out) {
                let (conv, tiling, kernels) = (&mirrored, &tiling, winograd::Kernels::Mirrored(weight));
                return self.products.run(winograd::Forward { conv, tiling, x, kernels, beta, y: gx, moments });
            }
            if self.kernel == 1 && mirrored.is_packed() {
                let weight = Matrix::new(weight, self.output, self.input);
                let conv = &mirrored;
                return self.products.run(packed::Forward { conv, x, size: out, weight, beta, y: gx, moments });
            }
            mirrored.forward(x, out, &self.mirror(weight), beta, gx, None);
            return;
        }
        if beta == E::zero() {
            gx.fill(E::zero());
        }
        if self.is_packed() && self.patch().is_multiple_of(WHOLE_VECTORS) {
            return self.products.run(packed::BackwardData { conv: self, gy, size, weight, gx });
        }
        let weight = Matrix::new(weight, self.output, self.patch());
        let one = Size { n: 1, ..size };
        let rows = out.h * out.w;
        gx.par_chunks_mut(size.h * size.w * self.input).zip(gy.par_chunks(rows * self.output)).for_each_init(
            Vec::new,
            |patches, (gx, gy)| {
                patches.resize(rows * self.patch(), E::zero());
                gemm(Matrix::new(gy, rows, self.output), weight, E::zero(), patches, Threads::One);
                self.scatter(patches, one, 0..rows, gx);
            },
        );
    }

    /// gw += the weight gradient.
    ///
    /// Shapes as in [`Conv2d::forward`]; `size` is the input's.
    pub fn backward_weight<E: Real>(&self, x: Source<E>, size: Size, gy: &[E], gw: &mut [E]) {
        assert_eq!(gw.len(), self.weights());
        let pixels = self.output_size(size).pixels();
        assert_eq!(gy.len(), pixels * self.output);
        if let Some(tiling) = winograd::Tiling::of(self, size) {
            return self.products.run(winograd::BackwardWeight { conv: self, tiling: &tiling, x, gy, gw });
        }
        if self.is_packed() {
            return self.products.run(packed::BackwardWeight { conv: self, x, size, gy, gw });
        }
        let [part, rows] = weight_parts(pixels, self.tile_rows(pixels));
        let mut sums = vec![E::zero(); pixels.div_ceil(part) * gw.len()];
        sums.par_chunks_mut(gw.len()).enumerate().for_each_init(Vec::new, |patches, (i, sum)| {
            let end = ((i + 1) * part).min(pixels);
            for first in (i * part..end).step_by(rows) {
                let range = first..(first + rows).min(end);
                let gy = Matrix::new(&gy[first * self.output..], range.len(), self.output);
                let patches = self.patches(x, size, range, self.patch(), patches, Threads::One);
                gemm(gy.t(), patches, E::one(), sum, Threads::One);
            }
        });
        add_in_order(&sums, gw);
    }

    /// Weights [in, kernel, kernel, out] of the convolution that computes the data gradient.
    fn mirror<E: Real>(&self, weight: &[E]) -> Vec<E> {
        let (area, input, output) = (self.kernel * self.kernel, self.input, self.output);
        let mut mirrored = vec![E::zero(); weight.len()];
        mirrored.par_chunks_mut(area * output).enumerate().for_each(|(i, row)| {
            for (tap, row) in row.chunks_exact_mut(output).enumerate() {
                let source = (area - 1 - tap) * input + i;
                for (o, value) in row.iter_mut().enumerate() {
                    *value = weight[o * area * input + source];
                }
            }
        });
        mirrored
    }
}

//! Gradients of the convolution with respect to its input and its weights.

use rayon::prelude::*;

use super::{
    Conv2d, Size, Source, packed,
    whole::{self, Whole},
    winograd,
};
use crate::ops::{Real, batch_norm::TileMoments, matrix::Matrix};

impl Conv2d {
    /// gx = conv^T(gy, weight) + beta gx, with `beta` 0 or 1.
    ///
    /// Shapes as in [`Conv2d::forward`]; `size` is the input's.
    pub fn backward_data<E: Real>(&self, gy: &[E], size: Size, weight: &[E], beta: E, gx: &mut [E]) {
        assert_eq!(gx.len(), size.pixels() * self.input);
        let out = self.output_size(size);
        if let Some(whole) = Whole::of(self, size) {
            return whole.backward_data(gy, weight, beta, gx);
        }
        if self.stride == 1 {
            // The gradient of a convolution of stride 1 is a convolution with the mirrored weights.
            let mirrored =
                Conv2d { padding: self.kernel - 1 - self.padding, input: self.output, output: self.input, ..*self };
            let (x, moments) = (Source::plain(gy), &mut TileMoments::none());
            if let Some(tiling) = winograd::Tiling::of(&mirrored, out) {
                let (conv, tiling, kernels) = (&mirrored, &tiling, winograd::Kernels::Mirrored(weight));
                return self.matmul.run(winograd::Forward { conv, tiling, x, kernels, beta, y: gx, moments });
            }
            if self.kernel == 1 {
                let weight = Matrix::new(weight, self.output, self.input);
                let (conv, channels) = (&mirrored, self.input);
                return self.matmul.run(packed::Forward { conv, x, size: out, weight, beta, y: gx, channels, moments });
            }
            mirrored.forward(x, out, &self.mirror(weight), beta, gx, None);
            return;
        }
        if beta == E::zero() {
            gx.fill(E::zero());
        }
        self.matmul.run(packed::BackwardData { conv: self, gy, size, weight, gx });
    }

    /// gw += the weight gradient, a binary tree's sum over the parts of the batch.
    ///
    /// Shapes as in [`Conv2d::forward`]; `size` is the input's.
    pub fn backward_weight<E: Real>(&self, x: Source<E>, size: Size, gy: &[E], gw: &mut [E]) {
        assert_eq!(gw.len(), self.weights());
        let pixels = self.output_size(size).pixels();
        assert_eq!(gy.len(), pixels * self.output);
        if let Some(whole) = Whole::of(self, size) {
            return self.matmul.run(whole::BackwardWeight { whole, x, gy, gw });
        }
        if let Some(tiling) = winograd::Tiling::of_parts(self, size) {
            return self.matmul.run(winograd::BackwardWeight { conv: self, tiling: &tiling, x, gy, gw });
        }
        self.matmul.run(packed::BackwardWeight { conv: self, x, size, gy, gw });
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

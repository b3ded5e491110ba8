//! Forward pass of the convolution.

use rayon::prelude::*;

use super::{Conv2d, Size, Source, packed, whole::Whole, winograd};
use crate::ops::{Real, batch_norm::TileMoments, matrix::Matrix, parts::Threads};

impl Conv2d {
    /// y = conv(x, weight) + beta y. `moments`, if given, receives the output's mean and summed squared deviation per channel
    /// and tile, taken while the tile is in the cache.
    ///
    /// Shapes: x [n, h, w, input], weight [output, kernel, kernel, input], y [n, h', w', output].
    pub fn forward<E: Real>(
        &self,
        x: Source<E>,
        size: Size,
        weight: &[E],
        beta: E,
        y: &mut [E],
        moments: Option<&mut TileMoments<E>>,
    ) {
        let pixels = self.output_size(size).pixels();
        assert_eq!(x.images.len(), size.pixels() * self.input);
        assert_eq!(weight.len(), self.weights());
        assert_eq!(y.len(), pixels * self.output);
        let mut none = TileMoments::none();
        let moments = moments.unwrap_or(&mut none);
        if let Some(whole) = Whole::of(self, size) {
            return whole.forward(x, weight, beta, y, moments);
        }
        if let Some(tiling) = winograd::Tiling::of(self, size) {
            let (conv, tiling, kernels) = (self, &tiling, winograd::Kernels::Own(weight));
            return self.matmul.run(winograd::Forward { conv, tiling, x, kernels, beta, y, moments });
        }
        let weight = Matrix::new(weight, self.output, self.patch()).t();
        let channels = self.output;
        self.matmul.run(packed::Forward { conv: self, x, size, weight, beta, y, channels, moments });
    }

    /// The patches of the output pixels `rows`, as rows of `row` elements that are zero after the patch. This is the input
    /// itself where the convolution is pointwise, no ReLU is pending and rows need no zeros. Otherwise patches are gathered into
    /// `scratch`, which no other convolution may have used: elements after a patch are zero only in new memory.
    pub(super) fn patches<'a, E: Real>(
        &self,
        x: Source<'a, E>,
        size: Size,
        rows: std::ops::Range<usize>,
        row: usize,
        scratch: &'a mut Vec<E>,
        threads: Threads,
    ) -> Matrix<'a, E> {
        if self.is_pointwise() && x.relu_of.is_none() && row == self.patch() {
            return Matrix::new(&x.images[rows.start * row..rows.end * row], rows.len(), row);
        }
        scratch.resize(rows.len() * row, E::zero());
        match threads {
            Threads::One => self.gather(x, size, rows.clone(), row, scratch),
            Threads::All => {
                let part = rows.len().div_ceil(16);
                scratch.par_chunks_mut(part * row).enumerate().for_each(|(i, patches)| {
                    let first = rows.start + i * part;
                    self.gather(x, size, first..first + patches.len() / row, row, patches);
                });
            }
        }
        Matrix::new(scratch, rows.len(), row)
    }
}

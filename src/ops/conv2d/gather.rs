//! Gathers patches of output pixels from the input, and scatters patches back onto its gradient.

use std::ops::Range;

use super::{Conv2d, Size, Source};
use crate::ops::Real;

impl Conv2d {
    /// Gathers the patches of the output pixels `rows` (counted over the whole batch) into `patches`, which has rows of `row`
    /// elements. Each row starts with a patch; elements after it are left as they are. Pixels outside the image are zero.
    pub(super) fn gather<E: Real>(&self, x: Source<E>, size: Size, rows: Range<usize>, row: usize, patches: &mut [E]) {
        if self.is_pointwise() && row == self.patch() {
            return x.copy_to(rows.start * row, patches);
        }
        let read = self.lines_read(size, &rows);
        let read = read.start * size.w * self.input..read.end * size.w * self.input;
        if x.relu_of.is_none() || read.len() > rows.len() * self.patch() {
            return self.gather_from(&|first, target| x.copy_to(first, target), size, rows, row, patches);
        }
        // Patches overlap, so what they read is computed once before they are gathered.
        E::with_scratch(read.len(), |images| {
            x.copy_to(read.start, images);
            let copy =
                |first: usize, target: &mut [E]| target.copy_from_slice(&images[first - read.start..][..target.len()]);
            self.gather_from(&copy, size, rows, row, patches);
        });
    }

    /// The lines of pixels, counted over the whole batch, that the output pixels `rows` read.
    fn lines_read(&self, size: Size, rows: &Range<usize>) -> Range<usize> {
        let out = self.output_size(size);
        // The line of an output pixel's kernel row `ky`, or the nearest one of its image.
        let line = |pixel: usize, ky: usize| {
            let (image, oy) = (pixel / (out.h * out.w), pixel / out.w % out.h);
            image * size.h + (oy * self.stride + ky).saturating_sub(self.padding).min(size.h - 1)
        };
        line(rows.start, 0)..line(rows.end - 1, self.kernel - 1) + 1
    }

    /// Gathers patches as [`gather`](Self::gather). `copy` copies the elements of the input from a first one on.
    #[inline(always)]
    fn gather_from<E: Real>(
        &self,
        copy: &impl Fn(usize, &mut [E]),
        size: Size,
        rows: Range<usize>,
        row: usize,
        patches: &mut [E],
    ) {
        self.for_each_run(size, rows, |patch, at, source, len| {
            let target = &mut patches[patch * row + at..][..len];
            match source {
                Some(source) => copy(source, target),
                None => target.fill(E::zero()),
            }
        });
    }

    /// Adds `patches` [rows, patch] of the output pixels `rows` onto the input gradient.
    pub(super) fn scatter<E: Real>(&self, patches: &[E], size: Size, rows: Range<usize>, gx: &mut [E]) {
        self.for_each_run(size, rows, |patch, at, source, len| {
            if let Some(source) = source {
                let from = &patches[patch * self.patch() + at..][..len];
                for (g, p) in gx[source..][..len].iter_mut().zip(from) {
                    *g += *p;
                }
            }
        });
    }

    /// Calls `run` for each contiguous run of each patch, as `run(patch index, offset in the patch, offset in x or None for
    /// padding, length)`. A kernel row inside the image is one run, since its pixels are neighbours in memory.
    #[inline(always)]
    fn for_each_run(&self, size: Size, rows: Range<usize>, mut run: impl FnMut(usize, usize, Option<usize>, usize)) {
        let out = self.output_size(size);
        let (k, c) = (self.kernel, self.input);
        let mut image = rows.start / (out.h * out.w);
        let mut oy = rows.start / out.w % out.h;
        let mut ox = rows.start % out.w;
        for patch in 0..rows.len() {
            // Columns of the kernel that fall inside the image: left..right.
            let x0 = (ox * self.stride) as isize - self.padding as isize;
            let left = (-x0).clamp(0, k as isize) as usize;
            let right = (size.w as isize - x0).clamp(left as isize, k as isize) as usize;
            for ky in 0..k {
                let at = ky * k * c;
                let y = (oy * self.stride + ky) as isize - self.padding as isize;
                if y < 0 || y >= size.h as isize || left == right {
                    run(patch, at, None, k * c);
                    continue;
                }
                if left > 0 {
                    run(patch, at, None, left * c);
                }
                let first = (image * size.h + y as usize) * size.w + (x0 + left as isize) as usize;
                run(patch, at + left * c, Some(first * c), (right - left) * c);
                if right < k {
                    run(patch, at + right * c, None, (k - right) * c);
                }
            }
            ox += 1;
            if ox == out.w {
                (ox, oy) = (0, oy + 1);
                if oy == out.h {
                    (oy, image) = (0, image + 1);
                }
            }
        }
    }
}

//! The input of a convolution: images, optionally normalised and passed through a ReLU as they are read.

use crate::ops::{
    Real,
    batch_norm::{Affine, Residual, normalise},
};

/// Images [n, h, w, channels] as stored or, with `relu_of`, relu(affine(images)), which is computed on each read. At most
/// a tile of it is stored.
#[derive(Clone, Copy)]
pub struct Source<'a, E> {
    pub images: &'a [E],
    pub relu_of: Option<&'a Affine<E>>,
}

impl<'a, E: Real> Source<'a, E> {
    /// Images as stored.
    pub fn plain(images: &'a [E]) -> Self {
        Self { images, relu_of: None }
    }

    /// Copies the elements from `first` on to `target`. `first` must be the first element of a pixel, and `target` must hold
    /// whole pixels.
    #[inline(always)]
    pub fn copy_to(&self, first: usize, target: &mut [E]) {
        let images = &self.images[first..][..target.len()];
        let Some(affine) = self.relu_of else { return target.copy_from_slice(images) };
        normalise(images, affine, Residual::None, true, target);
    }
}

//! What a convolution reads: images, or images with a normalisation and ReLU still to come.

use crate::ops::{
    Real,
    batch_norm::{Affine, Residual, normalise},
};

/// Images [n, h, w, channels] as they lie or, with `relu_of`, relu(affine(images)), which is computed where it is read
/// and takes no memory.
#[derive(Clone, Copy)]
pub struct Source<'a, E> {
    pub images: &'a [E],
    pub relu_of: Option<&'a Affine<E>>,
}

impl<'a, E: Real> Source<'a, E> {
    /// Images as they lie.
    pub fn plain(images: &'a [E]) -> Self {
        Self { images, relu_of: None }
    }

    /// What is read of the elements from `first` on, which begin a pixel, as many whole pixels as `target` holds.
    #[inline(always)]
    pub fn copy_to(&self, first: usize, target: &mut [E]) {
        let images = &self.images[first..][..target.len()];
        let Some(affine) = self.relu_of else { return target.copy_from_slice(images) };
        normalise(images, affine, Residual::None, true, target);
    }
}

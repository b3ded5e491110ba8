//! Computes features of any images by the frozen encoder of a run, in the same way as the embed stage.

use anyhow::anyhow;

use super::{
    embed::{EmbedConfig, forward, per_batch},
    frozen::Frozen,
    weights::Tensor,
};
use crate::dataset::{Sample, augment::EvalTransform};

/// An encoder in eval mode, with the preprocessing of its evaluation.
pub struct Embedder {
    frozen: Frozen,
    transform: EvalTransform,
    size: usize,
}

impl Embedder {
    /// The encoder of `config` with `weights`, which must fit it exactly.
    ///
    /// # Errors
    /// When the weights do not fit.
    pub fn new(config: &EmbedConfig, weights: &[Tensor]) -> anyhow::Result<Embedder> {
        let size = config.augmentations.size as usize;
        let frozen = Frozen::load(&config.encoder, size, weights)?;
        Ok(Embedder { frozen, transform: EvalTransform::new(&config.augmentations), size })
    }

    /// Width of a feature vector.
    pub fn dim(&self) -> usize {
        self.frozen.dim()
    }

    /// SHA-256 of the weights, in hexadecimal; the embed stage's `encoder_sha256_before`.
    pub fn digest(&self) -> String {
        self.frozen.digest()
    }

    /// The preprocessing of images.
    pub fn transform(&self) -> &EvalTransform {
        &self.transform
    }

    /// Images per forward pass.
    pub fn per_batch(&self) -> usize {
        per_batch(self.size)
    }

    /// Features [samples, dim] of at most [`Embedder::per_batch`] samples; errors call sample i `name(i)`.
    ///
    /// # Errors
    /// When an image does not decode or a feature is not finite.
    pub fn features(&self, samples: &[&Sample], name: impl Fn(usize) -> String + Sync) -> anyhow::Result<Vec<f32>> {
        let load = |i: usize, out: &mut [f32]| {
            let image = samples[i].part(|size| self.transform.reads(size));
            self.transform.apply(&image.map_err(|reason| anyhow!(reason))?, out);
            Ok(())
        };
        forward(&self.frozen, self.size, samples.len(), load, name)
    }
}

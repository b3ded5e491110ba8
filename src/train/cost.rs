//! Counts the floating-point operations of a training step.

use super::{Model, PretrainConfig};
use crate::{backend::Backend, method::Mlp};

impl<B: Backend> Model<B> {
    /// Floating-point operations of a step of `config` per image. A multiply-add of encoder and heads counts as two. Each crop
    /// takes one forward pass and a backward pass of twice that; each full view takes one more forward pass in the momentum
    /// branch, if there is one. The loss (searches, logits, prototypes), norms and optimiser do not count.
    pub fn flops_per_image(&self, config: &PretrainConfig) -> u64 {
        let (size, local) = (config.augmentations.size as usize, config.augmentations.local_crops);
        let projected = |size| self.encoder.multiply_adds(size) + self.projector.multiply_adds();
        let predicted = self.predictor.as_ref().map_or(0, Mlp::multiply_adds);
        let mut total = 2 * 3 * (projected(size) + predicted);
        if let Some(local) = local {
            total += 3 * u64::from(local.count) * (projected(local.size as usize) + predicted);
        }
        if config.method.momentum().is_some() {
            total += 2 * projected(size);
        }
        2 * total
    }
}

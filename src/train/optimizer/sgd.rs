//! SGD with momentum as in torch: m <- mu m + (g + wd p), p <- p - lr m; tensors of one axis are not decayed.

use super::tensor::TensorStep;
use crate::{
    ops::{Real, simd::vectorized},
    train::SgdConfig,
};

pub(super) fn step<E: Real>(config: &SgdConfig, lr: f64, tensor: TensorStep<E>) {
    let decay = E::of(if tensor.is_weight() { config.weight_decay } else { 0.0 });
    let (mu, lr) = (E::of(config.momentum), E::of(lr));
    let TensorStep { params, gradients, mut moments, .. } = tensor;
    let moment = &mut *moments[0];
    vectorized(
        #[inline(always)]
        || {
            for ((p, g), m) in params.iter_mut().zip(gradients).zip(moment.iter_mut()) {
                *m = mu * *m + (*g + decay * *p);
                *p -= lr * *m;
            }
        },
    );
}

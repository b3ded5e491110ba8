//! LARS (You, Gitman, Ginsburg 2017) as in MoCo-v3: for weights d = g + wd p, scaled by eta |p| / |d|;
//! m <- mu m + d, p <- p - lr m. Tensors of one axis are neither decayed nor scaled.

use super::TensorStep;
use crate::{
    ops::{Real, simd::vectorized},
    train::LarsConfig,
};

pub(super) fn step<E: Real>(config: &LarsConfig, lr: f64, tensor: TensorStep<E>) {
    let is_weight = tensor.is_weight();
    let TensorStep { params, gradients, mut moments, .. } = tensor;
    let decay = E::of(if is_weight { config.weight_decay } else { 0.0 });
    let mut trust = E::one();
    if is_weight {
        let (mut p_norm, mut d_norm) = (0.0, 0.0);
        for (p, g) in params.iter().zip(gradients) {
            p_norm += p.as_f64().powi(2);
            d_norm += (*g + decay * *p).as_f64().powi(2);
        }
        if p_norm > 0.0 && d_norm > 0.0 {
            trust = E::of(config.eta * p_norm.sqrt() / d_norm.sqrt());
        }
    }
    let (mu, lr) = (E::of(config.momentum), E::of(lr));
    let moment = &mut *moments[0];
    vectorized(
        #[inline(always)]
        || {
            for ((p, g), m) in params.iter_mut().zip(gradients).zip(moment.iter_mut()) {
                *m = mu * *m + (*g + decay * *p) * trust;
                *p -= lr * *m;
            }
        },
    );
}

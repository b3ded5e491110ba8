//! AdamW (Loshchilov and Hutter 2019) as in torch; every tensor is decayed.

use super::tensor::TensorStep;
use crate::{
    ops::{Real, simd::vectorized},
    train::AdamwConfig,
};

pub(super) fn step<E: Real>(config: &AdamwConfig, lr: f64, step: i32, tensor: TensorStep<E>) {
    let [beta1, beta2] = config.betas;
    let keep = E::of(1.0 - lr * config.weight_decay);
    let rate = E::of(lr / (1.0 - libm::pow(beta1, step.into())));
    let correction = E::of(1.0 / (1.0 - libm::pow(beta2, step.into())).sqrt());
    let (eps, b1, b2) = (E::of(config.eps), E::of(beta1), E::of(beta2));
    let (c1, c2) = (E::of(1.0 - beta1), E::of(1.0 - beta2));
    let TensorStep { params, gradients, mut moments, .. } = tensor;
    let [first, second] = &mut moments[..] else { unreachable!("AdamW keeps two moments") };
    vectorized(
        #[inline(always)]
        || {
            for (((p, g), m), v) in params.iter_mut().zip(gradients).zip(first.iter_mut()).zip(second.iter_mut()) {
                *m = b1 * *m + c1 * *g;
                *v = b2 * *v + c2 * *g * *g;
                *p = *p * keep - rate * *m / (v.sqrt() * correction + eps);
            }
        },
    );
}

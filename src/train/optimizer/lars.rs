//! LARS (You, Gitman, Ginsburg 2017) as in MoCo-v3: for weights d = g + wd p, scaled by eta |p| / |d|;
//! m <- mu m + d, p <- p - lr m. Tensors of one axis are neither decayed nor scaled.

use rayon::prelude::*;

use super::tensor::TensorStep;
use crate::{
    ops::{Real, reductions::sum, simd::vectorized},
    train::LarsConfig,
};

/// Elements per task. The number is fixed, so the bits of the result do not depend on the number of threads.
const PART: usize = 1 << 15;

pub(super) fn step<E: Real>(config: &LarsConfig, lr: f64, tensor: TensorStep<E>) {
    let is_weight = tensor.is_weight();
    let TensorStep { params, gradients, mut moments, .. } = tensor;
    let decay = E::of(if is_weight { config.weight_decay } else { 0.0 });
    let mut trust = E::one();
    if is_weight {
        let parts = params.par_chunks(PART).zip(gradients.par_chunks(PART));
        let parts: Vec<[f64; 2]> = parts.map(|(p, g)| squares(p, g, decay)).collect();
        let [p_norm, d_norm] = [0, 1].map(|i| parts.iter().map(|part| part[i]).sum::<f64>().sqrt());
        if p_norm > 0.0 && d_norm > 0.0 {
            trust = E::of(config.eta * p_norm / d_norm);
        }
    }
    let (mu, lr) = (E::of(config.momentum), E::of(lr));
    let parts = params.par_chunks_mut(PART).zip(gradients.par_chunks(PART)).zip(moments[0].par_chunks_mut(PART));
    parts.for_each(|((params, gradients), moment)| {
        vectorized(
            #[inline(always)]
            || {
                for ((p, g), m) in params.iter_mut().zip(gradients).zip(moment.iter_mut()) {
                    *m = mu * *m + (*g + decay * *p) * trust;
                    *p -= lr * *m;
                }
            },
        );
    });
}

/// |p|^2 and |g + decay p|^2.
fn squares<E: Real>(p: &[E], g: &[E], decay: E) -> [f64; 2] {
    vectorized(
        #[inline(always)]
        || {
            let n = p.len();
            [sum(n, |i| p[i].as_f64() * p[i].as_f64()), {
                let d = |i: usize| (g[i] + decay * p[i]).as_f64();
                sum(n, |i| d(i) * d(i))
            }]
        },
    )
}

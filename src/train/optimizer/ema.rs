//! Exponential moving average of parameters, in one pass over the flat buffers.

use rayon::prelude::*;

use crate::ops::{Real, simd::vectorized};

/// target <- m target + (1 - m) source. Running statistics are not averaged: the momentum branch keeps its own.
pub fn ema<E: Real>(target: &mut [E], source: &[E], m: f64) {
    let (keep, take) = (E::of(m), E::of(1.0 - m));
    target.par_chunks_mut(1 << 15).zip(source.par_chunks(1 << 15)).for_each(|(target, source)| {
        vectorized(
            #[inline(always)]
            || {
                for (t, s) in target.iter_mut().zip(source) {
                    *t = keep * *t + take * *s;
                }
            },
        );
    });
}

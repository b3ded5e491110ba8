//! The vector unit that multiplies pairs of bf16, and the element that holds a pair.

use std::sync::OnceLock;

use half::bf16;
use pulp::{Arch, x86::V4};

use crate::ops::simd::unit;

/// The vector unit in use, if it is AVX-512 and the CPU has AVX512-BF16 too.
pub fn v4() -> Option<V4> {
    static UNIT: OnceLock<Option<V4>> = OnceLock::new();
    *UNIT.get_or_init(|| match unit() {
        Arch::V4(unit) if is_x86_feature_detected!("avx512bf16") => Some(unit),
        _ => None,
    })
}

/// Packs two factors into an element, the first in the lower half.
#[inline(always)]
pub fn pack(factors: &[f32]) -> f32 {
    let [first, second] = [0, 1].map(|i| u32::from(bf16::from_f32(factors[i]).to_bits()));
    f32::from_bits(second << 16 | first)
}

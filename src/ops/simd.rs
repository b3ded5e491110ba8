//! Element-wise loops compiled for the widest vector unit that the running CPU has.

use pulp::Arch;

/// Runs `f` compiled for the CPU at hand. What `f` calls, and `f` itself, must be inlined (`#[inline(always)]`) to profit.
///
/// Rust neither fuses nor reorders floating-point operations, so the result does not depend on the CPU.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

/// The vector unit that [`vectorized`] uses on the running CPU; matrix products use the same.
pub fn vector_unit() -> &'static str {
    match Arch::new() {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V4(_) => "AVX-512",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Arch::V3(_) => "AVX2 with FMA",
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(_) => "NEON",
        _ => "scalar",
    }
}

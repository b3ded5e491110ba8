//! Element-wise loops compiled for the widest vector unit that the running CPU has.

use pulp::Arch;

/// Runs `f` compiled for the CPU at hand. What `f` calls must be inlined into it to profit.
///
/// Rust neither fuses nor reorders floating-point operations, so the result does not depend on the CPU.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

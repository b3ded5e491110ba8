//! Matrix products whose factors are first packed for the registers, in full precision or rounded to bf16.
//!
//! In bf16 (8 bits of mantissa), two consecutive factors of a sum share one element of 32 bits, and one instruction multiplies
//! and adds both where the CPU has it (AVX512-BF16, or AMX for 16 by 16 sums at once). On other CPUs, factors are rounded to
//! bf16 and multiplied in full precision. Sums are never rounded below the precision of the result.

#![allow(
    clippy::needless_range_loop,
    reason = "indices over register blocks; adapters with closures are not vectorised"
)]

mod kernel;
mod operand;
mod packed;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod unit;

pub use kernel::{Leaves, Series, Start, Strided, Target};
pub use operand::{Full, Operand, Rounded};
pub use packed::{Left, PANEL, Panels, elements, multiply, multiply_leaves};
#[cfg(target_arch = "x86_64")]
use pairs::Pairs;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub use tiles::emulator::Tiles;

use super::number::Number;

/// The precision in which the factors of the encoder's products are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// Factors as they are.
    #[default]
    Full,
    /// Factors rounded to bf16, to nearest even.
    Bf16,
}

/// A number whose factors can be rounded to bf16.
pub trait Factor: Number {
    /// How two bf16 factors share an element, where [`Factor::multiplies_pairs`] is true.
    type Pairs: Operand<Self>;
    /// Whether the running CPU multiplies pairs of bf16 and adds them to this type.
    fn multiplies_pairs() -> bool;
}

impl Factor for f32 {
    #[cfg(target_arch = "x86_64")]
    type Pairs = Pairs;
    #[cfg(not(target_arch = "x86_64"))]
    type Pairs = Rounded;

    fn multiplies_pairs() -> bool {
        #[cfg(target_arch = "x86_64")]
        return unit::v4().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

impl Factor for f64 {
    type Pairs = Rounded;

    fn multiplies_pairs() -> bool {
        false
    }
}

/// Work that is generic over the way in which factors are held.
pub trait WithOperand<E: Number> {
    type Output;
    fn with<P: Operand<E>>(self) -> Self::Output;
}

impl MatmulPrecision {
    /// Runs `work` with factors held in the fastest way that the running CPU supports.
    pub fn run<E: Factor, W: WithOperand<E>>(self, work: W) -> W::Output {
        match self {
            MatmulPrecision::Full => work.with::<Full>(),
            MatmulPrecision::Bf16 if E::multiplies_pairs() => work.with::<E::Pairs>(),
            MatmulPrecision::Bf16 => work.with::<Rounded>(),
        }
    }
}

/// The CPU feature that multiplies bf16 on the running CPU; None where factors are rounded and multiplied in full precision.
pub fn bf16_unit() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if tiles::available() {
        return Some("AMX-BF16");
    }
    f32::multiplies_pairs().then_some("AVX512-BF16")
}

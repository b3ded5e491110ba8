//! Pairs of bf16 factors in one f32's bits, multiplied by AVX512-BF16 or, where the CPU has it too, by AMX.

use std::{arch::x86_64::*, marker::PhantomData, mem::transmute_copy};

use pulp::{Simd, WithSimd, x86::V4};

use super::{
    Operand, Strided, Target,
    kernel::{Product, Series},
    tiles, unit,
};

/// Two factors per element: the first in the lower half.
pub struct Pairs;

/// Reinterprets a vector of `S`, which must be AVX-512, as the register type.
#[inline(always)]
fn wide<S: Simd>(vector: S::f32s) -> __m512 {
    const { assert!(size_of::<__m512>() == 64) };
    assert!(size_of::<S::f32s>() == 64);
    // SAFETY: both are 16 floats.
    unsafe { transmute_copy(&vector) }
}

impl Operand<f32> for Pairs {
    const PACK: usize = 2;

    #[inline(always)]
    fn dispatch<W: WithSimd>(work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16")]
        unsafe fn run<W: WithSimd>(unit: V4, work: W) -> W::Output {
            work.with_simd(unit)
        }
        let unit = unit::v4().expect("bf16 pairs are only chosen where the CPU multiplies them");
        // SAFETY: `unit` exists only where the CPU has these features.
        unsafe { run(unit, work) }
    }

    #[inline(always)]
    fn pack(factors: &[f32]) -> f32 {
        unit::pack(factors)
    }

    fn sums_in_order() -> bool {
        !tiles::available()
    }

    fn series(series: Series, shape: [usize; 3], a: Strided<f32>, b: Strided<f32>, c: Target<f32>) {
        if tiles::available() && tiles::fit(shape, &c) {
            // SAFETY: tiles are available and fit the product, as just checked.
            unsafe { tiles::series(series, shape, a, b, c) }
        } else {
            Self::dispatch(Product::<f32, Self> { series, shape, a, b, c, operand: PhantomData });
        }
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(_: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        // SAFETY: only reached through `dispatch`, where the CPU has the instruction; `wide` checks the width.
        unsafe {
            let bits = |v: S::f32s| transmute_copy::<__m512, __m512bh>(&wide::<S>(v));
            transmute_copy(&_mm512_dpbf16_ps(wide::<S>(sum), bits(a), bits(b)))
        }
    }

    #[inline(always)]
    unsafe fn store_along<S: Simd>(_: S, factors: S::f32s, target: *mut f32) {
        // SAFETY: as in `multiply_add`; 32 bytes are 8 elements of 2 factors.
        unsafe { target.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(wide::<S>(factors))) }
    }

    #[inline(always)]
    unsafe fn store_across<S: Simd>(_: S, factors: S::f32s, part: usize, target: *mut f32) {
        // SAFETY: as in `multiply_add`; 64 bytes are 16 elements.
        unsafe {
            let narrow = transmute_copy::<__m256bh, __m256i>(&_mm512_cvtneps_pbh(wide::<S>(factors)));
            let mut elements = _mm512_cvtepu16_epi32(narrow);
            let target = target.cast::<__m512i>();
            if part == 1 {
                elements = _mm512_or_si512(target.read_unaligned(), _mm512_slli_epi32::<16>(elements));
            }
            target.write_unaligned(elements);
        }
    }

    #[inline(always)]
    unsafe fn store_both_across<S: Simd>(_: S, [first, second]: [S::f32s; 2], target: *mut f32) {
        // One instruction rounds 32 factors, those of `first` into the lower half. This order interleaves the halves.
        const IN_TURN: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = (i / 2 + i % 2 * 16) as u16;
                i += 1;
            }
            order
        };
        // SAFETY: as in `multiply_add`; 64 bytes are 16 elements.
        unsafe {
            let both = _mm512_cvtne2ps_pbh(wide::<S>(second), wide::<S>(first));
            let order = transmute_copy::<[u16; 32], __m512i>(&IN_TURN);
            let elements = _mm512_permutexvar_epi16(order, transmute_copy::<__m512bh, __m512i>(&both));
            target.cast::<__m512i>().write_unaligned(elements);
        }
    }
}

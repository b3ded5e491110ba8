//! How factors are held between packing and multiplying.

use std::marker::PhantomData;

use half::bf16;
use pulp::{Simd, WithSimd};

use super::kernel::{Product, Series, Strided, Target};
use crate::ops::{number::Number, simd::dispatch, vector::lanes};

/// A way to hold factors in elements of `E`.
///
/// If an element holds several factors, they are consecutive in the sum, and the element's bits are not a number of `E`.
pub trait Operand<E: Number>: Send + Sync + 'static {
    /// Factors per element.
    const PACK: usize;
    /// Whether packing changes factors. If not, they may be read without packing.
    const PACKS: bool = true;

    /// Whether a sum keeps its bits when it is cut: into leaves that one product sums, or into products of which each continues the
    /// sum of the one before. If not, the same cuts must be made however many images are summed.
    fn sums_in_order() -> bool {
        true
    }

    /// Runs `work` compiled for the vector unit that this way of holding factors needs.
    fn dispatch<W: WithSimd>(work: W) -> W::Output;

    /// Packs `PACK` factors into an element.
    fn pack(factors: &[E]) -> E;

    /// c [m, n] = c's start + a [m, k] b [k, n], where k counts elements. Columns of b must be neighbours in memory, and its
    /// rows padded to whole vectors, whatever n is. Each element of c is a sum over k in an order that k and the leaves fix.
    ///
    /// # Panics
    /// When the leaves do not divide k, or a slice is too short.
    fn product(shape: [usize; 3], a: Strided<E>, b: Strided<E>, c: Target<E>)
    where
        Self: Sized,
    {
        Self::series(Series::ONE, shape, a, b, c);
    }

    /// A series of products, each as [`Operand::product`].
    fn series(series: Series, shape: [usize; 3], a: Strided<E>, b: Strided<E>, c: Target<E>)
    where
        Self: Sized,
    {
        Self::dispatch(Product::<E, Self> { series, shape, a, b, c, operand: PhantomData });
    }

    /// sum + a b, over all factors of the elements.
    fn multiply_add<S: Simd>(simd: S, a: E::Vector<S>, b: E::Vector<S>, sum: E::Vector<S>) -> E::Vector<S>;

    /// Writes a vector of factors that are consecutive in the sum, packed into elements.
    ///
    /// # Safety
    /// `target` must have room for the elements that hold a vector of factors.
    unsafe fn store_along<S: Simd>(simd: S, factors: E::Vector<S>, target: *mut E);

    /// Writes factor `part` of each of a vector of elements; part 0 overwrites the elements, and must come first.
    ///
    /// # Safety
    /// `target` must have room for a vector.
    unsafe fn store_across<S: Simd>(simd: S, factors: E::Vector<S>, part: usize, target: *mut E);

    /// Writes both factors of each of a vector of elements that hold two.
    ///
    /// # Safety
    /// `target` must have room for a vector.
    #[inline(always)]
    unsafe fn store_both_across<S: Simd>(simd: S, [first, second]: [E::Vector<S>; 2], target: *mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            Self::store_across(simd, first, 0, target);
            Self::store_across(simd, second, 1, target);
        }
    }
}

/// Factors as they are.
pub struct Full;

impl<E: Number> Operand<E> for Full {
    const PACK: usize = 1;
    const PACKS: bool = false;

    #[inline(always)]
    fn dispatch<W: WithSimd>(work: W) -> W::Output {
        dispatch(work)
    }

    #[inline(always)]
    fn pack(factors: &[E]) -> E {
        factors[0]
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, a: E::Vector<S>, b: E::Vector<S>, sum: E::Vector<S>) -> E::Vector<S> {
        E::vector_mul_add(simd, a, b, sum)
    }

    #[inline(always)]
    unsafe fn store_along<S: Simd>(_: S, factors: E::Vector<S>, target: *mut E) {
        // SAFETY: as the caller promises.
        unsafe { target.cast::<E::Vector<S>>().write_unaligned(factors) }
    }

    #[inline(always)]
    unsafe fn store_across<S: Simd>(simd: S, factors: E::Vector<S>, _: usize, target: *mut E) {
        // SAFETY: as the caller promises.
        unsafe { <Self as Operand<E>>::store_along(simd, factors, target) }
    }
}

/// Factors rounded to bf16 in elements of full width, for CPUs that do not multiply bf16 and for checking.
pub struct Rounded;

/// Rounds to the nearest bf16; an f64 is rounded to f32 first.
fn round<E: Number>(x: E) -> E {
    E::of(bf16::from_f32(x.as_f64() as f32).to_f64())
}

impl<E: Number> Operand<E> for Rounded {
    const PACK: usize = 1;

    #[inline(always)]
    fn dispatch<W: WithSimd>(work: W) -> W::Output {
        dispatch(work)
    }

    #[inline(always)]
    fn pack(factors: &[E]) -> E {
        round(factors[0])
    }

    #[inline(always)]
    fn multiply_add<S: Simd>(simd: S, a: E::Vector<S>, b: E::Vector<S>, sum: E::Vector<S>) -> E::Vector<S> {
        E::vector_mul_add(simd, a, b, sum)
    }

    #[inline(always)]
    unsafe fn store_along<S: Simd>(_: S, factors: E::Vector<S>, target: *mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            target.cast::<E::Vector<S>>().write_unaligned(factors);
            for i in 0..lanes::<E, S>() {
                *target.add(i) = round(*target.add(i));
            }
        }
    }

    #[inline(always)]
    unsafe fn store_across<S: Simd>(simd: S, factors: E::Vector<S>, _: usize, target: *mut E) {
        // SAFETY: as the caller promises.
        unsafe { <Self as Operand<E>>::store_along(simd, factors, target) }
    }
}

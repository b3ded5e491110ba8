//! Vectors of a SIMD unit with arithmetic operators, for loops that the compiler does not vectorise well.

use std::ops::{Add, Mul, Sub};

use pulp::Simd;

/// A scalar type that vector units can compute with.
pub trait VectorElement: Copy + 'static {
    /// A vector of scalars of the unit `S`.
    type Vector<S: Simd>: Copy + Send + Sync;

    /// The same value in every lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// a + b.
    fn vector_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a - b.
    fn vector_sub<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a b.
    fn vector_mul<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// a b + c, rounded once on every unit.
    fn vector_mul_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// `then` in lanes where a < b, `other` in all other lanes, including lanes where a or b is NaN.
    fn vector_less<S: Simd>(
        simd: S,
        a_b: [Self::Vector<S>; 2],
        then: Self::Vector<S>,
        other: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// A slice as vectors.
    ///
    /// # Panics
    /// When the length of the slice is not a multiple of a vector's.
    fn vectors<S: Simd>(values: &[Self]) -> &[Self::Vector<S>];
    /// A mutable slice as vectors.
    ///
    /// # Panics
    /// When the length of the slice is not a multiple of a vector's.
    fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [Self::Vector<S>];
}

macro_rules! lanes {
    ($scalar:ty, $vector:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident, $mul_add:ident, $less:ident, $select:ident, $cut:ident, $cut_mut:ident) => {
        impl VectorElement for $scalar {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn vector_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn vector_sub<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$sub(a, b)
            }
            #[inline(always)]
            fn vector_mul<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$mul(a, b)
            }
            #[inline(always)]
            fn vector_mul_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn vector_less<S: Simd>(
                simd: S,
                [a, b]: [S::$vector; 2],
                then: S::$vector,
                other: S::$vector,
            ) -> S::$vector {
                simd.$select(simd.$less(a, b), then, other)
            }
            #[inline(always)]
            fn vectors<S: Simd>(values: &[Self]) -> &[S::$vector] {
                let (vectors, rest) = S::$cut(values);
                assert!(rest.is_empty());
                vectors
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [S::$vector] {
                let (vectors, rest) = S::$cut_mut(values);
                assert!(rest.is_empty());
                vectors
            }
        }
    };
}

lanes!(
    f32,
    f32s,
    splat_f32s,
    add_f32s,
    sub_f32s,
    mul_f32s,
    mul_add_f32s,
    less_than_f32s,
    select_f32s,
    as_simd_f32s,
    as_mut_simd_f32s
);
lanes!(
    f64,
    f64s,
    splat_f64s,
    add_f64s,
    sub_f64s,
    mul_f64s,
    mul_add_f64s,
    less_than_f64s,
    select_f64s,
    as_simd_f64s,
    as_mut_simd_f64s
);

/// Scalars per vector.
#[inline(always)]
pub fn lanes<E: VectorElement, S: Simd>() -> usize {
    size_of::<E::Vector<S>>() / size_of::<E>()
}

/// A vector with operators.
#[derive(Clone, Copy)]
pub struct Vector<E: VectorElement, S: Simd> {
    simd: S,
    pub lanes: E::Vector<S>,
}

impl<E: VectorElement, S: Simd> Vector<E, S> {
    #[inline(always)]
    pub fn new(simd: S, lanes: E::Vector<S>) -> Self {
        Self { simd, lanes }
    }

    /// The same value in every lane.
    #[inline(always)]
    pub fn splat(simd: S, value: E) -> Self {
        Self { simd, lanes: E::splat(simd, value) }
    }

    /// `then` in lanes where `self` is less than `other`, `or` in all other lanes, including lanes where either is NaN.
    #[inline(always)]
    pub fn less_than(self, other: Self, then: Self, or: Self) -> Self {
        Self { lanes: E::vector_less(self.simd, [self.lanes, other.lanes], then.lanes, or.lanes), ..self }
    }

    /// self * factor + more, rounded once.
    #[inline(always)]
    pub fn mul_add(self, factor: E, more: Self) -> Self {
        let lanes = E::vector_mul_add(self.simd, self.lanes, E::splat(self.simd, factor), more.lanes);
        Self { lanes, ..self }
    }
}

impl<E: VectorElement, S: Simd> Add for Vector<E, S> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { lanes: E::vector_add(self.simd, self.lanes, other.lanes), ..self }
    }
}

impl<E: VectorElement, S: Simd> Sub for Vector<E, S> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self { lanes: E::vector_sub(self.simd, self.lanes, other.lanes), ..self }
    }
}

impl<E: VectorElement, S: Simd> Mul for Vector<E, S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self { lanes: E::vector_mul(self.simd, self.lanes, other.lanes), ..self }
    }
}

impl<E: VectorElement, S: Simd> Mul<E> for Vector<E, S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, factor: E) -> Self {
        Self { lanes: E::vector_mul(self.simd, self.lanes, E::splat(self.simd, factor)), ..self }
    }
}

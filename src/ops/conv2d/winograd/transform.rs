//! The linear maps of F(4x4, 3x3) along one axis; a two-dimensional map is one along each axis.
//!
//! With d six inputs, g three weights and y four outputs: y = A^T ((G g) . (B^T d)), the points being 0, 1, -1, 2, -2 and
//! infinity. The weight gradient is the transposed algorithm: g's gradient = G^T ((B^T d) . (A y's gradient)).

use pulp::Simd;

use crate::ops::{Real, lanes::Vector};

/// B^T d.
#[inline(always)]
pub fn input<E: Real, S: Simd>(d: [Vector<E, S>; 6]) -> [Vector<E, S>; 6] {
    let (a, b) = (d[2].mul_add(E::of(-4.0), d[4]), d[1].mul_add(E::of(-4.0), d[3]));
    let (c, f) = (d[4] - d[2], (d[3] - d[1]) * E::of(2.0));
    [
        d[0].mul_add(E::of(4.0), d[2].mul_add(E::of(-5.0), d[4])),
        a + b,
        a - b,
        c + f,
        c - f,
        d[1].mul_add(E::of(4.0), d[3].mul_add(E::of(-5.0), d[5])),
    ]
}

/// G g.
#[inline(always)]
pub fn weight<E: Real, S: Simd>(g: [Vector<E, S>; 3]) -> [Vector<E, S>; 6] {
    let ends = g[0] + g[2];
    let wide = g[0].mul_add(E::of(1.0 / 24.0), g[2] * E::of(1.0 / 6.0));
    let middle = g[1] * E::of(1.0 / 12.0);
    [
        g[0] * E::of(0.25),
        (ends + g[1]) * E::of(-1.0 / 6.0),
        (ends - g[1]) * E::of(-1.0 / 6.0),
        wide + middle,
        wide - middle,
        g[2],
    ]
}

/// A^T m.
#[inline(always)]
pub fn output<E: Real, S: Simd>(m: [Vector<E, S>; 6]) -> [Vector<E, S>; 4] {
    let (sum1, difference1) = (m[1] + m[2], m[1] - m[2]);
    let (sum2, difference2) = (m[3] + m[4], m[3] - m[4]);
    [
        m[0] + sum1 + sum2,
        difference2.mul_add(E::of(2.0), difference1),
        sum2.mul_add(E::of(4.0), sum1),
        difference2.mul_add(E::of(8.0), difference1) + m[5],
    ]
}

/// A g.
#[inline(always)]
pub fn output_gradient<E: Real, S: Simd>(g: [Vector<E, S>; 4]) -> [Vector<E, S>; 6] {
    let (even, odd) = (g[0] + g[2], g[1] + g[3]);
    let (even2, odd2) = (g[2].mul_add(E::of(4.0), g[0]), g[3].mul_add(E::of(8.0), g[1] * E::of(2.0)));
    [g[0], even + odd, even - odd, even2 + odd2, even2 - odd2, g[3]]
}

/// G^T u.
#[inline(always)]
pub fn weight_gradient<E: Real, S: Simd>(u: [Vector<E, S>; 6]) -> [Vector<E, S>; 3] {
    let (sum1, difference1) = ((u[1] + u[2]) * E::of(-1.0 / 6.0), (u[2] - u[1]) * E::of(1.0 / 6.0));
    let (sum2, difference2) = (u[3] + u[4], u[3] - u[4]);
    [
        u[0].mul_add(E::of(0.25), sum2.mul_add(E::of(1.0 / 24.0), sum1)),
        difference2.mul_add(E::of(1.0 / 12.0), difference1),
        sum2.mul_add(E::of(1.0 / 6.0), sum1) + u[5],
    ]
}

//! Dot products of a few rows with many: y = x w^T where a general product would spend its time packing w.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{
    Real,
    columns::WHOLE_VECTORS,
    lanes::{Vector, lanes},
    simd::dispatch,
};

/// Up to this many rows of x it is faster than a general product.
const FEW: usize = 16;
/// Rows of w per task, and of w and x whose products are summed side by side in registers.
const TASK: usize = 64;
const W_ROWS: usize = 2;
const X_ROWS: usize = 8;

/// Whether [`row_dots`] is the way to multiply `rows` rows of `width` elements.
pub fn few(rows: usize, width: usize) -> bool {
    (1..=FEW).contains(&rows) && width.is_multiple_of(WHOLE_VECTORS)
}

/// y [n, out] = x [n, width] w^T, on all threads; w [out, width] is read once. A sum's order depends on `width` alone.
pub fn row_dots<E: Real>(x: &[E], w: &[E], width: usize, y: &mut [E]) {
    let (n, out) = (x.len() / width, w.len() / width);
    assert_eq!(y.len(), n * out);
    let parts: Vec<Vec<E>> = w
        .par_chunks(TASK * width)
        .map(|w| {
            let mut part = vec![E::zero(); n * (w.len() / width)];
            dispatch(Dots { x, w, width, y: &mut part });
            part
        })
        .collect();
    for (task, part) in parts.iter().enumerate() {
        let columns = part.len() / n;
        for (y, part) in y.chunks_exact_mut(out).zip(part.chunks_exact(columns)) {
            y[task * TASK..][..columns].copy_from_slice(part);
        }
    }
}

struct Dots<'a, E> {
    x: &'a [E],
    w: &'a [E],
    width: usize,
    y: &'a mut [E],
}

impl<E: Real> WithSimd for Dots<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, width, y } = self;
        let (out, mut first) = (w.len() / width, 0);
        for w in w.chunks(W_ROWS * width) {
            for (i, x) in x.chunks(X_ROWS * width).enumerate() {
                let y = &mut y[i * X_ROWS * out + first..];
                match (w.len() / width, x.len() / width) {
                    (W_ROWS, X_ROWS) => block::<E, S, W_ROWS, X_ROWS>(simd, x, w, width, y, out),
                    (W_ROWS, _) => x.chunks_exact(width).enumerate().for_each(|(i, x)| {
                        block::<E, S, W_ROWS, 1>(simd, x, w, width, &mut y[i * out..], out);
                    }),
                    _ => x.chunks_exact(width).enumerate().for_each(|(i, x)| {
                        w.chunks_exact(width).enumerate().for_each(|(j, w)| {
                            block::<E, S, 1, 1>(simd, x, w, width, &mut y[i * out + j..], out);
                        });
                    }),
                }
            }
            first += W_ROWS;
        }
    }
}

/// The products of `X` rows of x with `W` rows of w; rows of y are `out` apart.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices over a block of registers")]
fn block<E: Real, S: Simd, const W: usize, const X: usize>(
    simd: S,
    x: &[E],
    w: &[E],
    width: usize,
    y: &mut [E],
    out: usize,
) {
    let (x, w, vectors) = (E::vectors::<S>(x), E::vectors::<S>(w), width / lanes::<E, S>());
    assert!(x.len() == X * vectors && w.len() == W * vectors);
    let mut sums = [[Vector::<E, S>::splat(simd, E::zero()); X]; W];
    for v in 0..vectors {
        for i in 0..W {
            let w = w[i * vectors + v];
            for j in 0..X {
                sums[i][j].lanes = E::vector_mul_add(simd, w, x[j * vectors + v], sums[i][j].lanes);
            }
        }
    }
    for i in 0..W {
        for j in 0..X {
            let mut scalars = [E::zero(); WHOLE_VECTORS];
            let own = &mut scalars[..lanes::<E, S>()];
            E::vectors_mut::<S>(own)[0] = sums[i][j].lanes;
            y[j * out + i] = own.iter().copied().sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_the_triple_loop() {
        for (n, out, width) in [(1, 1, 16), (8, 130, 32), (9, 65, 48), (16, 3, 16), (3, 64, 80)] {
            let ramp = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin()).collect::<Vec<_>>();
            let (x, w) = (ramp(n * width, 0.7), ramp(out * width, 1.3));
            let mut y = vec![f64::NAN; n * out];
            row_dots(&x, &w, width, &mut y);
            for (at, y) in y.iter().enumerate() {
                let (x, w) = (&x[at / out * width..][..width], &w[at % out * width..][..width]);
                let expected: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                assert!((y - expected).abs() < 1e-12, "{n} {out} {width}: {y} instead of {expected}");
            }
        }
    }
}

//! Rows and columns of row-major matrices: a bias for each row, sums over all rows, sums within a row.

#[cfg(any(test, feature = "cuda"))]
pub mod cuda;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{Real, lanes::Vector, simd::vectorized};

/// Rows whose sums are taken apart, then added in order: fixed, so that the number of threads does not change a bit.
pub const SUM_ROWS: usize = 256;
/// Partial sums within a row; fixed for the same reason, and a multiple of the vector width.
const LANES: usize = 16;

/// Every row of y [rows, bias.len()] becomes `bias`: what a matrix product is then added to.
pub fn fill_rows<E: Real>(bias: &[E], y: &mut [E]) {
    y.par_chunks_mut(bias.len() * SUM_ROWS).for_each(|rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.copy_from_slice(bias);
        }
    });
}

/// y [rows, bias.len()] += `bias`, row by row.
pub fn add_to_rows<E: Real>(bias: &[E], y: &mut [E]) {
    y.par_chunks_mut(bias.len() * SUM_ROWS).for_each(|rows| {
        vectorized(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(bias.len()) {
                    for (y, b) in row.iter_mut().zip(bias) {
                        *y += *b;
                    }
                }
            },
        );
    });
}

/// sums += the sum of the rows of x [rows, sums.len()].
pub fn add_column_sums<E: Real>(x: &[E], sums: &mut [E]) {
    let dim = sums.len();
    let parts: Vec<Vec<E>> = x
        .par_chunks(dim * SUM_ROWS)
        .map(|rows| {
            let mut part = vec![E::zero(); dim];
            vectorized(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact(dim) {
                        for (sum, x) in part.iter_mut().zip(row) {
                            *sum += *x;
                        }
                    }
                },
            );
            part
        })
        .collect();
    add_parts(&parts, sums);
}

/// sums += every part, in order.
pub fn add_parts<E: Real>(parts: &[Vec<E>], sums: &mut [E]) {
    for part in parts {
        for (sum, part) in sums.iter_mut().zip(part) {
            *sum += *part;
        }
    }
}

/// Columns that come in a multiple of this many are whole vectors on any CPU.
pub const WHOLE_VECTORS: usize = 16;
/// Rows that are summed side by side: an addition takes several cycles, but many can be under way.
const REGISTER_ROWS: usize = 4;
/// Vectors in a row from which on sums lie in memory, so that the rows are read as they lie.
const WIDE: usize = 4;

/// What is summed over the rows of matrices [rows, columns], given as vectors: `N` terms per element.
pub trait ColumnTerms<E: Real, const N: usize> {
    /// The terms of the vector at `at`, which is in the columns of vector `column`. Inline it, or it is slow.
    fn terms<S: Simd>(&self, simd: S, at: usize, column: usize) -> [Vector<E, S>; N];
}

/// Per column the sums of `terms` over all rows, in a fixed order. The columns, of which there are as many as each of `sums`
/// has elements, must come in whole vectors.
pub struct ColumnSums<'a, E, T, const N: usize> {
    pub terms: T,
    pub rows: usize,
    pub sums: [&'a mut [E]; N],
}

#[allow(clippy::needless_range_loop, reason = "indices over a block of registers")]
impl<E: Real, T: ColumnTerms<E, N>, const N: usize> WithSimd for ColumnSums<'_, E, T, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { terms, rows, sums } = self;
        let columns = E::vectors::<S>(sums[0]).len();
        let whole = rows - rows % REGISTER_ROWS;
        if columns >= WIDE {
            let sums = sums.map(
                #[inline(always)]
                |sums| E::vectors_mut::<S>(sums),
            );
            let zero = E::splat(simd, E::zero());
            for n in 0..N {
                sums[n].fill(zero);
            }
            for row in (0..whole).step_by(REGISTER_ROWS) {
                for column in 0..columns {
                    let mut partial = [[Vector::splat(simd, E::zero()); N]; REGISTER_ROWS];
                    for r in 0..REGISTER_ROWS {
                        partial[r] = terms.terms(simd, (row + r) * columns + column, column);
                    }
                    let [a, b, c, d] = partial;
                    for n in 0..N {
                        let more = (a[n] + b[n]) + (c[n] + d[n]);
                        sums[n][column] = (Vector::new(simd, sums[n][column]) + more).lanes;
                    }
                }
            }
            for row in whole..rows {
                for column in 0..columns {
                    let values = terms.terms(simd, row * columns + column, column);
                    for n in 0..N {
                        sums[n][column] = (Vector::new(simd, sums[n][column]) + values[n]).lanes;
                    }
                }
            }
            return;
        }
        for column in 0..columns {
            let mut partial = [[Vector::splat(simd, E::zero()); REGISTER_ROWS]; N];
            let mut row = 0;
            while row < whole {
                for r in 0..REGISTER_ROWS {
                    let values = terms.terms(simd, (row + r) * columns + column, column);
                    for n in 0..N {
                        partial[n][r] = partial[n][r] + values[n];
                    }
                }
                row += REGISTER_ROWS;
            }
            for row in whole..rows {
                let values = terms.terms(simd, row * columns + column, column);
                for n in 0..N {
                    partial[n][0] = partial[n][0] + values[n];
                }
            }
            for n in 0..N {
                let mut total = partial[n][0];
                for r in 1..REGISTER_ROWS {
                    total = total + partial[n][r];
                }
                E::vectors_mut::<S>(sums[n])[column] = total.lanes;
            }
        }
    }
}

/// The sum of `term(i)` over i in 0..n, in a fixed order that vectorises. To be called within [`vectorized`].
#[inline(always)]
pub fn sum<E: Real>(n: usize, term: impl Fn(usize) -> E) -> E {
    let mut lanes = [E::zero(); LANES];
    let whole = n - n % LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += term(i + l);
        }
        i += LANES;
    }
    let mut total = E::zero();
    for lane in lanes {
        total += lane;
    }
    for i in whole..n {
        total += term(i);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_rows_and_within_them() {
        let (rows, dim) = (SUM_ROWS * 2 + 3, 5);
        let x: Vec<f64> = (0..rows * dim).map(|i| i as f64).collect();
        let mut sums = vec![1.0; dim];
        add_column_sums(&x, &mut sums);
        for (c, sum) in sums.iter().enumerate() {
            assert_eq!(*sum, 1.0 + (0..rows).map(|r| x[r * dim + c]).sum::<f64>());
        }
        for n in [0, 1, 15, 16, 17, 100] {
            assert_eq!(sum(n, |i| x[i]), (0..n).map(|i| x[i]).sum::<f64>());
        }
    }

    #[test]
    fn every_row_gets_the_bias() {
        let mut y = [0.0f32; 6];
        fill_rows(&[1.0, 2.0], &mut y);
        assert_eq!(y, [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        add_to_rows(&[1.0, 0.0], &mut y);
        assert_eq!(y, [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
    }
}

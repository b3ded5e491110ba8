//! Sums over the rows of row-major matrices, and within a row.

pub mod cuda;

use super::{
    number::Number,
    parts::{Work, add_tree, leaf_rows, leaves},
    simd::{dispatch, vectorized},
    vector::{Vector, lanes},
};
use pulp::{Simd, WithSimd};

/// Fewest rows of a leaf, where a part of the batch is cut into several.
const SUM_ROWS: usize = 256;
/// Partial sums within a row. Fixed, so that results have the same bits on any CPU, and a multiple of any vector's width.
const LANES: usize = 16;

/// sums += the sum of the rows of x [rows, sums.len()], which are those of a batch of `parts` parts.
pub fn add_column_sums<E: Number>(x: &[E], parts: usize, sums: &mut [E]) {
    let dim = sums.len();
    let rows = x.len() / dim;
    let within = leaves(rows / parts, SUM_ROWS);
    add_tree(parts * within, sums, Work::Leaves, |leaf, sums| {
        let rows = leaf_rows(rows, parts, within, leaf);
        column_sums(&x[rows.start * dim..rows.end * dim], sums);
    });
}

/// sums = the sum of the rows of x, computed on this thread.
pub fn column_sums<E: Number>(x: &[E], sums: &mut [E]) {
    let (dim, rows) = (sums.len(), x.len() / sums.len());
    if dim.is_multiple_of(WHOLE_VECTORS) {
        return dispatch(ColumnSums { terms: Values { x }, rows, sums: [sums] });
    }
    sums.fill(E::zero());
    vectorized(
        #[inline(always)]
        || {
            for row in x.chunks_exact(dim) {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += *x;
                }
            }
        },
    );
}

/// The elements of x themselves, as terms of a sum.
pub struct Values<'a, E> {
    pub x: &'a [E],
}

impl<E: Number> ColumnTerms<E, 1> for Values<'_, E> {
    #[inline(always)]
    fn terms<S: Simd>(&self, simd: S, at: usize, _: usize) -> [Vector<E, S>; 1] {
        [Vector::new(simd, E::vectors::<S>(self.x)[at])]
    }
}

/// A multiple of this many columns is whole vectors on any CPU.
pub const WHOLE_VECTORS: usize = 16;
/// Rows that are summed side by side: an addition takes several cycles, but several additions can overlap.
const REGISTER_ROWS: usize = 4;
/// From this many columns on, sums are kept in memory, so that rows are read in the order of memory. Counted in columns rather
/// than vectors: the order of the sums must not depend on the CPU.
const WIDE: usize = 64;

/// The terms that are summed over the rows of matrices [rows, columns], as vectors: `N` terms per element.
pub trait ColumnTerms<E: Number, const N: usize> {
    /// The terms of the vector at `at`, which is in the columns of vector `column`. Must be inlined to be fast.
    fn terms<S: Simd>(&self, simd: S, at: usize, column: usize) -> [Vector<E, S>; N];
}

/// Computes for each column the sums of `terms` over all rows, in a fixed order. Each of `sums` has an element per column; the
/// columns must be whole vectors.
pub struct ColumnSums<'a, E, T, const N: usize> {
    pub terms: T,
    pub rows: usize,
    pub sums: [&'a mut [E]; N],
}

#[allow(clippy::needless_range_loop, reason = "indices over a block of registers")]
impl<E: Number, T: ColumnTerms<E, N>, const N: usize> WithSimd for ColumnSums<'_, E, T, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { terms, rows, sums } = self;
        let columns = E::vectors::<S>(sums[0]).len();
        let whole = rows - rows % REGISTER_ROWS;
        if columns * lanes::<E, S>() >= WIDE {
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
pub fn sum<E: Number>(n: usize, term: impl Fn(usize) -> E) -> E {
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
        add_column_sums(&x, 1, &mut sums);
        for (c, sum) in sums.iter().enumerate() {
            assert_eq!(*sum, 1.0 + (0..rows).map(|r| x[r * dim + c]).sum::<f64>());
        }
        for n in [0, 1, 15, 16, 17, 100] {
            assert_eq!(sum(n, |i| x[i]), (0..n).map(|i| x[i]).sum::<f64>());
        }
    }
}

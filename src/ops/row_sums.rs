//! Sums of rows with factors, where few rows are on one side of a product: a general one would spend its time packing the other.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{Real, lanes::Vector, product::Strided, simd::dispatch};

/// Rows of c per task where it has many, and columns of c per task where it has few.
const TASK_ROWS: usize = 64;
const TASK_COLUMNS: usize = 512;
/// Rows that are added at once.
const TOGETHER: usize = 8;

/// c [m, width] += s [m, n] b [n, width], with few rows in b, on all threads. A sum's order depends on n alone.
pub fn add_to_many<E: Real>(s: Strided<E>, b: &[E], width: usize, c: &mut [E]) {
    c.par_chunks_mut(TASK_ROWS * width).enumerate().for_each(|(i, c)| {
        let s = Strided { data: &s.data[i * TASK_ROWS * s.row..], ..s };
        dispatch(Add { s, b, b_row: width, width, c });
    });
}

/// c [m, width] += s [m, n] b [n, width], with few rows in c, on all threads. A sum's order depends on n alone.
pub fn add_to_few<E: Real>(s: Strided<E>, b: &[E], width: usize, c: &mut [E]) {
    // Per task the same columns of all rows.
    let mut tasks: Vec<Vec<&mut [E]>> = (0..width.div_ceil(TASK_COLUMNS)).map(|_| Vec::new()).collect();
    for row in c.chunks_exact_mut(width) {
        tasks.iter_mut().zip(row.chunks_mut(TASK_COLUMNS)).for_each(|(task, part)| task.push(part));
    }
    tasks.into_par_iter().enumerate().for_each(|(i, mut rows)| {
        let columns = rows[0].len();
        E::with_scratch(rows.len() * columns, |sums| {
            sums.chunks_exact_mut(columns).zip(&rows).for_each(|(sum, row)| sum.copy_from_slice(row));
            let b = &b[i * TASK_COLUMNS..];
            dispatch(Add { s, b, b_row: width, width: columns, c: sums });
            rows.iter_mut().zip(sums.chunks_exact(columns)).for_each(|(row, sum)| row.copy_from_slice(sum));
        });
    });
}

/// c [m, width] += s b; rows of b are `b_row` elements apart, the last one ends with b.
struct Add<'a, E> {
    s: Strided<'a, E>,
    b: &'a [E],
    b_row: usize,
    width: usize,
    c: &'a mut [E],
}

impl<E: Real> WithSimd for Add<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { s, b, b_row, width, c } = self;
        for (together, b) in b.chunks(TOGETHER * b_row).enumerate() {
            for (i, c) in c.chunks_exact_mut(width).enumerate() {
                let factor = |j: usize| s.data[i * s.row + (together * TOGETHER + j) * s.column];
                let c = E::vectors_mut::<S>(c);
                if b.len() > (TOGETHER - 1) * b_row {
                    let (mut factors, mut rows): ([_; TOGETHER], [&[E::Vector<S>]; TOGETHER]) =
                        ([E::splat(simd, E::zero()); TOGETHER], [&[]; TOGETHER]);
                    for j in 0..TOGETHER {
                        factors[j] = E::splat(simd, factor(j));
                        rows[j] = E::vectors::<S>(&b[j * b_row..][..width]);
                    }
                    assert!(rows.iter().all(|row| row.len() == c.len()));
                    for v in 0..c.len() {
                        let mut sum = c[v];
                        for j in 0..TOGETHER {
                            sum = E::vector_mul_add(simd, factors[j], rows[j][v], sum);
                        }
                        c[v] = sum;
                    }
                } else {
                    for (j, row) in b.chunks(b_row).enumerate() {
                        let row = E::vectors::<S>(&row[..width]);
                        for (c, b) in c.iter_mut().zip(row) {
                            *c = Vector::<E, S>::new(simd, *b).mul_add(factor(j), Vector::new(simd, *c)).lanes;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gemm::{Matrix, Threads, gemm};

    #[test]
    fn equal_a_general_product() {
        for (m, n, width) in [(1, 1, 16), (8, 130, 32), (130, 8, 48), (9, 17, 2 * TASK_COLUMNS + 16), (70, 3, 528)] {
            let ramp = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin()).collect::<Vec<_>>();
            let (s, b, c) = (ramp(m * n, 0.7), ramp(n * width, 1.3), ramp(m * width, 0.4));
            for (row, column) in [(n, 1), (1, m)] {
                let matrix = Matrix { data: &s, rows: m, columns: n, row_stride: row, column_stride: column };
                let mut expected = c.clone();
                gemm(matrix, Matrix::new(&b, n, width), 1.0, &mut expected, Threads::One);
                for add in [add_to_many, add_to_few] {
                    let mut found = c.clone();
                    add(Strided { data: &s, row, column }, &b, width, &mut found);
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!((found - expected).abs() < 1e-11, "{m} {n} {width}: {found} instead of {expected}");
                    }
                }
            }
        }
    }
}

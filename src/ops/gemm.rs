//! Matrix products of slices, on the calling thread or on all threads of the rayon pool.
//!
//! [`matmul`](super::matmul) computes each element of a product as one sum, whose order depends on its length alone. So the bits
//! of an element do not depend on the other rows and columns of the product, on the threads or on the CPU.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    matmul::{Full, Left, PANEL, Panels, Start, Strided, multiply_leaves},
    matrix::Matrix,
    number::Number,
    parts::Threads,
};

/// Rows of the result per task.
const TASK_ROWS: usize = 32;
/// Length of the sums from which on each task computes all rows of a few columns, if the result has more columns than rows. The
/// right factor, the larger one, is then read only once.
const LONG: usize = 512;

/// c = a b, or c += a b if `add` is set, with c dense and row-major, [a.rows, b.columns].
///
/// # Panics
/// When the shapes do not fit.
pub fn gemm<E: Number>(a: Matrix<E>, b: Matrix<E>, add: bool, c: &mut [E], threads: Threads) {
    gemm_leaves(a, b, add, c, threads, None);
}

/// Like [`gemm`], but cuts each sum into `leaves` leaves of equal length, a power of two, and sums the leaves in a binary tree.
/// The tree's sum is added to c if `add` is set.
///
/// # Panics
/// When the shapes do not fit, or the leaves do not divide the length of the sums.
pub fn gemm_leaves<E: Number>(
    a: Matrix<E>,
    b: Matrix<E>,
    add: bool,
    c: &mut [E],
    threads: Threads,
    leaves: Option<usize>,
) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows);
    assert_eq!(c.len(), m * n);
    a.check();
    b.check();
    if m == 0 || n == 0 || k == 0 {
        if !add {
            c.fill(E::zero());
        }
        return;
    }
    let start = || Start::adding(add);
    let left = |rows: Range<usize>| {
        let factors =
            Strided { data: &a.data[rows.start * a.row_stride..], row: a.row_stride, column: a.column_stride };
        Left { factors, rows: rows.len() }
    };
    if threads == Threads::All && m < n && (k >= LONG || m < TASK_ROWS) {
        let panels: Vec<Vec<E>> = (0..n.div_ceil(PANEL))
            .into_par_iter()
            .map(|panel| {
                let columns = panel * PANEL..((panel + 1) * PANEL).min(n);
                let b = Matrix { data: &b.data[columns.start * b.column_stride..], columns: columns.len(), ..b };
                let mut part = vec![E::zero(); m * columns.len()];
                if add {
                    for (part, c) in part.chunks_exact_mut(columns.len()).zip(c.chunks_exact(n)) {
                        part.copy_from_slice(&c[columns.clone()]);
                    }
                }
                E::with_scratch(Panels::<E>::len::<Full>([k, b.columns]), |memory| {
                    let b = Panels::pack::<Full>(b, memory, Threads::One);
                    multiply_leaves::<E, Full>(left(0..m), b, &mut part, start(), leaves);
                });
                part
            })
            .collect();
        for (panel, part) in panels.iter().enumerate() {
            let width = part.len() / m;
            for (c, part) in c.chunks_exact_mut(n).zip(part.chunks_exact(width)) {
                c[panel * PANEL..][..width].copy_from_slice(part);
            }
        }
        return;
    }
    E::with_scratch(Panels::<E>::len::<Full>([k, n]), |memory| {
        let b = Panels::pack::<Full>(b, memory, threads);
        match threads {
            Threads::One => multiply_leaves::<E, Full>(left(0..m), b, c, start(), leaves),
            Threads::All => c.par_chunks_mut(TASK_ROWS * n).enumerate().for_each(|(i, c)| {
                let first = i * TASK_ROWS;
                multiply_leaves::<E, Full>(left(first..first + c.len() / n), b, c, start(), leaves);
            }),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(a: Matrix<f64>, b: Matrix<f64>) -> Vec<f64> {
        let at = |m: &Matrix<f64>, i, j| m.data[i * m.row_stride + j * m.column_stride];
        let mut c = vec![0.0; a.rows * b.columns];
        for i in 0..a.rows {
            for j in 0..b.columns {
                c[i * b.columns + j] = (0..a.columns).map(|l| at(&a, i, l) * at(&b, l, j)).sum();
            }
        }
        c
    }

    #[test]
    fn products_and_transposed_products_equal_the_triple_loop() {
        let ramp = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin()).collect::<Vec<_>>();
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (17, 33, 9), (64, 1, 12), (1, 40, 64), (40, 520, 130)] {
            let (a, b) = (ramp(m * k, 0.7), ramp(k * n, 1.3));
            let (at, bt) = (ramp(k * m, 0.7), ramp(n * k, 1.3));
            for (a, b) in [
                (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                (Matrix::new(&at, k, m).t(), Matrix::new(&b, k, n)),
                (Matrix::new(&a, m, k), Matrix::new(&bt, n, k).t()),
            ] {
                let expected = naive(a, b);
                let mut c = vec![f64::NAN; m * n];
                gemm(a, b, false, &mut c, Threads::One);
                let mut twice = c.clone();
                gemm(a, b, true, &mut twice, Threads::All);
                for ((c, twice), e) in c.iter().zip(&twice).zip(&expected) {
                    assert!((c - e).abs() < 1e-12 && (twice - 2.0 * e).abs() < 1e-12);
                }
            }
        }
    }

    /// An element does not depend on the rows and columns that are computed with it, nor on threads.
    #[test]
    fn an_element_has_the_same_bits_whatever_is_computed_with_it() {
        let ramp = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin() as f32).collect::<Vec<_>>();
        let (m, k, n) = (45, 2100, 83);
        let (a, b) = (ramp(m * k, 0.7), ramp(k * n, 1.3));
        let (a, b) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
        let mut whole = ramp(m * n, 0.2);
        gemm(a, b, true, &mut whole, Threads::All);
        for rows in [0..1, 3..20, 40..45] {
            let mut part = ramp(m * n, 0.2)[rows.start * n..rows.end * n].to_vec();
            let a = Matrix { data: &a.data[rows.start * k..], rows: rows.len(), ..a };
            gemm(a, b, true, &mut part, Threads::One);
            assert_eq!(part, whole[rows.start * n..rows.end * n]);
        }
        for columns in [0..1, 5..80] {
            let b = Matrix { data: &b.data[columns.start..], columns: columns.len(), ..b };
            let mut part = vec![0.0; m * columns.len()];
            for (part, start) in part.chunks_exact_mut(columns.len()).zip(ramp(m * n, 0.2).chunks_exact(n)) {
                part.copy_from_slice(&start[columns.clone()]);
            }
            gemm(a, b, true, &mut part, Threads::All);
            for (part, whole) in part.chunks_exact(columns.len()).zip(whole.chunks_exact(n)) {
                assert_eq!(part, &whole[columns.clone()]);
            }
        }
    }

    #[test]
    fn leaves_are_summed_as_a_tree() {
        let ramp = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin() as f32).collect::<Vec<_>>();
        for (m, depth, n, leaves) in [(9, 8, 48, 2), (3, 9, 7, 4), (40, 8, 70, 32)] {
            let k = depth * leaves;
            let (a, b) = (ramp(m * k, 0.7), ramp(k * n, 1.3));
            for threads in [Threads::One, Threads::All] {
                let mut found = ramp(m * n, 0.4);
                gemm_leaves(Matrix::new(&a, m, k), Matrix::new(&b, k, n), true, &mut found, threads, Some(leaves));
                let tree = crate::ops::parts::tree(
                    leaves,
                    |leaf| {
                        let mut c = vec![0.0f32; m * n];
                        let a = Matrix { data: &a[leaf * depth..], columns: depth, ..Matrix::new(&a, m, k) };
                        gemm(a, Matrix::new(&b[leaf * depth * n..], depth, n), false, &mut c, Threads::One);
                        c
                    },
                    |a, b| a.iter().zip(b).map(|(a, b)| a + b).collect(),
                );
                let expected: Vec<f32> = ramp(m * n, 0.4).iter().zip(tree).map(|(c, t)| c + t).collect();
                assert_eq!(found, expected, "{m} {depth} {n} {leaves}");
            }
        }
    }
}

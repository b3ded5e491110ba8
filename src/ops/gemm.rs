//! Matrix products on slices, on the calling thread or on all of rayon's.

use super::real::Real;

/// A matrix in a slice: element (i, j) is at `offset + i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, E> {
    pub data: &'a [E],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a, E> Matrix<'a, E> {
    /// A dense row-major matrix.
    pub fn new(data: &'a [E], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn check(&self) {
        let last = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        assert!(
            self.rows == 0
                || self.columns == 0
                || last(self.rows, self.row_stride) + last(self.columns, self.column_stride) < self.data.len()
        );
    }
}

/// Which threads take part in a product. The result is the same bits either way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling one, e.g. inside a rayon task.
    One,
    /// All of rayon's current pool.
    All,
}

/// c = a b + beta c, with c dense and row-major, [a.rows, b.columns]. `beta` = 0 overwrites whatever c held.
///
/// # Panics
/// When the shapes do not fit.
pub fn gemm<E: Real>(a: Matrix<E>, b: Matrix<E>, beta: E, c: &mut [E], threads: Threads) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows);
    assert_eq!(c.len(), m * n);
    a.check();
    b.check();
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(rayon::current_num_threads()),
    };
    // SAFETY: the bounds of all three matrices were checked above; c is borrowed mutably and overlaps neither a nor b.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            beta != E::zero(),
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            beta,
            E::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
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
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (17, 33, 9), (64, 1, 12), (1, 40, 64)] {
            let (a, b) = (ramp(m * k, 0.7), ramp(k * n, 1.3));
            let (at, bt) = (ramp(k * m, 0.7), ramp(n * k, 1.3));
            for (a, b) in [
                (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                (Matrix::new(&at, k, m).t(), Matrix::new(&b, k, n)),
                (Matrix::new(&a, m, k), Matrix::new(&bt, n, k).t()),
            ] {
                let expected = naive(a, b);
                let mut c = vec![f64::NAN; m * n];
                gemm(a, b, 0.0, &mut c, Threads::One);
                let mut twice = c.clone();
                gemm(a, b, 1.0, &mut twice, Threads::All);
                for ((c, twice), e) in c.iter().zip(&twice).zip(&expected) {
                    assert!((c - e).abs() < 1e-12 && (twice - 2.0 * e).abs() < 1e-12);
                }
            }
        }
    }
}

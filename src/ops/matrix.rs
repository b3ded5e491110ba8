//! Matrices in slices.

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

    /// Checks that all elements are there.
    ///
    /// # Panics
    /// When some are not.
    pub fn check(&self) {
        let last = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        assert!(
            self.rows == 0
                || self.columns == 0
                || last(self.rows, self.row_stride) + last(self.columns, self.column_stride) < self.data.len()
        );
    }
}

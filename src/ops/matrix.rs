//! Strided matrices in slices.

/// A matrix in a slice: element (i, j) is `data[i * row_stride + j * column_stride]`.
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

    /// The transpose. It swaps the strides and copies nothing.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Checks that the slice contains all elements of the matrix.
    ///
    /// # Panics
    /// When some elements are outside the slice.
    pub fn check(&self) {
        let last = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        assert!(
            self.rows == 0
                || self.columns == 0
                || last(self.rows, self.row_stride) + last(self.columns, self.column_stride) < self.data.len()
        );
    }
}

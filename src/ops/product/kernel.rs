//! The innermost product: a block of the result stays in registers.

use pulp::Simd;

use super::Operand;
use crate::ops::{Real, columns::WHOLE_VECTORS, lanes::lanes};

/// A matrix whose element (i, j) is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct Strided<'a, E> {
    pub data: &'a [E],
    pub row: usize,
    pub column: usize,
}

/// A product's result [m, n], its rows `row` elements apart.
pub struct Target<'a, E> {
    pub data: &'a mut [E],
    pub row: usize,
    /// Whether the product is added to what is there.
    pub add: bool,
}

/// A [`Target`] whose bounds were checked.
#[derive(Clone, Copy)]
pub struct RawTarget<E> {
    pub data: *mut E,
    pub row: usize,
    pub add: bool,
}

/// That c [m, n] = a [m, k] b [k, n] stays within its matrices.
///
/// # Panics
/// When it does not, n is no multiple of [`WHOLE_VECTORS`], or b's columns are no neighbours.
#[inline(always)]
pub fn check<E>([m, k, n]: [usize; 3], a: Strided<E>, b: Strided<E>, c: &Target<E>) {
    assert!(n.is_multiple_of(WHOLE_VECTORS) && m > 0 && k > 0 && n > 0);
    assert!((m - 1) * a.row + (k - 1) * a.column < a.data.len());
    assert!(b.column == 1 && (k - 1) * b.row + n <= b.data.len() && (m - 1) * c.row + n <= c.data.len());
}

/// [`Operand::product`] on the vector unit.
///
/// # Panics
/// As [`check`].
#[inline(always)]
pub fn product<E: Real, P: Operand<E>, S: Simd>(
    simd: S,
    shape: [usize; 3],
    a: Strided<E>,
    b: Strided<E>,
    c: Target<E>,
) {
    check(shape, a, b, &c);
    let [m, k, n] = shape;
    let lanes = lanes::<E, S>();
    let many_registers = S::REGISTER_COUNT >= 32;
    let target = RawTarget { data: c.data.as_mut_ptr(), row: c.row, add: c.add };
    let mut column = 0;
    while column < n {
        let left = (n - column) / lanes;
        // SAFETY: the registers cover columns below n; all bounds were checked above.
        column += lanes
            * unsafe {
                match left {
                    4.. if many_registers => columns::<E, P, S, 4, 4>(simd, [m, k, column], a, b, target),
                    2.. if many_registers => columns::<E, P, S, 8, 2>(simd, [m, k, column], a, b, target),
                    2.. => columns::<E, P, S, 4, 2>(simd, [m, k, column], a, b, target),
                    _ if many_registers => columns::<E, P, S, 16, 1>(simd, [m, k, column], a, b, target),
                    _ => columns::<E, P, S, 8, 1>(simd, [m, k, column], a, b, target),
                }
            };
    }
}

/// The `VECTORS` vectors of columns from `column` on, `ROWS` rows at a time and the rest one by one; returns `VECTORS`.
///
/// # Safety
/// The columns and all rows must lie within the matrices.
#[inline(always)]
unsafe fn columns<E: Real, P: Operand<E>, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    [m, k, column]: [usize; 3],
    a: Strided<E>,
    b: Strided<E>,
    c: RawTarget<E>,
) -> usize {
    let whole = m - m % ROWS;
    // SAFETY: as the caller promises.
    unsafe {
        for row in (0..whole).step_by(ROWS) {
            registers::<E, P, S, ROWS, VECTORS>(simd, [row, k, column], a, b, c);
        }
        for row in whole..m {
            registers::<E, P, S, 1, VECTORS>(simd, [row, k, column], a, b, c);
        }
    }
    VECTORS
}

/// `ROWS` rows from `row` on of the `VECTORS` vectors of columns from `column` on.
///
/// # Safety
/// They must lie within the matrices.
#[inline(always)]
unsafe fn registers<E: Real, P: Operand<E>, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    [row, k, column]: [usize; 3],
    a: Strided<E>,
    b: Strided<E>,
    c: RawTarget<E>,
) {
    let zero = E::splat(simd, E::zero());
    let mut sums = [[zero; VECTORS]; ROWS];
    // SAFETY: as the caller promises.
    unsafe {
        let (a_rows, b_columns) = (a.data.as_ptr().add(row * a.row), b.data.as_ptr().add(column));
        for l in 0..k {
            let b_row = b_columns.add(l * b.row).cast::<E::Vector<S>>();
            let mut values = [zero; VECTORS];
            for v in 0..VECTORS {
                values[v] = b_row.add(v).read_unaligned();
            }
            for i in 0..ROWS {
                let factor = E::splat(simd, *a_rows.add(i * a.row + l * a.column));
                for v in 0..VECTORS {
                    sums[i][v] = P::multiply_add(simd, factor, values[v], sums[i][v]);
                }
            }
        }
        for i in 0..ROWS {
            let target = c.data.add((row + i) * c.row + column).cast::<E::Vector<S>>();
            for v in 0..VECTORS {
                let (target, mut sum) = (target.add(v), sums[i][v]);
                if c.add {
                    sum = E::vector_add(simd, target.read_unaligned(), sum);
                }
                target.write_unaligned(sum);
            }
        }
    }
}

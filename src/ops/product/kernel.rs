//! The innermost product: a block of the result stays in registers.

use std::mem::MaybeUninit;

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
    /// Into how many leaves of equal length the sum over k is cut, a power of two; they are summed as a binary tree.
    pub leaves: usize,
}

/// A [`Target`] whose bounds were checked.
#[derive(Clone, Copy)]
pub struct RawTarget<E> {
    pub data: *mut E,
    pub row: usize,
    pub add: bool,
    pub leaves: usize,
    /// Columns that there are; a block of registers may hold more.
    pub columns: usize,
}

/// At most 2 to the power of this many leaves.
const LEVELS: usize = 16;

/// That c [m, n] = a [m, k] b [k, n] stays within its matrices.
///
/// # Panics
/// When it does not, the leaves do not divide k, b's columns are no neighbours, or its rows end within a vector.
#[inline(always)]
pub fn check<E>([m, k, n]: [usize; 3], a: Strided<E>, b: Strided<E>, c: &Target<E>) {
    assert!(m > 0 && k > 0 && n > 0 && c.leaves.is_power_of_two() && k.is_multiple_of(c.leaves));
    assert!(c.leaves <= 1 << LEVELS);
    assert!((m - 1) * a.row + (k - 1) * a.column < a.data.len());
    let whole = n.next_multiple_of(WHOLE_VECTORS);
    assert!(b.column == 1 && (k - 1) * b.row + whole <= b.data.len() && (m - 1) * c.row + n <= c.data.len());
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
    let Target { data, row, add, leaves } = c;
    let target = RawTarget { data: data.as_mut_ptr(), row, add, leaves, columns: n };
    let mut column = 0;
    while column < n {
        let left = (n - column).div_ceil(lanes);
        // SAFETY: the registers begin in a column below n and end within b's rows; all bounds were checked above.
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
/// The columns must lie within b, the first of them within c, and all rows within the matrices.
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
/// As for [`columns`].
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
    // Left branches of the tree that wait for their right ones, by level.
    let mut waiting = [const { MaybeUninit::<[[E::Vector<S>; VECTORS]; ROWS]>::uninit() }; LEVELS];
    let depth = k / c.leaves;
    // SAFETY: as the caller promises; a level is read only after it was written.
    unsafe {
        let (a_rows, b_columns) = (a.data.as_ptr().add(row * a.row), b.data.as_ptr().add(column));
        for leaf in 0..c.leaves {
            sums = [[zero; VECTORS]; ROWS];
            for l in leaf * depth..(leaf + 1) * depth {
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
            let level = leaf.trailing_ones() as usize;
            for left in &waiting[..level] {
                let left = left.assume_init_ref();
                for i in 0..ROWS {
                    for v in 0..VECTORS {
                        sums[i][v] = E::vector_add(simd, left[i][v], sums[i][v]);
                    }
                }
            }
            if leaf + 1 < c.leaves {
                waiting[level].write(sums);
            }
        }
        let valid = c.columns - column;
        let ragged = valid < VECTORS * lanes::<E, S>();
        for i in 0..ROWS {
            let target = c.data.add((row + i) * c.row + column);
            if ragged {
                let mut values = [E::zero(); 4 * WHOLE_VECTORS];
                values.as_mut_ptr().cast::<[E::Vector<S>; VECTORS]>().write_unaligned(sums[i]);
                for j in 0..valid {
                    let target = target.add(j);
                    *target = if c.add { *target + values[j] } else { values[j] };
                }
                continue;
            }
            for v in 0..VECTORS {
                let (target, mut sum) = (target.cast::<E::Vector<S>>().add(v), sums[i][v]);
                if c.add {
                    sum = E::vector_add(simd, target.read_unaligned(), sum);
                }
                target.write_unaligned(sum);
            }
        }
    }
}

//! The innermost matrix product, which keeps a block of the result in registers.

use std::{marker::PhantomData, ops::Range};

use pulp::{Simd, WithSimd};

use super::Operand;
use crate::ops::{
    number::Number,
    reductions::WHOLE_VECTORS,
    vector::{VectorElement, lanes},
};

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
    pub start: Start<'a, E>,
    /// Cuts the sum over k into leaves, which are summed as a binary tree and then added to the start. With None, the sum is not
    /// cut and continues from its start.
    pub leaves: Option<Leaves<'a, E>>,
}

/// The leaves of equal length into which a sum is cut.
pub struct Leaves<'a, E> {
    /// Number of leaves, a power of two.
    pub count: usize,
    /// Memory that keeps left branches until their right ones are summed, [`Leaves::memory`] elements.
    pub waiting: &'a mut [E],
}

impl<E> Leaves<'_, E> {
    /// Elements of memory that `count` leaves need: a block of registers per level.
    pub fn memory(count: usize) -> usize {
        count.trailing_zeros() as usize * BLOCK
    }
}

/// Elements of the largest block of registers: 16 vectors.
const BLOCK: usize = 16 * WHOLE_VECTORS;

/// The initial value of a product's sums.
#[derive(Clone, Copy)]
pub enum Start<'a, E> {
    Zero,
    /// The target's values.
    Target,
    /// A value per column, the same in every row.
    Bias(&'a [E]),
    /// Rows as far apart as the target's, plus a value per column.
    Rows(&'a [E], &'a [E]),
}

impl<'a, E> Start<'a, E> {
    /// The start of a product that adds to the target, or else overwrites it.
    pub fn adding(add: bool) -> Self {
        if add { Start::Target } else { Start::Zero }
    }

    /// The start for the columns from `first` on.
    pub fn from_column(self, first: usize) -> Self {
        match self {
            Start::Zero | Start::Target => self,
            Start::Bias(bias) => Start::Bias(&bias[first..]),
            Start::Rows(rows, bias) => Start::Rows(&rows[first..], &bias[first..]),
        }
    }
}

/// A [`Target`] whose bounds were checked.
#[derive(Clone, Copy)]
pub struct RawTarget<E> {
    pub data: *mut E,
    pub row: usize,
    /// Initial values of the sums, in rows as far apart as the target's.
    pub rows: Option<*const E>,
    /// Initial values that are added to every row, one per column.
    pub bias: Option<*const E>,
    pub leaves: Option<usize>,
    /// Memory that keeps left branches, by level.
    pub waiting: *mut E,
    /// Columns of the result; a block of registers may hold more.
    pub columns: usize,
}

/// Checks that c [m, n] = a [m, k] b [k, n] stays within its matrices.
///
/// # Panics
/// When it does not, a size is zero, the leaves do not divide k, the leaves' memory is too short, b's columns are not
/// neighbours, or its last row ends within a vector.
#[inline(always)]
pub fn check<E>([m, k, n]: [usize; 3], a: Strided<E>, b: Strided<E>, c: &Target<E>) {
    assert!(m > 0 && k > 0 && n > 0);
    if let Some(Leaves { count, waiting }) = &c.leaves {
        assert!(count.is_power_of_two() && k.is_multiple_of(*count));
        assert!(waiting.len() >= Leaves::<E>::memory(*count));
    }
    assert!((m - 1) * a.row + (k - 1) * a.column < a.data.len());
    let whole = n.next_multiple_of(WHOLE_VECTORS);
    assert!(b.column == 1 && (k - 1) * b.row + whole <= b.data.len() && (m - 1) * c.row + n <= c.data.len());
    assert!(match c.start {
        Start::Zero | Start::Target => true,
        Start::Bias(bias) => n <= bias.len(),
        Start::Rows(rows, bias) => (m - 1) * c.row + n <= rows.len() && n <= bias.len(),
    });
}

/// A series of products of one shape, whose matrices are evenly spaced in memory.
#[derive(Clone, Copy)]
pub struct Series {
    pub times: usize,
    /// Elements from a matrix to the next: of a, b and c.
    pub steps: [usize; 3],
}

impl Series {
    /// A single product.
    pub const ONE: Self = Self { times: 1, steps: [0; 3] };

    /// The matrices of product `i`.
    #[inline(always)]
    pub fn nth<'a, 'b, E: Copy>(
        &self,
        i: usize,
        (a, b): (Strided<'a, E>, Strided<'a, E>),
        c: &'b mut Target<E>,
    ) -> (Strided<'a, E>, Strided<'a, E>, Target<'b, E>) {
        let [a_step, b_step, c_step] = self.steps.map(|step| i * step);
        let leaves = c.leaves.as_mut();
        let leaves = leaves.map(|leaves| Leaves { count: leaves.count, waiting: &mut *leaves.waiting });
        let target = Target { data: &mut c.data[c_step..], row: c.row, start: c.start, leaves };
        (Strided { data: &a.data[a_step..], ..a }, Strided { data: &b.data[b_step..], ..b }, target)
    }
}

/// [`Operand::series`] on a vector unit.
///
/// # Panics
/// As [`check`].
pub struct Product<'a, E, P> {
    pub series: Series,
    pub shape: [usize; 3],
    pub a: Strided<'a, E>,
    pub b: Strided<'a, E>,
    pub c: Target<'a, E>,
    pub operand: PhantomData<P>,
}

impl<E: Number, P: Operand<E>> WithSimd for Product<'_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { series, shape, a, b, mut c, .. } = self;
        for i in 0..series.times {
            let (a, b, c) = series.nth(i, (a, b), &mut c);
            product::<E, P, S>(simd, shape, a, b, c);
        }
    }
}

#[inline(always)]
fn product<E: Number, P: Operand<E>, S: Simd>(simd: S, shape: [usize; 3], a: Strided<E>, b: Strided<E>, c: Target<E>) {
    check(shape, a, b, &c);
    let [m, k, n] = shape;
    let lanes = lanes::<E, S>();
    let many_registers = S::REGISTER_COUNT >= 32;
    let Target { data, row, start, leaves } = c;
    let data = data.as_mut_ptr();
    let (rows, bias) = match start {
        Start::Zero => (None, None),
        Start::Target => (Some(data.cast_const()), None),
        Start::Bias(bias) => (None, Some(bias.as_ptr())),
        Start::Rows(rows, bias) => (Some(rows.as_ptr()), Some(bias.as_ptr())),
    };
    let (leaves, waiting) = match leaves {
        Some(Leaves { count, waiting }) => (Some(count), waiting.as_mut_ptr()),
        None => (None, std::ptr::null_mut()),
    };
    let target = RawTarget { data, row, rows, bias, leaves, waiting, columns: n };
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

/// Computes `VECTORS` vectors of columns from `column` on, `ROWS` rows at a time and the remaining rows one by one. Returns
/// `VECTORS`.
///
/// # Safety
/// The columns must be within b, the first of them within c, and all rows within the matrices.
#[inline(always)]
unsafe fn columns<E: Number, P: Operand<E>, S: Simd, const ROWS: usize, const VECTORS: usize>(
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

/// A block of sums in registers.
type Sums<E, S, const ROWS: usize, const VECTORS: usize> = [[<E as VectorElement>::Vector<S>; VECTORS]; ROWS];

/// Computes `ROWS` rows from `row` on of `VECTORS` vectors of columns from `column` on.
///
/// # Safety
/// As for [`columns`].
#[inline(always)]
unsafe fn registers<E: Number, P: Operand<E>, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    [row, k, column]: [usize; 3],
    a: Strided<E>,
    b: Strided<E>,
    c: RawTarget<E>,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let (a_rows, b_columns) = (a.data.as_ptr().add(row * a.row), b.data.as_ptr().add(column));
        let valid = (c.columns - column).min(VECTORS * lanes::<E, S>());
        let mut sums: Sums<E, S, ROWS, VECTORS> = [[E::splat(simd, E::zero()); VECTORS]; ROWS];
        if let Some(rows) = c.rows {
            for i in 0..ROWS {
                sums[i] = load::<E, S, VECTORS>(simd, rows.add((row + i) * c.row + column), valid);
            }
        }
        if let Some(bias) = c.bias {
            let bias = load::<E, S, VECTORS>(simd, bias.add(column), valid);
            for i in 0..ROWS {
                for v in 0..VECTORS {
                    sums[i][v] = E::vector_add(simd, sums[i][v], bias[v]);
                }
            }
        }
        let (a, b) = ((a_rows, a), (b_columns, b));
        let sums = match c.leaves {
            None => sum::<E, P, S, ROWS, VECTORS>(simd, sums, 0..k, a, b),
            Some(leaves) => add::<E, S, ROWS, VECTORS>(
                simd,
                sums,
                tree::<E, P, S, ROWS, VECTORS>(simd, [k, leaves], c.waiting, a, b),
            ),
        };
        for i in 0..ROWS {
            let target = c.data.add((row + i) * c.row + column);
            if valid < VECTORS * lanes::<E, S>() {
                store_ragged::<E, S, VECTORS>(sums[i], target, valid);
                continue;
            }
            for v in 0..VECTORS {
                target.cast::<E::Vector<S>>().add(v).write_unaligned(sums[i][v]);
            }
        }
    }
}

/// a + b.
#[inline(always)]
fn add<E: Number, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    a: Sums<E, S, ROWS, VECTORS>,
    mut b: Sums<E, S, ROWS, VECTORS>,
) -> Sums<E, S, ROWS, VECTORS> {
    for i in 0..ROWS {
        for v in 0..VECTORS {
            b[i][v] = E::vector_add(simd, a[i][v], b[i][v]);
        }
    }
    b
}

/// The `valid` elements at `from`, and zeros after them.
///
/// # Safety
/// `from` must point to `valid` elements.
#[inline(always)]
unsafe fn load<E: Number, S: Simd, const VECTORS: usize>(
    simd: S,
    from: *const E,
    valid: usize,
) -> [E::Vector<S>; VECTORS] {
    let mut values = [E::splat(simd, E::zero()); VECTORS];
    // SAFETY: as the caller promises.
    unsafe {
        if valid < VECTORS * lanes::<E, S>() {
            std::ptr::copy_nonoverlapping(from, values.as_mut_ptr().cast(), valid);
        } else {
            for v in 0..VECTORS {
                values[v] = from.cast::<E::Vector<S>>().add(v).read_unaligned();
            }
        }
    }
    values
}

/// Writes the first `valid` elements of `values` to `target`.
///
/// # Safety
/// `target` must have room for `valid` elements, and `values` must have as many.
#[inline(never)]
unsafe fn store_ragged<E: Number, S: Simd, const VECTORS: usize>(
    values: [E::Vector<S>; VECTORS],
    target: *mut E,
    valid: usize,
) {
    // SAFETY: as the caller promises.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast(), target, valid) };
}

/// `sums` plus, in order over `depth`, the products of the rows that start at the first pointer with the columns that start at
/// the second.
///
/// # Safety
/// As for [`columns`].
#[inline(always)]
unsafe fn sum<E: Number, P: Operand<E>, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    mut sums: Sums<E, S, ROWS, VECTORS>,
    depth: Range<usize>,
    (a_rows, a): (*const E, Strided<E>),
    (b_columns, b): (*const E, Strided<E>),
) -> Sums<E, S, ROWS, VECTORS> {
    let zero = E::splat(simd, E::zero());
    for l in depth {
        // SAFETY: as the caller promises.
        unsafe {
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
    }
    sums
}

/// The binary tree's sum of `leaves` leaves of equal length.
///
/// # Safety
/// As for [`columns`].
#[inline(always)]
unsafe fn tree<E: Number, P: Operand<E>, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    [k, leaves]: [usize; 2],
    waiting: *mut E,
    a: (*const E, Strided<E>),
    b: (*const E, Strided<E>),
) -> Sums<E, S, ROWS, VECTORS> {
    let (depth, zero) = (k / leaves, [[E::splat(simd, E::zero()); VECTORS]; ROWS]);
    let mut sums = zero;
    const { assert!(size_of::<Sums<E, S, ROWS, VECTORS>>() <= BLOCK * size_of::<E>()) };
    for leaf in 0..leaves {
        // SAFETY: as the caller promises.
        sums = unsafe { sum::<E, P, S, ROWS, VECTORS>(simd, zero, leaf * depth..(leaf + 1) * depth, a, b) };
        let level = leaf.trailing_ones() as usize;
        for level in 0..level {
            // SAFETY: the leaf ends a right branch of each of these levels, whose left branch was written earlier.
            let left = unsafe { waiting.add(level * BLOCK).cast::<Sums<E, S, ROWS, VECTORS>>().read_unaligned() };
            sums = add::<E, S, ROWS, VECTORS>(simd, left, sums);
        }
        if leaf + 1 < leaves {
            // SAFETY: `waiting` has a block for each level, and only the last leaf would reach one more.
            unsafe { waiting.add(level * BLOCK).cast::<Sums<E, S, ROWS, VECTORS>>().write_unaligned(sums) };
        }
    }
    sums
}

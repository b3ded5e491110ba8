//! Products of pairs of bf16 by AMX, whose tile registers hold 16 rows of 16 elements.
//!
//! One instruction multiplies two tiles and adds the product to a third: 16 elements, that is 32 factors, to each sum. A 32 by
//! 32 block of the result stays in four registers, while two tiles of each factor at a time pass through the other four.

#[cfg(all(test, target_os = "linux"))]
pub mod emulator;
mod turn;

use std::{
    arch::{asm, x86_64::__cpuid_count},
    sync::OnceLock,
};

use super::{
    Start, Strided, Target,
    kernel::{RawTarget, Series, check},
    unit,
};
use crate::ops::scratch::Scratch;
use turn::turn;

/// Rows of a tile, and elements of a row.
const SIDE: usize = 16;
/// Rows and columns of a block.
const BLOCK: usize = 2 * SIDE;

// Registers: sums by row and column of tiles, then factors.
const SUMS: [[u8; 2]; 2] = [[0, 1], [2, 3]];
const LEFT: [u8; 2] = [4, 5];
const RIGHT: [u8; 2] = [6, 7];

/// Whether the running CPU has the instructions, the system lets this process use them, and they compute correctly.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    // SAFETY: called only where the CPU and the system support tiles.
    let right = || unsafe { computes_right() };
    *AVAILABLE.get_or_init(|| cpu_has_tiles() && unit::v4().is_some() && may_use_tiles() && right())
}

/// Whether tiles can compute a product: its columns must fill whole tiles, and its sums must not be cut into leaves.
pub fn fit([_, _, n]: [usize; 3], c: &Target<f32>) -> bool {
    c.leaves.is_none() && n.is_multiple_of(SIDE)
}

/// Whether the instructions compute here what their manual says, tested on small whole numbers, whose products and sums are
/// exact.
///
/// # Safety
/// The CPU must have tiles and AVX-512.
unsafe fn computes_right() -> bool {
    // Ragged in every direction.
    let [m, k, n] = [BLOCK + 5, SIDE + 3, BLOCK + SIDE];
    let number = |i: usize, step: usize| (i * step % 7) as f32 - 3.0;
    let factors = |elements: usize, step: usize| -> Vec<f32> {
        (0..elements).map(|i| unit::pack(&[number(2 * i, step), number(2 * i + 1, step)])).collect()
    };
    let (a, b, mut c) = (factors(m * k, 3), factors(k * n, 5), vec![1.0; m * n]);
    let [left, right] = [(&a, k), (&b, n)].map(|(data, row)| Strided { data, row, column: 1 });
    // SAFETY: as the caller promises.
    unsafe {
        product(
            &mut Registers::new(),
            [m, k, n],
            left,
            right,
            Target { data: &mut c, row: n, start: Start::Target, leaves: None },
        )
    };
    let pair = |l: usize, i: usize, j: usize| -> f32 {
        (0..2).map(|part| number(2 * (i * k + l) + part, 3) * number(2 * (l * n + j) + part, 5)).sum()
    };
    (0..m * n).all(|at| c[at] == 1.0 + (0..k).map(|l| pair(l, at / n, at % n)).sum::<f32>())
}

/// Whether CPUID reports AMX-TILE and AMX-BF16.
fn cpu_has_tiles() -> bool {
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    let found = __cpuid_count(7, 0).edx;
    found & TILE != 0 && found & BF16 != 0
}

/// Asks Linux for permission to use the registers, and returns whether it was granted. Linux keeps space for them only in
/// processes that ask (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const REQUEST_PERMISSION: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers, and changes only this process's permissions.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// [`super::Operand::series`] of elements that are pairs.
///
/// # Safety
/// [`available`] must have returned true.
///
/// # Panics
/// As [`check`], and when tiles do not [`fit`].
pub unsafe fn series(series: Series, shape: [usize; 3], a: Strided<f32>, b: Strided<f32>, mut c: Target<f32>) {
    // SAFETY: as the caller promises.
    let mut registers = unsafe { Registers::new() };
    for i in 0..series.times {
        let (a, b, c) = series.nth(i, (a, b), &mut c);
        // SAFETY: as the caller promises.
        unsafe { product(&mut registers, shape, a, b, c) };
    }
}

/// A single product of elements that are pairs.
///
/// # Safety
/// [`available`] must have returned true.
///
/// # Panics
/// As [`check`], and when tiles do not [`fit`].
unsafe fn product(registers: &mut Registers, shape: [usize; 3], a: Strided<f32>, b: Strided<f32>, c: Target<f32>) {
    check(shape, a, b, &c);
    let [m, k, n] = shape;
    assert!(fit(shape, &c));
    // Tiles start from zero or from the target's values. Other starts are written to the target first.
    let add = !matches!(c.start, Start::Zero);
    match c.start {
        Start::Zero | Start::Target => {}
        Start::Bias(bias) => c.data.chunks_mut(c.row).take(m).for_each(|row| row[..n].copy_from_slice(&bias[..n])),
        Start::Rows(rows, bias) => {
            for (row, from) in c.data.chunks_mut(c.row).zip(rows.chunks(c.row)).take(m) {
                row[..n].iter_mut().zip(from).zip(bias).for_each(|((to, from), bias)| *to = from + bias);
            }
        }
    }
    let whole = k - k % SIDE;
    let parts = [(0, whole), (whole, k)].into_iter().filter(|(first, end)| first < end);
    for (first, end) in parts {
        for row in (0..m).step_by(BLOCK) {
            let rows = BLOCK.min(m - row);
            let data = &a.data[row * a.row + first * a.column..];
            let target = &mut c.data[row * c.row..];
            let start = Start::adding(add || first > 0);
            let target = Target { data: target, row: c.row, start, leaves: None };
            let right = Strided { data: &b.data[first * b.row..], ..b };
            let shape = [rows, end - first, n];
            // SAFETY: as the caller promises.
            unsafe {
                if a.column == 1 {
                    let left = Left { data: data.as_ptr(), row: a.row, step: SIDE };
                    rows_of_blocks(registers, shape, left, right, target);
                } else {
                    f32::with_scratch(shape[1].next_multiple_of(SIDE) * BLOCK, |memory| {
                        turn([rows, shape[1]], Strided { data, ..a }, memory);
                        let left = Left { data: memory.as_ptr(), row: SIDE, step: SIDE * BLOCK };
                        rows_of_blocks(registers, shape, left, right, target);
                    });
                }
            }
        }
    }
}

/// A left factor of at most [`BLOCK`] rows.
#[derive(Clone, Copy)]
struct Left {
    data: *const f32,
    /// Elements from a row to the next.
    row: usize,
    /// Elements from a tile to the next one along the sum.
    step: usize,
}

/// The product of at most [`BLOCK`] rows; k is less than [`SIDE`] or a multiple of it.
///
/// # Safety
/// [`available`], and all bounds, must have been checked.
unsafe fn rows_of_blocks(
    registers: &mut Registers,
    [rows, k, n]: [usize; 3],
    left: Left,
    right: Strided<f32>,
    c: Target<f32>,
) {
    // SAFETY: as the caller promises; blocks begin within b and c.
    unsafe {
        registers.configure(rows, k.min(SIDE));
        for column in (0..n).step_by(BLOCK) {
            let b = right.data.as_ptr().add(column);
            let data = c.data.as_mut_ptr().add(column);
            let begin = matches!(c.start, Start::Target).then_some(data.cast_const());
            let c = RawTarget {
                data,
                row: c.row,
                rows: begin,
                bias: None,
                leaves: None,
                waiting: std::ptr::null_mut(),
                columns: n - column,
            };
            let steps = k.div_ceil(SIDE);
            match (rows > SIDE, n - column > SIDE) {
                (false, false) => block::<1, 1>(steps, left, b, right.row, c),
                (false, true) => block::<1, 2>(steps, left, b, right.row, c),
                (true, false) => block::<2, 1>(steps, left, b, right.row, c),
                (true, true) => block::<2, 2>(steps, left, b, right.row, c),
            }
        }
    }
}

/// A block of `ROWS` by `COLUMNS` tiles; the right factor's rows are `b_row` elements apart.
///
/// # Safety
/// [`configure`] must have been called for this block on this thread, and all bounds must have been checked.
#[inline(always)]
unsafe fn block<const ROWS: usize, const COLUMNS: usize>(
    steps: usize,
    left: Left,
    b: *const f32,
    b_row: usize,
    c: RawTarget<f32>,
) {
    const {
        assert!(1 <= ROWS && ROWS <= 2 && 1 <= COLUMNS && COLUMNS <= 2);
    }
    // SAFETY: as the caller promises.
    unsafe {
        let sums = |i: usize, j: usize| c.data.add(i * SIDE * c.row + j * SIDE);
        begin::<{ SUMS[0][0] }>(sums(0, 0), c.row, c.rows.is_some());
        if COLUMNS == 2 {
            begin::<{ SUMS[0][1] }>(sums(0, 1), c.row, c.rows.is_some());
        }
        if ROWS == 2 {
            begin::<{ SUMS[1][0] }>(sums(1, 0), c.row, c.rows.is_some());
        }
        if ROWS == 2 && COLUMNS == 2 {
            begin::<{ SUMS[1][1] }>(sums(1, 1), c.row, c.rows.is_some());
        }
        for step in 0..steps {
            let (a, b) = (left.data.add(step * left.step), b.add(step * SIDE * b_row));
            load::<{ RIGHT[0] }>(b, b_row);
            if COLUMNS == 2 {
                load::<{ RIGHT[1] }>(b.add(SIDE), b_row);
            }
            load::<{ LEFT[0] }>(a, left.row);
            multiply_add::<{ SUMS[0][0] }, { LEFT[0] }, { RIGHT[0] }>();
            if COLUMNS == 2 {
                multiply_add::<{ SUMS[0][1] }, { LEFT[0] }, { RIGHT[1] }>();
            }
            if ROWS == 2 {
                load::<{ LEFT[1] }>(a.add(SIDE * left.row), left.row);
                multiply_add::<{ SUMS[1][0] }, { LEFT[1] }, { RIGHT[0] }>();
            }
            if ROWS == 2 && COLUMNS == 2 {
                multiply_add::<{ SUMS[1][1] }, { LEFT[1] }, { RIGHT[1] }>();
            }
        }
        store::<{ SUMS[0][0] }>(sums(0, 0), c.row);
        if COLUMNS == 2 {
            store::<{ SUMS[0][1] }>(sums(0, 1), c.row);
        }
        if ROWS == 2 {
            store::<{ SUMS[1][0] }>(sums(1, 0), c.row);
        }
        if ROWS == 2 && COLUMNS == 2 {
            store::<{ SUMS[1][1] }>(sums(1, 1), c.row);
        }
    }
}

/// The tile registers of the thread. They are configured when a block of another shape follows, which takes as long as a small
/// block, and released at the end.
struct Registers {
    /// Rows of a block and depth of its tiles.
    shape: Option<[usize; 2]>,
}

impl Registers {
    /// # Safety
    /// The CPU must have tiles. No other value may exist on this thread.
    unsafe fn new() -> Self {
        Self { shape: None }
    }

    fn configure(&mut self, rows: usize, depth: usize) {
        if self.shape.replace([rows, depth]) != Some([rows, depth]) {
            // SAFETY: the CPU has tiles, as was promised for `new`.
            unsafe { configure(&Shapes::new(rows, depth)) };
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: as for `configure`.
        unsafe { release() };
    }
}

/// The configuration of the tile registers, as LDTILECFG reads it.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// The configuration for a block of `rows` rows and `depth` elements along the sum.
    fn new(rows: usize, depth: usize) -> Self {
        const ELEMENT: usize = size_of::<f32>();
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut set = |register: u8, rows: usize, elements: usize| {
            shapes.rows[usize::from(register)] = rows as u8;
            shapes.row_bytes[usize::from(register)] = (elements * ELEMENT) as u16;
        };
        for i in 0..2 {
            set(RIGHT[i], depth, SIDE);
            let rows = rows.saturating_sub(i * SIDE).min(SIDE);
            if rows > 0 {
                set(LEFT[i], rows, depth);
                set(SUMS[i][0], rows, SIDE);
                set(SUMS[i][1], rows, SIDE);
            }
        }
        shapes
    }
}

// Each of these functions is one instruction. The compiler does not know tile registers, and thus neither uses nor saves them
// between two of the functions. It keeps their order, because the instructions are volatile.

/// # Safety
/// The CPU must have tiles.
#[inline(always)]
unsafe fn configure(shapes: &Shapes) {
    // SAFETY: as the caller promises; LDTILECFG reads 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, preserves_flags, readonly)) }
}

/// # Safety
/// The CPU must have tiles.
#[inline(always)]
unsafe fn release() {
    // SAFETY: as the caller promises.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
}

/// Starts sums from zero, or from the values at `from` if `add` is set.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn begin<const TILE: u8>(from: *const f32, row: usize, add: bool) {
    // SAFETY: as the caller promises.
    unsafe {
        if add {
            load::<TILE>(from, row);
        } else {
            asm!("tilezero tmm{}", const TILE, options(nostack, preserves_flags, nomem));
        }
    }
}

/// # Safety
/// The registers must be configured, and the tile's rows must exist in memory, `row` elements apart.
#[inline(always)]
unsafe fn load<const TILE: u8>(from: *const f32, row: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("tileloadd tmm{}, [{} + 4*{}]", const TILE, in(reg) from, in(reg) row,
            options(nostack, preserves_flags, readonly));
    }
}

/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn store<const TILE: u8>(to: *mut f32, row: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("tilestored [{} + 4*{}], tmm{}", in(reg) to, in(reg) row, const TILE, options(nostack, preserves_flags));
    }
}

/// # Safety
/// The registers must be configured.
#[inline(always)]
unsafe fn multiply_add<const SUM: u8, const A: u8, const B: u8>() {
    // SAFETY: as the caller promises.
    unsafe {
        asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const SUM, const A, const B, options(nostack, preserves_flags, nomem));
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn emulated_tiles_compute_right() {
        if unit::v4().is_some() {
            emulator::install();
            // SAFETY: instructions that the CPU lacks are emulated.
            assert!(unsafe { computes_right() });
        }
    }
}

//! Products of matrices of any size, from packed factors.

use std::{marker::PhantomData, ops::Range};

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{Leaves, Operand, Start, Strided, Target};
use crate::ops::{matrix::Matrix, number::Number, parts::Threads, reductions::WHOLE_VECTORS, vector::lanes};

/// Columns of a panel of a right factor: as many as the registers take at once on the widest CPU.
pub const PANEL: usize = 64;
/// Elements along the sum that are multiplied at once, so that a panel's part stays in a core's cache.
const DEPTH: usize = 1024;
/// Elements along the sum that a task packs.
const TASK_DEPTH: usize = 64;

/// A right factor [k, n], packed: panels of at most [`PANEL`] columns, [elements of k, width] each. The last panel is filled up
/// with zeros to whole vectors.
#[derive(Clone, Copy)]
pub struct Panels<'a, E> {
    /// All panels, one after another.
    pub values: &'a [E],
    /// Elements along the sum.
    pub depth: usize,
    pub columns: usize,
}

/// The columns of a panel.
#[derive(Clone, Copy)]
pub struct Panel<'a, E> {
    /// [elements of k, width in whole vectors]
    pub values: &'a [E],
    pub first: usize,
    /// Columns without padding.
    pub width: usize,
}

impl<'a, E: Number> Panels<'a, E> {
    /// Elements of memory that a factor [k, n] takes, packed.
    pub fn len<P: Operand<E>>([k, n]: [usize; 2]) -> usize {
        elements::<E, P>(k) * n.next_multiple_of(WHOLE_VECTORS)
    }

    /// Packs `b` into `memory`.
    pub fn pack<P: Operand<E>>(b: Matrix<E>, memory: &'a mut [E], threads: Threads) -> Self {
        let depth = elements::<E, P>(b.rows);
        let memory = &mut memory[..Self::len::<P>([b.rows, b.columns])];
        let pack = |(i, panel): (usize, &mut [E])| {
            let width = panel.len() / depth;
            pack_across::<E, P>(b, i * PANEL..i * PANEL + width, panel);
        };
        match threads {
            Threads::One => memory.chunks_mut(depth * PANEL).enumerate().for_each(pack),
            Threads::All => memory.par_chunks_mut(depth * PANEL).enumerate().for_each(pack),
        }
        Self { values: memory, depth, columns: b.columns }
    }

    /// The panels in order.
    pub fn each(self) -> impl Iterator<Item = Panel<'a, E>> {
        self.values.chunks(self.depth * PANEL).enumerate().map(move |(i, values)| Panel {
            values,
            first: i * PANEL,
            width: PANEL.min(self.columns - i * PANEL),
        })
    }

    /// The first `columns` columns. Only columns of the last [`WHOLE_VECTORS`] may be left out.
    pub fn first(self, columns: usize) -> Self {
        assert!(columns.next_multiple_of(WHOLE_VECTORS) == self.columns.next_multiple_of(WHOLE_VECTORS));
        Self { columns, ..self }
    }
}

/// A left factor [m, k], packed.
#[derive(Clone, Copy)]
pub struct Left<'a, E> {
    pub factors: Strided<'a, E>,
    pub rows: usize,
}

impl<'a, E: Number> Left<'a, E> {
    /// Packs the dense rows `a` of `k` factors, a multiple of [`WHOLE_VECTORS`], into `memory`.
    pub fn rows<P: Operand<E>>(a: &[E], k: usize, memory: &'a mut [E]) -> Self {
        assert!(k.is_multiple_of(WHOLE_VECTORS));
        let memory = &mut memory[..a.len() / P::PACK];
        P::dispatch(PackAlong::<E, P> { factors: a, packed: memory, operand: PhantomData });
        Self { factors: Strided { data: memory, row: k / P::PACK, column: 1 }, rows: a.len() / k }
    }

    /// Runs `work` with the dense rows `a` of `k` factors: packed as by [`Left::rows`], or in place if packing would not change
    /// them.
    pub fn with_rows<P: Operand<E>>(a: &[E], k: usize, work: impl FnOnce(Left<E>)) {
        let whole = k.next_multiple_of(WHOLE_VECTORS);
        if P::PACKS && k < whole {
            // Packing takes whole vectors of a row.
            E::with_scratch(a.len() / k * whole, |padded| {
                for (padded, a) in padded.chunks_exact_mut(whole).zip(a.chunks_exact(k)) {
                    padded[..k].copy_from_slice(a);
                    padded[k..].fill(E::zero());
                }
                Self::with_rows::<P>(padded, whole, work);
            });
        } else if P::PACKS {
            E::with_scratch(a.len() / P::PACK, |memory| work(Left::rows::<P>(a, k, memory)));
        } else {
            work(Left { factors: Strided { data: a, row: k, column: 1 }, rows: a.len() / k });
        }
    }

    /// Runs `work` with the transpose of the dense `a`, packed. Factors that packing would not change are copied as well: a
    /// product walks down their columns, which is slow in main memory and fast in a cache.
    pub fn with_transposed<P: Operand<E>>(a: Matrix<E>, threads: Threads, work: impl FnOnce(Left<E>)) {
        let row = a.columns.next_multiple_of(WHOLE_VECTORS);
        E::with_scratch(elements::<E, P>(a.rows) * row, |memory| work(Left::transposed::<P>(a, memory, threads)));
    }

    /// Packs the transpose of the dense `a` into `memory`.
    fn transposed<P: Operand<E>>(a: Matrix<E>, memory: &'a mut [E], threads: Threads) -> Self {
        let row = a.columns.next_multiple_of(WHOLE_VECTORS);
        match threads {
            Threads::One => pack_across::<E, P>(a, 0..row, memory),
            Threads::All => {
                memory.par_chunks_mut(TASK_DEPTH * row).enumerate().for_each(|(i, part)| {
                    let first = i * TASK_DEPTH * P::PACK;
                    let rows = (TASK_DEPTH * P::PACK).min(a.rows - first);
                    let a = Matrix { data: &a.data[first * a.row_stride..], rows, ..a };
                    pack_across::<E, P>(a, 0..row, part);
                });
            }
        }
        Self { factors: Strided { data: memory, row: 1, column: row }, rows: a.columns }
    }

    /// The rows `rows` of this factor.
    pub fn part(self, rows: Range<usize>) -> Self {
        let data = &self.factors.data[rows.start * self.factors.row..];
        Self { factors: Strided { data, ..self.factors }, rows: rows.len() }
    }
}

/// c [m, n] = start + a b, on this thread.
pub fn multiply<E: Number, P: Operand<E>>(a: Left<E>, b: Panels<E>, c: &mut [E], start: Start<E>) {
    multiply_leaves::<E, P>(a, b, c, start, None);
}

/// [`multiply`] whose sums over k are cut into `leaves` of equal length, summed as a binary tree (see
/// [`parts`](crate::ops::parts)) and then added to the start.
pub fn multiply_leaves<E: Number, P: Operand<E>>(
    a: Left<E>,
    b: Panels<E>,
    c: &mut [E],
    start: Start<E>,
    leaves: Option<usize>,
) {
    let Left { factors: a, rows } = a;
    assert!(c.len() >= rows * b.columns);
    if rows == 0 {
        return;
    }
    let mut product = |waiting: &mut [E]| {
        // A tree's sum must not be cut along the depth.
        let step = if leaves.is_none() { DEPTH } else { b.depth };
        for first in (0..b.depth).step_by(step) {
            let depth = step.min(b.depth - first);
            let a = Strided { data: &a.data[first * a.column..], ..a };
            for panel in b.each() {
                let row = panel.width.next_multiple_of(WHOLE_VECTORS);
                let b_part = Strided { data: &panel.values[first * row..], row, column: 1 };
                let start = if first > 0 { Start::Target } else { start.from_column(panel.first) };
                let leaves = leaves.map(|count| Leaves { count, waiting: &mut *waiting });
                let target = Target { data: &mut c[panel.first..], row: b.columns, start, leaves };
                P::product([rows, depth, panel.width], a, b_part, target);
            }
        }
    };
    match leaves {
        None => product(&mut []),
        Some(leaves) => E::with_scratch(Leaves::<E>::memory(leaves), product),
    }
}

/// Number of elements that hold `factors` consecutive factors of a sum.
pub fn elements<E: Number, P: Operand<E>>(factors: usize) -> usize {
    factors.div_ceil(P::PACK)
}

/// Packs dense factors whose neighbours in memory are consecutive in the sum.
struct PackAlong<'a, E, P> {
    factors: &'a [E],
    packed: &'a mut [E],
    operand: PhantomData<P>,
}

impl<E: Number, P: Operand<E>> WithSimd for PackAlong<'_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let factors = E::vectors::<S>(self.factors);
        let step = lanes::<E, S>() / P::PACK;
        assert_eq!(self.packed.len(), factors.len() * step);
        for i in 0..factors.len() {
            // SAFETY: `packed` has `step` elements per vector, by the assertion.
            unsafe { P::store_along(simd, factors[i], self.packed.as_mut_ptr().add(i * step)) };
        }
    }
}

/// Packs the columns `columns` of `b` [k, n], whole vectors of them, as [elements of k, columns]. Columns beyond those of b are
/// zero.
fn pack_across<E: Number, P: Operand<E>>(b: Matrix<E>, columns: Range<usize>, packed: &mut [E]) {
    let width = columns.len();
    assert!(width.is_multiple_of(WHOLE_VECTORS));
    if columns.end <= b.columns && b.column_stride == 1 {
        return P::dispatch(PackAcross::<E, P> { b, columns, packed, operand: PhantomData });
    }
    if columns.end <= b.columns && b.row_stride == 1 && b.rows.is_multiple_of(WHOLE_VECTORS) {
        return E::with_scratch(elements::<E, P>(b.rows) * WHOLE_VECTORS, |memory| {
            P::dispatch(PackTransposed::<E, P> { b, columns, packed, memory, operand: PhantomData });
        });
    }
    let at = |l: usize, column: usize| match l < b.rows && column < b.columns {
        true => b.data[l * b.row_stride + column * b.column_stride],
        false => E::zero(),
    };
    for (i, row) in packed.chunks_exact_mut(width).enumerate().take(elements::<E, P>(b.rows)) {
        let first = i * P::PACK;
        for (j, element) in row.iter_mut().enumerate() {
            let mut factors = [E::zero(); 2];
            for (l, factor) in factors.iter_mut().enumerate().take(P::PACK) {
                *factor = at(first + l, columns.start + j);
            }
            *element = P::pack(&factors);
        }
    }
}

struct PackAcross<'a, E, P> {
    b: Matrix<'a, E>,
    columns: Range<usize>,
    packed: &'a mut [E],
    operand: PhantomData<P>,
}

impl<E: Number, P: Operand<E>> WithSimd for PackAcross<'_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { b, columns, packed, .. } = self;
        let (width, lanes) = (columns.len(), lanes::<E, S>());
        assert!(packed.len() >= elements::<E, P>(b.rows) * width);
        for (i, target) in packed.chunks_exact_mut(width).enumerate().take(elements::<E, P>(b.rows)) {
            let start = i * P::PACK * b.row_stride + columns.start;
            let first = E::vectors::<S>(&b.data[start..][..width]);
            if P::PACK == 2 && i * 2 + 1 < b.rows {
                let second = E::vectors::<S>(&b.data[start + b.row_stride..][..width]);
                for v in 0..first.len() {
                    // SAFETY: `target` has `width` elements.
                    unsafe {
                        P::store_both_across(simd, [first[v], second[v]], target.as_mut_ptr().add(v * lanes));
                    }
                }
                continue;
            }
            for v in 0..first.len() {
                // SAFETY: `target` has `width` elements.
                unsafe { P::store_across(simd, first[v], 0, target.as_mut_ptr().add(v * lanes)) };
            }
        }
    }
}

/// Packs columns of `b` that are contiguous in memory. A block of them at a time is packed along the sum, then transposed.
struct PackTransposed<'a, E, P> {
    b: Matrix<'a, E>,
    columns: Range<usize>,
    packed: &'a mut [E],
    memory: &'a mut [E],
    operand: PhantomData<P>,
}

impl<E: Number, P: Operand<E>> WithSimd for PackTransposed<'_, E, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { b, columns, packed, memory, .. } = self;
        let (width, depth) = (columns.len(), elements::<E, P>(b.rows));
        assert!(memory.len() == depth * WHOLE_VECTORS && packed.len() >= depth * width);
        for first in (0..width).step_by(WHOLE_VECTORS) {
            for (j, row) in memory.chunks_exact_mut(depth).enumerate() {
                let factors = &b.data[(columns.start + first + j) * b.column_stride..][..b.rows];
                PackAlong::<E, P> { factors, packed: row, operand: PhantomData }.with_simd(simd);
            }
            for (l, row) in packed.chunks_exact_mut(width).enumerate().take(depth) {
                let row = &mut row[first..first + WHOLE_VECTORS];
                for j in 0..WHOLE_VECTORS {
                    row[j] = memory[j * depth + l];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        golden::assert_close,
        matmul::{Full, Rounded},
    };

    fn ramp<E: Number>(n: usize, step: f64) -> Vec<E> {
        (0..n).map(|i| E::of((i as f64 * step).sin())).collect()
    }

    /// Shapes on both sides of every threshold: a single row, ragged rows, odd sums, sums of two depths, several panels.
    const SHAPES: [[usize; 3]; 8] =
        [[1, 16, 16], [7, 32, 48], [33, 80, 64], [16, 33, 80], [5, 2064, 32], [70, 4, 144], [9, 48, 5], [17, 32, 85]];

    fn products<E: Number, P: Operand<E>>([m, k, n]: [usize; 3]) -> [Vec<E>; 2] {
        let (a, b) = (ramp::<E>(m * k, 0.7), ramp::<E>(k * n, 1.3));
        let mut memory = [(); 4].map(|()| vec![E::nan(); (m + 16) * (k + n + 16) + k * (n + 16)]);
        let [m0, m1, m2, m3] = &mut memory;
        let panels = Panels::pack::<P>(Matrix::new(&b, k, n), m0, Threads::All);
        let mut c = vec![E::nan(); m * n];
        if k % WHOLE_VECTORS == 0 {
            multiply::<E, P>(Left::rows::<P>(&a, k, m1), panels, &mut c, Start::Zero);
        } else {
            let mut transposed = vec![E::zero(); k * m];
            for (i, a) in a.iter().enumerate() {
                transposed[i % k * m + i / k] = *a;
            }
            Left::with_transposed::<P>(Matrix::new(&transposed, k, m), Threads::All, |left| {
                multiply::<E, P>(left, panels, &mut c, Start::Zero);
            });
        }
        // The right factor as a transpose, and its product added to the first.
        let mut columns = vec![E::zero(); k * n];
        for (i, b) in b.iter().enumerate() {
            columns[i % n * k + i / n] = *b;
        }
        let panels = Panels::pack::<P>(Matrix::new(&columns, n, k).t(), m2, Threads::One);
        let mut twice = c.clone();
        if k % WHOLE_VECTORS == 0 {
            let left = Left::rows::<P>(&a, k, m3);
            let (upper, lower) = twice.split_at_mut(m / 2 * n);
            multiply::<E, P>(left.part(0..m / 2), panels, upper, Start::Target);
            multiply::<E, P>(left.part(m / 2..m), panels, lower, Start::Target);
        }
        [c, twice]
    }

    fn expected<E: Number>([m, k, n]: [usize; 3], factor: impl Fn(E) -> f64) -> Vec<f64> {
        let (a, b) = (ramp::<E>(m * k, 0.7), ramp::<E>(k * n, 1.3));
        let sum = |i: usize, j: usize| (0..k).map(|l| factor(a[i * k + l]) * factor(b[l * n + j])).sum();
        (0..m * n).map(|at| sum(at / n, at % n)).collect()
    }

    fn check<E: Number, P: Operand<E>>(factor: impl Fn(E) -> f64, tolerance: f64) {
        for shape in SHAPES {
            let expected = expected::<E>(shape, &factor);
            let [c, twice] = products::<E, P>(shape);
            let scale = (shape[1] as f64).sqrt();
            let all: Vec<f64> = c.iter().map(|c| c.as_f64()).collect();
            for (c, e) in all.iter().zip(&expected) {
                assert!((c - e).abs() < tolerance * scale, "{shape:?}: {c} instead of {e}");
            }
            if shape[1] % WHOLE_VECTORS == 0 {
                let doubled: Vec<f64> = all.iter().map(|c| 2.0 * c).collect();
                let twice: Vec<f64> = twice.iter().map(|c| c.as_f64()).collect();
                assert_close("added", &twice, &doubled, tolerance * scale);
            }
        }
    }

    #[test]
    fn packed_products_equal_the_triple_loop() {
        check::<f64, Full>(|x| x, 1e-13);
        check::<f32, Full>(f64::from, 1e-6);
        check::<f64, Rounded>(|x| half::bf16::from_f32(x as f32).to_f64(), 1e-13);
        check::<f32, Rounded>(|x| half::bf16::from_f32(x).to_f64(), 1e-6);
    }

    /// Compares the CPU's bf16 instruction with factors rounded one by one: only the sums round differently.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn pairs_of_bf16_equal_rounded_factors() {
        if super::super::unit::v4().is_some() {
            check::<f32, super::super::Pairs>(|x| half::bf16::from_f32(x).to_f64(), 1e-6);
        }
    }

    /// The same for AMX tiles, on any CPU with AVX512-BF16: tile instructions that it lacks are emulated.
    #[test]
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn tiles_of_bf16_equal_rounded_factors() {
        if super::super::unit::v4().is_some() {
            check::<f32, super::super::tiles::emulator::Tiles>(|x| half::bf16::from_f32(x).to_f64(), 1e-6);
        }
    }
}

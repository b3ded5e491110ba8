//! Cuts a batch into parts of whole images and sums the results of the parts in a binary tree.
//!
//! The number of parts depends on the batch size alone, and the tree on the number of parts. So a sum over the batch has the same
//! bits for any number of threads, and the sum over half of the batch is the left or right branch of the tree.

use std::ops::Range;

use rayon::prelude::*;

use super::{number::Number, simd::vectorized};

/// Minimum number of images per part if there is more than one part.
const LEAST_IMAGES: usize = 8;
/// Elements per rayon task when [`add`] uses all threads.
const TASK: usize = 1 << 13;

/// The threads that a computation uses. The result has the same bits either way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone, e.g. inside a rayon task.
    One,
    /// All threads of the current rayon pool.
    All,
}

/// The number of parts of a batch of `images`: the largest power of two that divides it and leaves at least 8 images per part; 1
/// if there is none.
pub fn parts(images: usize) -> usize {
    power(|count| images / count >= LEAST_IMAGES && images.is_multiple_of(count))
}

/// The number of leaves to cut `len` elements into: the largest power of two that leaves at least `least` elements per leaf; 1 if
/// there is none.
pub fn leaves(len: usize, least: usize) -> usize {
    power(|count| len / count >= least)
}

/// The largest power of two such that it and all smaller powers from 2 on satisfy `fits`; 1 if 2 does not.
pub fn power(fits: impl Fn(usize) -> bool) -> usize {
    let powers = std::iter::successors(Some(2usize), |count| count.checked_mul(2));
    powers.take_while(|count| fits(*count)).last().unwrap_or(1)
}

/// The rows of leaf `leaf` if `rows` rows form `parts` equal parts and each part is cut into `within` leaves of about equal
/// length.
pub fn leaf_rows(rows: usize, parts: usize, within: usize, leaf: usize) -> Range<usize> {
    let (part, first, leaf) = (rows / parts, leaf / within * (rows / parts), leaf % within);
    first + part * leaf / within..first + part * (leaf + 1) / within
}

/// Sums the results of `leaf` for 0 .. `count`, a power of two, in a binary tree. Calls `leaf` in order. At most log2 `count`
/// partial sums wait for their right branch at a time.
pub fn tree<T>(count: usize, mut leaf: impl FnMut(usize) -> T, mut add: impl FnMut(T, T) -> T) -> T {
    assert!(count.is_power_of_two());
    let mut waiting = Vec::with_capacity(count.trailing_zeros() as usize + 1);
    for i in 0..count {
        let mut sum = leaf(i);
        // The leaf completes one branch for each trailing one bit of its number.
        for _ in 0..i.trailing_ones() {
            sum = add(waiting.pop().expect("a left branch waits"), sum);
        }
        waiting.push(sum);
    }
    waiting.pop().expect("there is a leaf")
}

/// Sums the `values` of a batch: each of the `parts` equally long parts in order, then the parts' sums in the tree.
pub fn sum<E: Number>(values: &[E], parts: usize) -> E {
    let part = values.len() / parts;
    assert_eq!(part * parts, values.len());
    tree(parts, |i| values[i * part..][..part].iter().copied().fold(E::zero(), |a, b| a + b), |a, b| a + b)
}

/// How threads share the leaves of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Leaves run in parallel, each on one thread.
    Leaves,
    /// Leaves run one after the other, each on all threads.
    Within,
    /// Leaves run one after the other on this thread.
    Alone,
}

/// Adds to `total` the tree's sum of `count` leaves, a power of two. `leaf(i, sum)` writes the values of leaf i to `sum`.
pub fn add_tree<E: Number>(count: usize, total: &mut [E], work: Work, leaf: impl Fn(usize, &mut [E]) + Sync) {
    E::with_scratch(total.len(), |sum| {
        write_tree(count, sum, work, leaf);
        add(total, sum, if work == Work::Alone { Threads::One } else { Threads::All });
    });
}

/// Like [`add_tree`], but overwrites `sum` with the tree's sum instead of adding to it.
pub fn write_tree<E: Number>(count: usize, sum: &mut [E], work: Work, leaf: impl Fn(usize, &mut [E]) + Sync) {
    write_tree_of((0..count).collect(), sum, work, &leaf);
}

/// Like [`write_tree`], but each leaf gets its own item of `items` instead of its number.
pub fn write_tree_of<I: Send, E: Number>(
    mut items: Vec<I>,
    sum: &mut [E],
    work: Work,
    leaf: &(impl Fn(I, &mut [E]) + Sync),
) {
    assert!(items.len().is_power_of_two());
    let right_items = items.split_off(items.len().div_ceil(2));
    if right_items.is_empty() {
        return items.into_iter().for_each(|item| leaf(item, sum));
    }
    E::with_scratch(sum.len(), |right| {
        if work == Work::Leaves {
            rayon::join(|| write_tree_of(items, sum, work, leaf), || write_tree_of(right_items, right, work, leaf));
        } else {
            write_tree_of(items, sum, work, leaf);
            write_tree_of(right_items, right, work, leaf);
        }
        // All threads add only if all threads share each leaf. Otherwise this thread adds alone: the sum that it has just written
        // is still in its cache.
        add(sum, right, if work == Work::Within { Threads::All } else { Threads::One });
    });
}

/// a += b.
pub fn add<E: Number>(a: &mut [E], b: &[E], threads: Threads) {
    let task = |(a, b): (&mut [E], &[E])| {
        vectorized(
            #[inline(always)]
            || a.iter_mut().zip(b).for_each(|(a, b)| *a += *b),
        );
    };
    match threads {
        Threads::One => task((a, b)),
        Threads::All => a.par_chunks_mut(TASK).zip(b.par_chunks(TASK)).for_each(task),
    }
}

/// Cuts the rows of a batch into tiles. No tile crosses the boundary of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    pub parts: usize,
    /// Rows per part.
    pub part: usize,
    /// Maximum number of rows per tile. Only the last tile of a part may have fewer.
    pub tile: usize,
}

impl Tiles {
    /// Cuts `rows` rows in `parts` parts into tiles of `tile` rows.
    ///
    /// # Panics
    /// When the parts do not divide the rows.
    pub fn new(rows: usize, parts: usize, tile: usize) -> Self {
        assert!(rows.is_multiple_of(parts), "{rows} rows of {parts} parts");
        let part = rows / parts;
        Self { parts, part, tile: tile.clamp(1, part.max(1)) }
    }

    /// The same tiles if each row is split into `times` rows.
    pub fn in_rows_of(&self, times: usize) -> Self {
        Self { parts: self.parts, part: self.part * times, tile: self.tile * times }
    }

    /// Number of tiles per part.
    pub fn per_part(&self) -> usize {
        self.part.div_ceil(self.tile)
    }

    /// Number of tiles of all parts.
    pub fn count(&self) -> usize {
        self.parts * self.per_part()
    }

    /// The rows of a tile.
    pub fn rows(&self, tile: usize) -> Range<usize> {
        let (part, tile) = (tile / self.per_part(), tile % self.per_part());
        let first = tile * self.tile;
        part * self.part + first..part * self.part + (first + self.tile).min(self.part)
    }

    /// Splits `values` [rows, row] into one slice per tile.
    pub fn each<'a, T: Sync>(&self, values: &'a [T], row: usize) -> Vec<&'a [T]> {
        values.chunks(self.part * row).flat_map(|part| part.chunks(self.tile * row)).collect()
    }

    /// Splits `values` [rows, row] into one mutable slice per tile.
    pub fn each_mut<'a, T: Send>(&self, values: &'a mut [T], row: usize) -> Vec<&'a mut [T]> {
        values.chunks_mut(self.part * row).flat_map(|part| part.chunks_mut(self.tile * row)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_parts_follows_from_the_batch() {
        let expected =
            [(1, 1), (7, 1), (8, 1), (12, 1), (16, 2), (24, 2), (32, 4), (40, 4), (100, 4), (128, 16), (129, 1)];
        for (images, count) in expected {
            assert_eq!(parts(images), count, "{images}");
        }
        // Half of a batch has half as many parts.
        for images in [16, 48, 96, 4096] {
            assert_eq!(parts(images / 2) * 2, parts(images), "{images}");
        }
        assert_eq!([leaves(1568, 384), leaves(512, 384), leaves(3, 384)], [4, 1, 1]);
    }

    /// Strings instead of numbers show the order of the sums.
    #[test]
    fn the_order_is_that_of_a_binary_tree() {
        let text = tree(8, |i| i.to_string(), |a, b| format!("({a}{b})"));
        assert_eq!(text, "(((01)(23))((45)(67)))");
        assert_eq!(tree(1, |i| i + 5, |_, _| unreachable!("one leaf needs no sum")), 5);
    }

    #[test]
    fn trees_of_slices_have_the_bits_of_a_tree_of_numbers() {
        let value = |i: usize, c: usize| ((i * 37 + c) as f32 * 0.7).sin() * 1e3;
        for count in [1, 2, 8, 32] {
            for work in [Work::Leaves, Work::Within, Work::Alone] {
                let mut total = vec![1.0f32; 50];
                add_tree(count, &mut total, work, |i, sum| {
                    sum.iter_mut().enumerate().for_each(|(c, s)| *s = value(i, c));
                });
                for (c, total) in total.iter().enumerate() {
                    let expected = 1.0 + tree(count, |i| value(i, c), |a, b| a + b);
                    assert_eq!(total.to_bits(), expected.to_bits(), "{count} {c}");
                }
            }
        }
    }

    #[test]
    fn leaves_cover_the_rows_and_none_crosses_a_part() {
        for (rows, parts, within) in [(48, 4, 1), (52, 4, 2), (1568, 1, 4), (96, 2, 8)] {
            let all: Vec<_> = (0..parts * within).map(|leaf| leaf_rows(rows, parts, within, leaf)).collect();
            assert!(all[0].start == 0 && all.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!((1..=parts).all(|part| all[part * within - 1].end == part * rows / parts));
        }
        let tiles = Tiles::new(52, 4, 5);
        let all: Vec<_> = (0..tiles.count()).map(|tile| tiles.rows(tile)).collect();
        assert_eq!(all[..4], [0..5, 5..10, 10..13, 13..18]);
        assert_eq!(tiles.each(&[0; 104], 2).iter().map(|tile| tile.len()).sum::<usize>(), 104);
        assert_eq!(tiles.each(&[0; 104], 2)[2].len(), 6);
    }

    #[test]
    fn a_half_of_the_batch_sums_to_a_branch() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.9).sin() * 1e3).collect();
        let (left, right) = values.split_at(32);
        let whole = sum(&values, parts(64));
        assert_eq!(whole.to_bits(), (sum(left, parts(32)) + sum(right, parts(32))).to_bits());
    }
}

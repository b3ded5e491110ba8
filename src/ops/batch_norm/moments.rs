//! Mean and variance per channel, taken tile by tile, combined in order within a part of the batch and as a tree over its parts.

use pulp::Simd;
use rayon::prelude::*;

use super::{EPS, MOMENTUM, chunk_rows};
use crate::ops::{
    Real,
    parts::{Tiles, tree},
    reductions::{ColumnSums, ColumnTerms, Values, WHOLE_VECTORS},
    simd::dispatch,
    vector::Vector,
};

/// Joins a right branch of the tree over a batch's parts to a left one. Both are flat vectors of equal length: sums per channel,
/// or the number of rows and then means and deviations.
pub type AddBranch = fn(Vec<f64>, Vec<f64>) -> Vec<f64>;

/// Statistics of a batch per channel.
#[derive(Clone, Debug)]
pub struct Moments<E> {
    pub mean: Vec<E>,
    /// Biased variance.
    pub var: Vec<E>,
    /// 1 / sqrt(var + eps).
    pub inv_std: Vec<E>,
    /// Number of rows in the statistics.
    pub rows: usize,
    /// Number of the batch's parts that this process has.
    pub parts: usize,
}

impl<E: Real> Moments<E> {
    /// Statistics of x [rows, channels], the rows of a batch of `parts` parts.
    pub fn of(x: &[E], channels: usize, parts: usize) -> Self {
        let tiles = Tiles::new(x.len() / channels, parts, chunk_rows(channels));
        let mut moments = TileMoments::new();
        moments.reset(tiles, channels);
        tiles.each(x, channels).into_par_iter().zip(moments.par_tiles()).for_each(|(x, mut slot)| slot.of(x));
        moments.combine()
    }

    /// Moves running statistics towards these.
    pub fn update_running(&self, mean: &mut [E], var: &mut [E]) {
        let unbias = self.rows as f64 / (self.rows as f64 - 1.0).max(1.0);
        for c in 0..self.mean.len() {
            mean[c] = E::of((1.0 - MOMENTUM) * mean[c].as_f64() + MOMENTUM * self.mean[c].as_f64());
            var[c] = E::of((1.0 - MOMENTUM) * var[c].as_f64() + MOMENTUM * self.var[c].as_f64() * unbias);
        }
    }
}

/// Mean and summed squared deviation per tile of rows and channel.
///
/// Deviations are from the tile's own mean, so that a large mean costs no precision; tiles and parts are combined in f64
/// (Chan, Golub, LeVeque 1979).
#[derive(Clone, Debug)]
pub struct TileMoments<E> {
    wanted: bool,
    tiles: Tiles,
    channels: usize,
    /// [tiles][2][channels]
    values: Vec<E>,
}

/// The slot of one tile.
pub struct TileSlot<'a, E> {
    mean: &'a mut [E],
    deviation: &'a mut [E],
}

impl<E: Real> TileMoments<E> {
    /// Statistics that are still to be taken.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { wanted: true, tiles: Tiles::new(0, 1, 1), channels: 1, values: Vec::new() }
    }

    /// A stand-in that takes no statistics.
    pub fn none() -> Self {
        Self { wanted: false, ..Self::new() }
    }

    /// Sets the tiles of a batch and resizes the memory for them.
    pub fn reset(&mut self, tiles: Tiles, channels: usize) {
        (self.tiles, self.channels) = (tiles, channels);
        // Without statistics each tile still has its (empty) slot.
        self.values.resize(if self.wanted { tiles.count() * 2 * channels } else { tiles.count() }, E::zero());
    }

    /// The tiles' slots in order.
    pub fn par_tiles(&mut self) -> impl IndexedParallelIterator<Item = TileSlot<'_, E>> {
        let (wanted, channels) = (self.wanted, self.channels);
        self.values.par_chunks_mut(if wanted { 2 * channels } else { 1 }).map(move |slot| {
            let (mean, deviation) = slot.split_at_mut(if wanted { channels } else { 0 });
            TileSlot { mean, deviation }
        })
    }

    /// Statistics of all rows.
    pub fn combine(&self) -> Moments<E> {
        self.combine_with(|own, _| own)
    }

    /// Statistics of a batch whose rows are spread over several processes. `join` gets this process's branch of the tree, and a
    /// function that joins a right branch to a left one. It returns the tree's result over the branches of all processes.
    pub fn combine_with(&self, join: impl FnOnce(Vec<f64>, AddBranch) -> Vec<f64>) -> Moments<E> {
        let (tiles, channels) = (self.tiles, self.channels);
        let of_part = |part: usize| {
            let mut all = Combined { rows: 0.0, mean: vec![0.0; channels], deviation: vec![0.0; channels] };
            for tile in part * tiles.per_part()..(part + 1) * tiles.per_part() {
                let (mean, deviation) = self.values[tile * 2 * channels..][..2 * channels].split_at(channels);
                all.add(tiles.rows(tile).len() as f64, |c| [mean[c].as_f64(), deviation[c].as_f64()]);
            }
            all
        };
        let parts: Vec<Combined> = (0..tiles.parts).into_par_iter().map(of_part).collect();
        let mut parts = parts.into_iter();
        let own = tree(tiles.parts, |_| parts.next().expect("as many as there are"), Combined::joined);
        let add = |left, right| Combined::joined(Combined::from_flat(left), Combined::from_flat(right)).into_flat();
        let Combined { rows, mean, deviation } = Combined::from_flat(join(own.into_flat(), add));
        let var: Vec<f64> = deviation.iter().map(|d| d / rows).collect();
        Moments {
            mean: mean.iter().map(|m| E::of(*m)).collect(),
            inv_std: var.iter().map(|v| E::of(1.0 / (v + EPS).sqrt())).collect(),
            var: var.iter().map(|v| E::of(*v)).collect(),
            rows: rows as usize,
            parts: tiles.parts,
        }
    }
}

/// Statistics of rows seen so far, per channel.
struct Combined {
    rows: f64,
    mean: Vec<f64>,
    /// Summed squared deviation from the mean.
    deviation: Vec<f64>,
}

impl Combined {
    /// The number of rows, the means and the deviations, one after another.
    fn into_flat(self) -> Vec<f64> {
        [vec![self.rows], self.mean, self.deviation].concat()
    }

    fn from_flat(mut flat: Vec<f64>) -> Self {
        let deviation = flat.split_off(1 + flat.len() / 2);
        let mean = flat.split_off(1);
        Self { rows: flat[0], mean, deviation }
    }

    fn joined(mut self, right: Self) -> Self {
        self.add(right.rows, |c| [right.mean[c], right.deviation[c]]);
        self
    }

    /// Adds `rows` rows. `of` returns their mean and summed squared deviation for a channel.
    fn add(&mut self, rows: f64, of: impl Fn(usize) -> [f64; 2]) {
        let (seen, total) = (self.rows, self.rows + rows);
        let (share, weight) = (rows / total, seen * rows / total);
        for (c, (mean, deviation)) in self.mean.iter_mut().zip(&mut self.deviation).enumerate() {
            let [more, spread] = of(c);
            let delta = more - *mean;
            *mean += delta * share;
            *deviation += spread + delta * delta * weight;
        }
        self.rows = total;
    }
}

impl<E: Real> TileSlot<'_, E> {
    /// Takes the statistics of one tile.
    pub fn of(&mut self, x: &[E]) {
        let channels = self.mean.len();
        if channels == 0 {
            return;
        }
        let rows = x.len() / channels;
        let (mean, deviation) = (&mut self.mean[..channels], &mut self.deviation[..channels]);
        if channels.is_multiple_of(WHOLE_VECTORS) {
            dispatch(ColumnSums { terms: Values { x }, rows, sums: [mean] });
            mean.iter_mut().for_each(|m| *m /= E::of(rows as f64));
            dispatch(ColumnSums { terms: SquaredDeviations { x, mean }, rows, sums: [deviation] });
            return;
        }
        mean.fill(E::zero());
        deviation.fill(E::zero());
        for x in x.chunks_exact(channels) {
            for c in 0..channels {
                mean[c] += x[c];
            }
        }
        mean.iter_mut().for_each(|m| *m /= E::of(rows as f64));
        for x in x.chunks_exact(channels) {
            for c in 0..channels {
                let d = x[c] - mean[c];
                deviation[c] += d * d;
            }
        }
    }
}

/// (x - mean)^2
struct SquaredDeviations<'a, E> {
    x: &'a [E],
    mean: &'a [E],
}

impl<E: Real> ColumnTerms<E, 1> for SquaredDeviations<'_, E> {
    #[inline(always)]
    fn terms<S: Simd>(&self, simd: S, at: usize, column: usize) -> [Vector<E, S>; 1] {
        let d = Vector::<E, S>::new(simd, E::vectors::<S>(self.x)[at])
            - Vector::new(simd, E::vectors::<S>(self.mean)[column]);
        [d * d]
    }
}

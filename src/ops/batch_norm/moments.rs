//! Mean and variance per channel, taken tile by tile and combined in a fixed order.

use pulp::Simd;
use rayon::prelude::*;

use super::{EPS, MOMENTUM, chunk_rows};
use crate::ops::{
    Real,
    columns::{ColumnSums, ColumnTerms, WHOLE_VECTORS},
    lanes::Vector,
    simd::dispatch,
};

/// Statistics of a batch per channel.
#[derive(Clone, Debug)]
pub struct Moments<E> {
    pub mean: Vec<E>,
    /// Biased variance.
    pub var: Vec<E>,
    /// 1 / sqrt(var + eps).
    pub inv_std: Vec<E>,
    /// Number of rows.
    pub rows: usize,
}

impl<E: Real> Moments<E> {
    /// Statistics of x [rows, channels].
    pub fn of(x: &[E], channels: usize) -> Self {
        let (rows, mut tiles) = (chunk_rows(channels), TileMoments::new());
        tiles.reset(x.len() / channels, rows, channels);
        x.par_chunks(rows * channels).zip(tiles.par_tiles()).for_each(|(x, mut slot)| slot.of(x));
        tiles.combine()
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
/// Deviations are from the tile's own mean, so that a large mean costs no precision; tiles are combined in f64
/// (Chan, Golub, LeVeque 1979).
#[derive(Clone, Debug)]
pub struct TileMoments<E> {
    wanted: bool,
    rows: usize,
    tile_rows: usize,
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
    /// To be filled.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { wanted: true, rows: 0, tile_rows: 1, channels: 1, values: Vec::new() }
    }

    /// A stand-in that takes no statistics.
    pub fn none() -> Self {
        Self { wanted: false, ..Self::new() }
    }

    /// Makes room for `rows` rows in tiles of `tile_rows`.
    pub fn reset(&mut self, rows: usize, tile_rows: usize, channels: usize) {
        (self.rows, self.tile_rows, self.channels) = (rows, tile_rows, channels);
        // Without statistics each tile still has its (empty) slot.
        let tiles = rows.div_ceil(tile_rows);
        self.values.resize(if self.wanted { tiles * 2 * channels } else { tiles }, E::zero());
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
        let (mut mean, mut deviation) = (vec![0.0f64; self.channels], vec![0.0f64; self.channels]);
        let mut seen = 0.0;
        for (i, tile) in self.values.chunks_exact(2 * self.channels).enumerate() {
            let rows = (self.rows - i * self.tile_rows).min(self.tile_rows) as f64;
            let total = seen + rows;
            for c in 0..self.channels {
                let delta = tile[c].as_f64() - mean[c];
                mean[c] += delta * rows / total;
                deviation[c] += tile[self.channels + c].as_f64() + delta * delta * seen * rows / total;
            }
            seen = total;
        }
        let var: Vec<f64> = deviation.iter().map(|d| d / seen).collect();
        Moments {
            mean: mean.iter().map(|m| E::of(*m)).collect(),
            inv_std: var.iter().map(|v| E::of(1.0 / (v + EPS).sqrt())).collect(),
            var: var.iter().map(|v| E::of(*v)).collect(),
            rows: self.rows,
        }
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

/// x
struct Values<'a, E> {
    x: &'a [E],
}

impl<E: Real> ColumnTerms<E, 1> for Values<'_, E> {
    #[inline(always)]
    fn terms<S: Simd>(&self, simd: S, at: usize, _: usize) -> [Vector<E, S>; 1] {
        [Vector::new(simd, E::vectors::<S>(self.x)[at])]
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

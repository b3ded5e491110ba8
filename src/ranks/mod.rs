//! Processes that train together, called ranks, and what they tell each other.
//!
//! Each rank computes its share of a batch: as many images as the others, which are whole parts of it
//! (see [`parts`](crate::ops::parts)). What is summed over a batch is a binary tree over its parts. A rank's share is a branch of that
//! tree, and what joins the branches is the same tree's top. So a result has the same bits with any number of ranks.

#[cfg(test)]
pub mod threads;

use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytemuck::Pod;

use crate::ops::{
    Number,
    parts::{self, Threads},
};

/// How ranks exchange bytes. All ranks call the same in the same order. If one of them is gone, the process ends.
pub trait Transport: Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// What all ranks have, one behind the other in their order. All have as many bytes.
    fn all_gather(&self, own: &[u8], all: &mut [u8]);

    /// `send` is cut into a piece for each rank, in their order. So is `receive`: piece r is what rank r sent to this one.
    fn all_to_all(&self, send: &[u8], receive: &mut [u8]);

    /// Gives all ranks what the first one has. This may take hours, in which the others use no processor.
    fn from_first(&self, bytes: Vec<u8>) -> Vec<u8>;
}

/// The ranks that train together; by default this process alone.
#[derive(Clone, Default)]
pub struct Ranks(Option<Arc<dyn Transport>>);

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

static CHOSEN: OnceLock<Ranks> = OnceLock::new();

impl Ranks {
    /// Ranks that talk through `transport`.
    pub fn over(transport: impl Transport + 'static) -> Self {
        Self(Some(Arc::new(transport)))
    }

    /// Makes them the process's.
    pub fn choose(self) {
        let _ = CHOSEN.set(self);
    }

    /// The process's ranks.
    pub fn chosen() -> Self {
        CHOSEN.get().cloned().unwrap_or_default()
    }

    /// The number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |transport| transport.rank())
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |transport| transport.size())
    }

    /// Whether there is no other rank.
    pub fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Whether this is the rank that writes files and talks to the user.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// This rank's share of `rows` rows.
    ///
    /// # Panics
    /// When they cannot be shared out evenly.
    pub fn share(&self, rows: usize) -> Range<usize> {
        let (rank, size) = (self.rank(), self.size());
        assert!(rows.is_multiple_of(size), "{rows} rows for {size} ranks");
        rank * (rows / size)..(rank + 1) * (rows / size)
    }

    /// What all ranks have, one behind the other in their order. All have as many values.
    pub fn gather<T: Pod>(&self, own: &[T]) -> Vec<T> {
        let Some(transport) = &self.0 else { return own.to_vec() };
        let mut all = vec![T::zeroed(); own.len() * transport.size()];
        transport.all_gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut all));
        all
    }

    /// The sum of all ranks' `values`, in their place: the top of the tree. Each rank adds up a piece of them.
    pub fn sum<E: Number>(&self, values: &mut [E]) {
        let Some(transport) = &self.0 else { return };
        let size = transport.size();
        let piece = values.len().div_ceil(size);
        let mut send = vec![E::zero(); piece * size];
        send[..values.len()].copy_from_slice(values);
        let mut received = vec![E::zero(); piece * size];
        transport.all_to_all(bytemuck::cast_slice(&send), bytemuck::cast_slice_mut(&mut received));
        // Branch r of each value of this rank's piece is at r * piece.
        let mut step = piece;
        while step < received.len() {
            for pair in received.chunks_mut(2 * step) {
                let (left, right) = pair.split_at_mut(step);
                parts::add(&mut left[..piece], &right[..piece], Threads::All);
            }
            step *= 2;
        }
        transport.all_gather(bytemuck::cast_slice(&received[..piece]), bytemuck::cast_slice_mut(&mut send));
        values.copy_from_slice(&send[..values.len()]);
    }

    /// The tree's sum of the f64 that each rank has, value by value, as `add` adds a right branch to a left one.
    pub fn join(&self, own: Vec<f64>, add: impl FnMut(Vec<f64>, Vec<f64>) -> Vec<f64>) -> Vec<f64> {
        if self.is_alone() {
            return own;
        }
        let all = self.gather(&own);
        parts::tree(self.size(), |rank| all[rank * own.len()..][..own.len()].to_vec(), add)
    }

    /// Gives all ranks what the first one has. The others wait for it as long as it takes.
    pub fn from_first(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.0 {
            Some(transport) => transport.from_first(bytes),
            None => bytes,
        }
    }

    /// Whether `is` holds on any rank.
    pub fn any(&self, is: bool) -> bool {
        !self.is_alone() && self.gather(&[u8::from(is)]).contains(&1) || is
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_have_the_bits_of_the_tree_whatever_the_number_of_ranks() {
        let value = |part: usize, i: usize| ((part * 31 + i) as f32 * 0.7).sin() * 1e3;
        for len in [1, 7, 64, 1001] {
            let whole: Vec<f32> = (0..len).map(|i| parts::tree(8, |part| value(part, i), |a, b| a + b)).collect();
            for size in [1, 2, 4, 8] {
                let sums = threads::run(size, |ranks| {
                    let of = ranks.share(8);
                    let branch = |i: usize| parts::tree(of.len(), |part| value(of.start + part, i), |a, b| a + b);
                    let mut own: Vec<f32> = (0..len).map(branch).collect();
                    ranks.sum(&mut own);
                    own
                });
                assert!(sums.iter().all(|sum| *sum == whole), "{size} ranks, {len} values");
            }
        }
    }

    #[test]
    fn what_ranks_have_comes_in_their_order() {
        let all = threads::run(4, |ranks| {
            let told = ranks.from_first(if ranks.is_first() { vec![7, 8] } else { Vec::new() });
            (ranks.gather(&[ranks.rank() as u32, 10]), told, ranks.any(ranks.rank() == 2), ranks.any(false))
        });
        assert!(all.iter().all(|got| *got == (vec![0, 10, 1, 10, 2, 10, 3, 10], vec![7, 8], true, false)));
        assert_eq!(format!("{:?}", Ranks::default()), "rank 0 of 1");
        assert_eq!((Ranks::default().gather(&[5u8]), Ranks::default().share(12)), (vec![5], 0..12));
    }
}

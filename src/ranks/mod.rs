//! Ranks: processes that train together, and exchange values.
//!
//! Each rank computes an equal share of a batch, which is a whole number of the batch's [`parts`](crate::ops::parts). Sums over a
//! batch are added up in the order of a binary tree over its parts. A rank's share is one branch of that tree, and the ranks join
//! their branches in the order of the tree's top. So a result has the same bits with any number of ranks.

pub mod launcher;
#[cfg(feature = "mpi")]
mod mpi;
mod tcp;
#[cfg(test)]
pub mod threads;
mod watched;

pub use launcher::{LaunchError, Place};
pub use watched::Watched;

use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytemuck::Pod;

use crate::ops::{
    Number,
    parts::{self, Threads},
};

/// Bytes of a sum that the ranks exchange at a time: few enough to be added up in the processor's cache.
const AT_ONCE: usize = 1 << 22;

/// The exchange of bytes between ranks. All ranks make the same calls in the same order. If another rank is gone, the process
/// ends.
pub trait Transport: Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Fills `all` with the bytes of all ranks, in the order of ranks. `own` has the same length on all ranks.
    fn all_gather(&self, own: &[u8], all: &mut [u8]);

    /// Cuts `send` into one equal piece per rank, and sends piece r to rank r. Piece r of `receive` becomes the one that rank r
    /// sent to this rank. Pieces should be small: megabytes, not gigabytes.
    fn all_to_all(&self, send: &[u8], receive: &mut [u8]);

    /// Returns the first rank's bytes on all ranks. The other ranks may wait for hours, and use no processor while they wait.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Ends the exchange with the other ranks. All ranks call it, and none makes another call afterwards.
    fn end(&self);

    /// Ends all ranks now, with this exit code.
    fn abort(&self, code: u8) -> !;
}

/// Why ranks cannot train together: they differ, or cannot share a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error(
        "the ranks differ in {what}: {groups}\n  help: all ranks need the same program, spec and kind of processor"
    )]
    Differ { what: &'static str, groups: String },
    #[error(
        "{size} ranks cannot share batches of {batch} images, which are {parts} parts\n  \
         help: start {allowed} ranks (powers of two that divide the number of parts)"
    )]
    Batch { size: usize, batch: usize, parts: usize, allowed: String },
}

/// Connects this process to the other ranks; None if the process is alone. `limit` is the longest time that a rank may wait for
/// another.
///
/// # Errors
/// When the launcher's variables are incomplete or invalid, when this build cannot communicate with the other ranks, or when the
/// ranks do not reach each other.
pub fn open(limit: Duration) -> Result<Option<Ranks>, LaunchError> {
    let Some(place) = launcher::place_here()? else { return Ok(None) };
    connect(&place, limit).map(Some)
}

/// Connects over MPI if this build has MPI and the launcher is not torchrun; else by TCP.
fn connect(place: &Place, limit: Duration) -> Result<Ranks, LaunchError> {
    let Place { launcher, size, .. } = *place;
    #[cfg(feature = "mpi")]
    if launcher != launcher::TORCHRUN {
        return match mpi::Mpi::start() {
            Some(mpi) if mpi.size() == size => Ok(Ranks::over(Watched::new(mpi, limit))),
            Some(mpi) => Err(LaunchError::OtherMpi { launcher, size, found: mpi.size() }),
            None => Err(LaunchError::OneThread { launcher, size }),
        };
    }
    match launcher::master_here(place)? {
        Some(master) => Ok(Ranks::over(Watched::new(tcp::Tcp::start(place, &master, limit)?, limit))),
        None => Err(LaunchError::NoMpi { launcher, size }),
    }
}

/// The help text of errors about a rank that is gone or has stopped.
const GO_ON: &str = "the same command, with any number of ranks, goes on from the last checkpoint";

/// Ends this process at once, without running its exit handlers: MPI's handler would wait for other ranks.
fn leave(code: u8) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code.into()) }
}

/// The ranks that train together. The default is this process alone.
#[derive(Clone, Default)]
pub struct Ranks {
    transport: Option<Arc<dyn Transport>>,
    /// Number of groups of neighbouring ranks. Each group [joins](Ranks::join) its values separately. 0 means a single group.
    groups: usize,
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

static CHOSEN: OnceLock<Ranks> = OnceLock::new();

impl Ranks {
    /// Ranks that communicate through `transport`.
    pub fn over(transport: impl Transport + 'static) -> Self {
        Self { transport: Some(Arc::new(transport)), groups: 0 }
    }

    /// Makes these ranks those of the process. Only the first call has an effect.
    pub fn choose(self) {
        let _ = CHOSEN.set(self);
    }

    /// The process's ranks.
    pub fn chosen() -> Self {
        CHOSEN.get().cloned().unwrap_or_default()
    }

    /// The number of this rank, from 0.
    pub fn rank(&self) -> usize {
        self.transport.as_ref().map_or(0, |transport| transport.rank())
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.transport.as_ref().map_or(1, |transport| transport.size())
    }

    /// Ends the exchange with the other ranks. All ranks call it, and exchange nothing afterwards.
    pub fn end(&self) {
        if let Some(transport) = &self.transport {
            transport.end();
        }
    }

    /// Ends all ranks now, with this exit code.
    pub fn abort(&self, code: u8) -> ! {
        match &self.transport {
            Some(transport) => transport.abort(code),
            None => std::process::exit(code.into()),
        }
    }

    /// Checks that all ranks pass the same `on`: pairs of a name and the hash of a value. Hashes of one name have the same length
    /// on all ranks.
    ///
    /// # Errors
    /// The first name whose hashes differ, and the groups of ranks that have the same hash. All ranks return the same error.
    pub fn agree(&self, on: &[(&'static str, String)]) -> Result<(), Mismatch> {
        for (what, hash) in on {
            let all = self.gather(hash.as_bytes());
            let all: Vec<&[u8]> = all.chunks(hash.len()).collect();
            let mut kinds: Vec<&[u8]> = Vec::new();
            all.iter().for_each(|hash| {
                if !kinds.contains(hash) {
                    kinds.push(hash);
                }
            });
            if kinds.len() > 1 {
                let ranks = |kind: &&[u8]| {
                    let ranks = (0..all.len()).filter(|rank| all[*rank] == *kind).map(|rank| rank.to_string());
                    format!("ranks {}", ranks.collect::<Vec<_>>().join(", "))
                };
                let groups = kinds.iter().map(ranks).collect::<Vec<_>>().join(" | ");
                return Err(Mismatch::Differ { what, groups });
            }
        }
        Ok(())
    }

    /// Checks that the ranks can share batches of `batch` images, so that each rank gets the same number of whole parts.
    ///
    /// # Errors
    /// When the number of parts is not a multiple of the number of ranks.
    pub fn fit(&self, batch: usize) -> Result<(), Mismatch> {
        let (size, parts) = (self.size(), parts::parts(batch));
        if parts.is_multiple_of(size) {
            return Ok(());
        }
        let allowed: Vec<String> = (0..=parts.ilog2()).map(|power| (1usize << power).to_string()).collect();
        Err(Mismatch::Batch { size, batch, parts, allowed: allowed.join(" or ") })
    }

    /// Whether this process is the only rank.
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
    /// When `rows` is not a multiple of the number of ranks.
    pub fn share(&self, rows: usize) -> Range<usize> {
        let (rank, size) = (self.rank(), self.size());
        assert!(rows.is_multiple_of(size), "{rows} rows for {size} ranks");
        rank * (rows / size)..(rank + 1) * (rows / size)
    }

    /// The values of all ranks, in the order of ranks. `own` has the same length on all ranks.
    pub fn gather<T: Pod>(&self, own: &[T]) -> Vec<T> {
        let Some(transport) = &self.transport else { return own.to_vec() };
        let mut all = vec![T::zeroed(); own.len() * transport.size()];
        transport.all_gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut all));
        all
    }

    /// Cuts `send` into one equal piece per rank, and sends piece r to rank r. Piece r of the result is the one that rank r sent
    /// to this rank.
    pub fn exchange<T: Pod>(&self, send: &[T]) -> Vec<T> {
        let Some(transport) = &self.transport else { return send.to_vec() };
        let mut received = vec![T::zeroed(); send.len()];
        transport.all_to_all(bytemuck::cast_slice(send), bytemuck::cast_slice_mut(&mut received));
        received
    }

    /// Replaces `values` by their sum over all ranks, in the order of the tree's top. Each rank adds up one piece of the values.
    pub fn sum<E: Number>(&self, values: &mut [E]) {
        let Some(transport) = &self.transport else { return };
        let size = transport.size();
        let (even, rest) = values.split_at_mut(values.len() / size * size);
        let mut branches = vec![E::zero(); even.len().min(AT_ONCE / size_of::<E>() / size * size)];
        for values in even.chunks_mut(branches.len().max(1)) {
            let branches = &mut branches[..values.len()];
            transport.all_to_all(bytemuck::cast_slice(values), bytemuck::cast_slice_mut(branches));
            let sum = add_branches(branches, size);
            transport.all_gather(bytemuck::cast_slice(sum), bytemuck::cast_slice_mut(values));
        }
        if !rest.is_empty() {
            rest.copy_from_slice(add_branches(&mut self.gather(rest), size));
        }
    }

    /// The same ranks in `groups` equal groups of neighbours, but in at most one group per rank.
    pub fn in_groups(&self, groups: usize) -> Self {
        Self { groups: groups.min(self.size()), ..self.clone() }
    }

    /// The number of ranks in a group.
    fn group_size(&self) -> usize {
        self.size() / self.groups.max(1)
    }

    /// The ranks of this rank's group.
    pub fn group(&self) -> Range<usize> {
        let size = self.group_size();
        let first = self.rank() / size * size;
        first..first + size
    }

    /// Whether this is the first rank of its group. A value that a group has computed together is counted by its first rank only.
    pub fn is_first_of_group(&self) -> bool {
        self.rank().is_multiple_of(self.group_size())
    }

    /// Combines the vectors `own` of this group's ranks in the order of the tree. `add(left, right)` combines two branches.
    pub fn join(&self, own: Vec<f64>, add: impl FnMut(Vec<f64>, Vec<f64>) -> Vec<f64>) -> Vec<f64> {
        let group = self.group();
        if group.len() == 1 {
            return own;
        }
        let all = self.gather(&own);
        parts::tree(group.len(), |rank| all[(group.start + rank) * own.len()..][..own.len()].to_vec(), add)
    }

    /// Returns the first rank's bytes on all ranks. The other ranks wait for it without a limit.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.transport {
            Some(transport) => transport.broadcast(bytes),
            None => bytes,
        }
    }

    /// For each of these conditions, whether it holds on any rank.
    pub fn any<const N: usize>(&self, hold: [bool; N]) -> [bool; N] {
        let all = self.gather(&hold.map(u8::from));
        std::array::from_fn(|i| all.iter().skip(i).step_by(N).any(|holds| *holds == 1))
    }
}

/// Adds up `size` equally long branches, stored one after the other, in the order of the tree. The sum replaces the first branch.
fn add_branches<E: Number>(branches: &mut [E], size: usize) -> &[E] {
    let len = branches.len() / size;
    let mut step = len;
    while step < branches.len() {
        for pair in branches.chunks_mut(2 * step) {
            let (left, right) = pair.split_at_mut(step);
            parts::add(&mut left[..len], &right[..len], Threads::All);
        }
        step *= 2;
    }
    &branches[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_have_the_bits_of_the_tree_whatever_the_number_of_ranks() {
        let value = |part: usize, i: usize| ((part * 31 + i) as f32 * 0.7).sin() * 1e3;
        for len in [1, 7, 64, 1001, AT_ONCE / 4 + 9] {
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
            let told = ranks.broadcast(if ranks.is_first() { vec![7, 8] } else { Vec::new() });
            (ranks.gather(&[ranks.rank() as u32, 10]), told, ranks.any([ranks.rank() == 2, false]))
        });
        assert!(all.iter().all(|got| *got == (vec![0, 10, 1, 10, 2, 10, 3, 10], vec![7, 8], [true, false])));
        let alike =
            threads::run(2, |ranks| ranks.agree(&[("program", "1".into()), ("spec", ranks.rank().to_string())]));
        let differ = Mismatch::Differ { what: "spec", groups: "ranks 0 | ranks 1".into() };
        assert_eq!(alike, [Err(differ.clone()), Err(differ)]);
        let fit = threads::run(4, |ranks| (ranks.fit(64), ranks.fit(24).map_err(|error| error.to_string())));
        let text = "4 ranks cannot share batches of 24 images, which are 2 parts\n  \
                    help: start 1 or 2 ranks (powers of two that divide the number of parts)";
        assert!(fit.iter().all(|fit| *fit == (Ok(()), Err(text.to_owned()))), "{fit:?}");
        assert_eq!(format!("{:?}", Ranks::default()), "rank 0 of 1");
        assert_eq!((Ranks::default().gather(&[5u8]), Ranks::default().share(12)), (vec![5], 0..12));
    }
}

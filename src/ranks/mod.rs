//! Processes that train together, called ranks, and what they tell each other.
//!
//! Each rank computes its share of a batch: as many images as the others, which are whole parts of it
//! (see [`parts`](crate::ops::parts)). What is summed over a batch is a binary tree over its parts. A rank's share is a branch of that
//! tree, and what joins the branches is the same tree's top. So a result has the same bits with any number of ranks.

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

/// Bytes of a sum that go from each rank to the others at once: few enough that they are added in the processor's cache.
const AT_ONCE: usize = 1 << 22;

/// How ranks exchange bytes. All ranks call the same in the same order. If one of them is gone, the process ends.
pub trait Transport: Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// What all ranks have, one behind the other in their order. All have as many bytes.
    fn all_gather(&self, own: &[u8], all: &mut [u8]);

    /// `send` is cut into a piece for each rank, in their order. So is `receive`: piece r is what rank r sent to this one. For
    /// small pieces: megabytes, not gigabytes.
    fn all_to_all(&self, send: &[u8], receive: &mut [u8]);

    /// Gives all ranks what the first one has. This may take hours, in which the others use no processor.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Takes leave of the other ranks, which all do. No call may follow.
    fn end(&self);

    /// Ends all ranks now, with this exit code.
    fn abort(&self, code: u8) -> !;
}

/// Where ranks do not fit together or their batches.
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

/// Starts what the ranks talk through; `limit` is how long one may wait for another. None where this process is alone.
///
/// # Errors
/// When the environment is incomplete, or this build has no way to talk to the others.
pub fn open(limit: Duration) -> Result<Option<Ranks>, LaunchError> {
    let Some(place) = launcher::place_here()? else { return Ok(None) };
    connect(&place, limit).map(Some)
}

/// Over MPI where a launcher of MPI has started the ranks and this build has it; else by TCP.
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

/// The help in errors about a rank that is gone.
const GO_ON: &str = "the same command, with any number of ranks, goes on from the last checkpoint";

/// Ends this process at once, without handlers of its exit: MPI's would wait for other ranks.
fn leave(code: u8) -> ! {
    // SAFETY: the call has no conditions.
    unsafe { libc::_exit(code.into()) }
}

/// The ranks that train together; by default this process alone.
#[derive(Clone, Default)]
pub struct Ranks {
    transport: Option<Arc<dyn Transport>>,
    /// Groups of neighbouring ranks, each of which [joins](Ranks::join) by itself; 0 is one of all.
    groups: usize,
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

static CHOSEN: OnceLock<Ranks> = OnceLock::new();

impl Ranks {
    /// Ranks that talk through `transport`.
    pub fn over(transport: impl Transport + 'static) -> Self {
        Self { transport: Some(Arc::new(transport)), groups: 0 }
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
        self.transport.as_ref().map_or(0, |transport| transport.rank())
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.transport.as_ref().map_or(1, |transport| transport.size())
    }

    /// Takes leave of the other ranks, which all do; nothing may be exchanged afterwards.
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

    /// Compares what all ranks should have alike, by name and hash. All hashes are as long.
    ///
    /// # Errors
    /// On all ranks alike: the first thing in which they differ, and which ranks have the same of it.
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

    /// Whether the ranks can share batches of so many images: each gets whole parts, as many as the others.
    ///
    /// # Errors
    /// When they cannot.
    pub fn fit(&self, batch: usize) -> Result<(), Mismatch> {
        let (size, parts) = (self.size(), parts::parts(batch));
        if parts.is_multiple_of(size) {
            return Ok(());
        }
        let allowed: Vec<String> = (0..=parts.ilog2()).map(|power| (1usize << power).to_string()).collect();
        Err(Mismatch::Batch { size, batch, parts, allowed: allowed.join(" or ") })
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
        let Some(transport) = &self.transport else { return own.to_vec() };
        let mut all = vec![T::zeroed(); own.len() * transport.size()];
        transport.all_gather(bytemuck::cast_slice(own), bytemuck::cast_slice_mut(&mut all));
        all
    }

    /// `send` is cut into a piece for each rank, in their order. So is what comes back: piece r is what rank r sent to this one.
    pub fn exchange<T: Pod>(&self, send: &[T]) -> Vec<T> {
        let Some(transport) = &self.transport else { return send.to_vec() };
        let mut received = vec![T::zeroed(); send.len()];
        transport.all_to_all(bytemuck::cast_slice(send), bytemuck::cast_slice_mut(&mut received));
        received
    }

    /// The sum of all ranks' `values`, in their place: the top of the tree. Each rank adds up a piece of them.
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

    /// The same ranks in `groups` of neighbours, as many in each; at most as many groups as ranks.
    pub fn in_groups(&self, groups: usize) -> Self {
        Self { groups: groups.min(self.size()), ..self.clone() }
    }

    /// How many ranks a group has.
    fn group_size(&self) -> usize {
        self.size() / self.groups.max(1)
    }

    /// The ranks of this one's group.
    pub fn group(&self) -> Range<usize> {
        let size = self.group_size();
        let first = self.rank() / size * size;
        first..first + size
    }

    /// Whether this is the first rank of its group: what the group has together it counts alone.
    pub fn is_first_of_group(&self) -> bool {
        self.rank().is_multiple_of(self.group_size())
    }

    /// The tree's sum of the f64 that each rank of this group has, value by value, as `add` adds a right branch to a left one.
    pub fn join(&self, own: Vec<f64>, add: impl FnMut(Vec<f64>, Vec<f64>) -> Vec<f64>) -> Vec<f64> {
        let group = self.group();
        if group.len() == 1 {
            return own;
        }
        let all = self.gather(&own);
        parts::tree(group.len(), |rank| all[(group.start + rank) * own.len()..][..own.len()].to_vec(), add)
    }

    /// Gives all ranks what the first one has. The others wait for it as long as it takes.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.transport {
            Some(transport) => transport.broadcast(bytes),
            None => bytes,
        }
    }

    /// Which of these hold on any rank.
    pub fn any<const N: usize>(&self, hold: [bool; N]) -> [bool; N] {
        let all = self.gather(&hold.map(u8::from));
        std::array::from_fn(|i| all.iter().skip(i).step_by(N).any(|holds| *holds == 1))
    }
}

/// What `size` branches, one behind the other, come to in the tree: it takes the place of the first.
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

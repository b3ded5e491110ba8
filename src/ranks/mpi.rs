//! Ranks that communicate through MPI, by the MPI library that the program was built with.

use std::{
    ffi::c_int,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use mpi::{
    Threading,
    environment::{Universe, initialize_with_threading},
    request::scope,
    topology::SimpleCommunicator,
    traits::{Communicator, CommunicatorCollectives, Root},
};

use super::Transport;

/// Most bytes of one rank in one call of a gather or broadcast: MPI counts in 32 bits.
const PIECE: usize = 1 << 26;
/// Time between two checks whether a broadcast has finished.
const PAUSE: Duration = Duration::from_millis(5);

/// The processes that MPI started, as ranks.
pub struct Mpi {
    rank: usize,
    size: usize,
    /// None after [`Transport::end`].
    world: Mutex<Option<World>>,
}

struct World {
    all: SimpleCommunicator,
    /// Ends MPI when it is dropped, after `all`.
    _universe: Universe,
}

// SAFETY: `Mpi::start` returns a `World` only if MPI supports `Threading::Serialized`, which allows calls from any thread, one at
// a time. All calls go through the lock of `Mpi::world`, so there is one at a time.
unsafe impl Send for World {}

impl Mpi {
    /// Starts MPI. None if this process has started it before, or if the library requires all calls from one thread.
    pub fn start() -> Option<Self> {
        let (universe, threading) = initialize_with_threading(Threading::Serialized)?;
        let all = universe.world();
        let (rank, size) = (all.rank() as usize, all.size() as usize);
        let world = Mutex::new(Some(World { all, _universe: universe }));
        (threading >= Threading::Serialized).then_some(Self { rank, size, world })
    }

    fn world(&self) -> MutexGuard<'_, Option<World>> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, call: impl FnOnce(&SimpleCommunicator) -> R) -> R {
        call(&self.world().as_ref().expect("MPI has not ended").all)
    }

    /// Broadcasts `bytes` of the first rank to all ranks. Sleeps while it waits.
    fn patiently(&self, all: &SimpleCommunicator, bytes: &mut [u8]) {
        scope(|scope| {
            let mut request = all.process_at_rank(0).immediate_broadcast_into(scope, bytes);
            while let Err(unfinished) = request.test() {
                request = unfinished;
                thread::sleep(PAUSE);
            }
        });
    }
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) {
        self.with(|world| {
            if own.len() <= PIECE {
                return world.all_gather_into(own, all);
            }
            let mut pieces = vec![0; PIECE * self.size];
            for (i, own_piece) in own.chunks(PIECE).enumerate() {
                let pieces = &mut pieces[..own_piece.len() * self.size];
                world.all_gather_into(own_piece, pieces);
                for (rank, piece) in pieces.chunks(own_piece.len()).enumerate() {
                    all[rank * own.len() + i * PIECE..][..piece.len()].copy_from_slice(piece);
                }
            }
        });
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) {
        self.with(|world| world.all_to_all_into(send, receive));
    }

    fn broadcast(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        self.with(|world| {
            let mut len = (bytes.len() as u64).to_le_bytes();
            self.patiently(world, &mut len);
            bytes.resize(u64::from_le_bytes(len) as usize, 0);
            bytes.chunks_mut(PIECE).for_each(|piece| self.patiently(world, piece));
        });
        bytes
    }

    fn end(&self) {
        drop(self.world().take());
    }

    fn abort(&self, code: u8) -> ! {
        self.with(|world| world.abort(c_int::from(code)))
    }
}

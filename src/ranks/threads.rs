//! Ranks that are threads of one process, for tests.

use std::{
    sync::{Arc, Barrier, Mutex},
    thread,
};

use super::{Ranks, Transport};

/// One slot per rank for the bytes that it offers to the others, and a barrier at which the ranks wait for each other.
struct Table {
    slots: Vec<Mutex<Vec<u8>>>,
    barrier: Barrier,
}

struct Seat {
    rank: usize,
    table: Arc<Table>,
}

impl Seat {
    /// Offers `own` to the other ranks, and calls `read` with each rank and the bytes that it offers.
    fn exchange(&self, own: &[u8], mut read: impl FnMut(usize, &[u8])) {
        *self.table.slots[self.rank].lock().unwrap() = own.to_vec();
        self.table.barrier.wait();
        self.table.slots.iter().enumerate().for_each(|(rank, slot)| read(rank, &slot.lock().unwrap()));
        self.table.barrier.wait();
    }
}

impl Transport for Seat {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.table.slots.len()
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) {
        self.exchange(own, |rank, bytes| all[rank * own.len()..][..own.len()].copy_from_slice(bytes));
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) {
        let piece = send.len() / self.size();
        self.exchange(send, |rank, bytes| {
            receive[rank * piece..][..piece].copy_from_slice(&bytes[self.rank * piece..][..piece]);
        });
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let mut first = Vec::new();
        self.exchange(&bytes, |rank, bytes| {
            if rank == 0 {
                first = bytes.to_vec();
            }
        });
        first
    }

    fn end(&self) {}

    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}

/// Runs `work` on each of `size` ranks, and returns the results by rank. Each rank has its own worker thread, since ranks block
/// while they wait for each other.
pub fn run<T: Send>(size: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let slots = (0..size).map(|_| Mutex::default()).collect();
    let table = Arc::new(Table { slots, barrier: Barrier::new(size) });
    thread::scope(|scope| {
        let started = (0..size).map(|rank| {
            let (work, ranks) = (&work, Ranks::over(Seat { rank, table: table.clone() }));
            scope.spawn(move || {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
                pool.install(|| work(ranks))
            })
        });
        let started: Vec<_> = started.collect();
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

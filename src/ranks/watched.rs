//! Limits how long a rank waits for other ranks.

use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{GO_ON, Transport, leave};

/// Longest time between two checks of the clock.
const PAUSE: Duration = Duration::from_millis(200);

/// A transport that ends the process when an exchange exceeds a time limit. Otherwise a rank would wait forever for one that has
/// stopped. A broadcast has no limit, since the first rank's next order may take hours.
pub struct Watched<T> {
    inner: T,
    since: Arc<Mutex<Option<Instant>>>,
}

impl<T: Transport> Watched<T> {
    /// Wraps `inner`, whose exchanges may take as long as `limit`. Starts a thread that checks the time.
    pub fn new(inner: T, limit: Duration) -> Self {
        let since: Arc<Mutex<Option<Instant>>> = Arc::default();
        let (rank, size, seen) = (inner.rank(), inner.size(), since.clone());
        thread::spawn(move || {
            loop {
                thread::sleep(PAUSE.min(limit));
                let begun = *seen.lock().unwrap_or_else(PoisonError::into_inner);
                if begun.is_some_and(|begun| begun.elapsed() > limit) {
                    let _ = writeln!(
                        std::io::stderr(),
                        "error: rank {rank} of {size} has waited {:.0} s for another rank, which has stopped or is far behind\n  \
                         help: {GO_ON}; --collective-timeout SECONDS allows for more",
                        limit.as_secs_f64()
                    );
                    leave(1)
                }
            }
        });
        Self { inner, since }
    }

    fn timed<R>(&self, exchange: impl FnOnce() -> R) -> R {
        let set = |to| *self.since.lock().unwrap_or_else(PoisonError::into_inner) = to;
        set(Some(Instant::now()));
        let done = exchange();
        set(None);
        done
    }
}

impl<T: Transport> Transport for Watched<T> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) {
        self.timed(|| self.inner.all_gather(own, all));
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) {
        self.timed(|| self.inner.all_to_all(send, receive));
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.inner.broadcast(bytes)
    }

    fn end(&self) {
        self.timed(|| self.inner.end());
    }

    fn abort(&self, code: u8) -> ! {
        self.inner.abort(code)
    }
}

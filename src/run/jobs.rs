//! Runs jobs in order, one or several at a time, each on its share of the threads.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::Context;

use crate::stage::Stopped;

/// Stack size of a worker: that of the main thread, which does the work if there is one job.
const STACK: usize = 8 << 20;

/// How many jobs run at once, and on how many threads.
#[derive(Clone, Copy, Debug)]
pub struct Jobs {
    /// Jobs at once, at least 1.
    pub count: usize,
    /// Whether to start further jobs after one has failed.
    pub keep_going: bool,
    /// Threads in total; one per processor if None.
    pub threads: Option<usize>,
}

impl Jobs {
    /// Runs the jobs `0..pieces`, started in order, and returns their outcomes; None for a job that did not start. After a
    /// failure no job starts, unless [`Jobs::keep_going`]; after an interruption none does. Jobs that have started run to their
    /// end.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn run<T: Send>(
        self,
        pieces: usize,
        work: impl Fn(usize) -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<Vec<Option<anyhow::Result<T>>>> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results = Mutex::new((0..pieces).map(|_| None).collect::<Vec<_>>());
        let worker = || {
            while !stop.load(Ordering::SeqCst) {
                let piece = next.fetch_add(1, Ordering::SeqCst);
                if piece >= pieces {
                    return;
                }
                let result = work(piece);
                if result.as_ref().is_err_and(|error| !self.keep_going || is_interruption(error)) {
                    stop.store(true, Ordering::SeqCst);
                }
                results.lock().unwrap_or_else(PoisonError::into_inner)[piece] = Some(result);
            }
        };
        let count = self.count.min(pieces);
        if count <= 1 {
            worker();
        } else {
            let all = self.threads.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
            let pool = |_| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads((all / count).max(1)).stack_size(STACK).build();
                pool.context("starting threads")
            };
            let pools = (0..count).map(pool).collect::<anyhow::Result<Vec<_>>>()?;
            let worker = &worker;
            thread::scope(|scope| {
                for pool in &pools {
                    scope.spawn(move || pool.install(worker));
                }
            });
        }
        Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether the user asked to stop.
pub fn is_interruption(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Stopped::Interrupted { .. } | Stopped::InterruptedAt { .. }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn begun(jobs: Jobs, fail: fn(usize) -> Option<anyhow::Error>) -> Vec<&'static str> {
        let results = jobs.run(5, |piece| fail(piece).map_or(Ok(piece), Err)).unwrap();
        let state = |(piece, result): (usize, Option<anyhow::Result<usize>>)| match result {
            Some(Ok(done)) => {
                assert_eq!(done, piece);
                "done"
            }
            Some(Err(_)) => "failed",
            None => "-",
        };
        results.into_iter().enumerate().map(state).collect()
    }

    #[test]
    fn a_failure_stops_the_rest_unless_work_keeps_going_and_an_interruption_always_does() {
        let jobs = Jobs { count: 1, keep_going: false, threads: None };
        let fail = |piece| (piece == 1).then(|| anyhow::anyhow!("no"));
        assert_eq!(begun(jobs, fail), ["done", "failed", "-", "-", "-"]);
        let jobs = Jobs { keep_going: true, ..jobs };
        assert_eq!(begun(jobs, fail), ["done", "failed", "done", "done", "done"]);
        let stop = |piece| (piece == 2).then(|| Stopped::InterruptedAt { stage: "knn" }.into());
        assert_eq!(begun(jobs, stop), ["done", "done", "failed", "-", "-"]);
    }

    #[test]
    fn several_at_once_share_the_threads() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let jobs = Jobs { count: 3, keep_going: false, threads: Some(7) };
        let results = jobs.run(9, |piece| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok((piece, rayon::current_num_threads()))
        });
        let results: Vec<_> = results.unwrap().into_iter().map(|result| result.unwrap().unwrap()).collect();
        assert_eq!(results, (0..9).map(|piece| (piece, 2)).collect::<Vec<_>>());
        assert!((2..=3).contains(&most.into_inner()));
    }
}

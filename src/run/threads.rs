//! Starts the thread pool of rayon. The whole process shares it, so every command starts it once, before any work.

use std::sync::OnceLock;

use anyhow::anyhow;

/// Starts this many threads; with None, rayon starts one per processor when they are first needed.
///
/// # Errors
/// When the threads cannot be started. Every later call then fails too.
pub fn start_threads(threads: Option<usize>) -> anyhow::Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let Some(threads) = threads else { return Ok(()) };
    let start = || {
        let started = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        started.map_err(|error| format!("starting {threads} threads: {error}"))
    };
    STARTED.get_or_init(start).clone().map_err(|why| anyhow!(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_cannot_be_started_are_an_error_each_time() {
        rayon::join(|| (), || ()); // the process has its threads by now
        let errors = [(); 2].map(|()| start_threads(Some(3)).unwrap_err().to_string());
        let expected = "starting 3 threads: The global thread pool has already been initialized.";
        assert_eq!(errors, [expected; 2]);
        assert!(start_threads(None).is_ok(), "none were asked for");
    }
}

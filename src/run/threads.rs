//! Rayon's threads, which are the whole process's: they are started once, before any work, by every command alike.

use std::sync::OnceLock;

use anyhow::anyhow;

/// Starts so many threads, or as many as there are processors when they are first needed.
///
/// # Errors
/// When they cannot be started: then for every caller, not for the first alone.
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

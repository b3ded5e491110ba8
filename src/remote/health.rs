//! Tracks whether reading and writing the cache still work, and warns once if not.

use std::sync::{Mutex, PoisonError};

use super::Failure;

/// The operations on the cache that still work; at first all do.
#[derive(Default)]
pub struct Health(Mutex<State>);

#[derive(Default)]
struct State {
    no_reading: bool,
    no_writing: bool,
    no_trust: bool,
    problem: Option<String>,
    told: bool,
}

impl Health {
    /// Whether reading is worth a try.
    pub fn reads(&self) -> bool {
        !self.state().no_reading
    }

    /// Whether writing is worth a try.
    pub fn writes(&self) -> bool {
        !self.state().no_writing
    }

    /// Whether objects in the cache are trusted. Once an object did not match its name, everything made here is uploaded, even if
    /// the cache seems to have it.
    pub fn trusts(&self) -> bool {
        !self.state().no_trust
    }

    /// Records a failed read: nothing more is read. If the server is at fault, nothing more is written either. If an object was
    /// damaged, no object is trusted any more.
    pub fn reading_failed(&self, failure: &Failure) {
        let mut state = self.state();
        state.no_reading = true;
        state.no_writing |= matches!(failure, Failure::Broken(_));
        state.no_trust |= matches!(failure, Failure::Wrong(_));
        let what = match failure {
            Failure::Wrong(_) => "nothing more is read from it, and what is missing is computed",
            _ => "going on without it",
        };
        state.problem.get_or_insert(format!("{failure}; {what}"));
    }

    /// Records a failed write: nothing more is written.
    pub fn writing_failed(&self, failure: &Failure) {
        let mut state = self.state();
        state.no_writing = true;
        state.problem.get_or_insert(format!("{failure}; what it lacks is uploaded by the next run with it"));
    }

    /// The first problem, if there was any.
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// The first problem, but only the first time that this is called after it.
    pub fn news(&self) -> Option<String> {
        let mut state = self.state();
        let news = state.problem.clone().filter(|_| !state.told);
        state.told |= news.is_some();
        news
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

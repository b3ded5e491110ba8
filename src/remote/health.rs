//! Tracks whether reading and writing the cache still work, and warns once if not.

use std::sync::{Mutex, PoisonError};

use super::Failure;

/// What still works; at first everything.
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

    /// Whether what is there counts. Once something was another than its name says, all that is made here is written again.
    pub fn trusts(&self) -> bool {
        !self.state().no_trust
    }

    /// Something could not be read: nothing more will be, and where the server is at fault, nothing written.
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

    /// Something could not be written: nothing more will be.
    pub fn writing_failed(&self, failure: &Failure) {
        let mut state = self.state();
        state.no_writing = true;
        state.problem.get_or_insert(format!("{failure}; what it lacks is uploaded by the next run with it"));
    }

    /// What went wrong first, if anything did.
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// The same, but once.
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

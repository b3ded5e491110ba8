//! Runs a plan: cached stages are kept, pending ones run, killed ones resume.

mod driver;
mod execute;
pub mod follow;
mod jobs;
mod progress;
mod results;
pub mod resume_check;
mod signal;
mod threads;
mod work;

pub use driver::{Driver, How, StageOutcome, Work};
pub use execute::{Alone, Finished, NotYet, Setting};
pub use jobs::{Jobs, is_interruption};
pub use progress::{Reporter, Verbosity, duration};
pub use results::{Outcome, is_recorded, record};
pub use signal::watch;
pub use threads::start_threads;
pub use work::stage_work;

#[cfg(test)]
mod tests;

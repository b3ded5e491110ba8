//! Drives a plan: what is cached stays, what is pending runs, what was killed resumes.

mod driver;
mod progress;
pub mod rehearsal;
mod results;
mod signal;
mod work;

pub use driver::{Driver, How, StageOutcome, Work};
pub use progress::{Mode, Reporter, duration};
pub use results::{Outcome, record};
pub use signal::watch;
pub use work::stage_work;

#[cfg(test)]
mod tests;

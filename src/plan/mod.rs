//! Plans an experiment: its stages with their keys, and why each would run.

mod difference;
pub mod estimate;
mod job;
mod key;
mod nearest;
mod planned;
mod planner;
mod source;

pub use difference::Difference;
pub use job::Job;
pub use key::UNIT;
pub use planned::{Against, Planned, Verdict};
pub use planner::Planner;
pub use source::Sources;

pub use crate::stage::Stage;

#[cfg(test)]
pub(crate) mod tests;

//! From a stage of the plan to the function that does its work.

use super::Work;
use crate::{plan::Job, spec::Experiment};

/// What every stage of `experiment` does.
pub fn stage_work(experiment: &Experiment) -> Box<Work<'_>> {
    Box::new(move |stage, inputs, out, context| Job::new(stage, experiment).run(inputs, out, context))
}

//! Maps each stage of the plan to the function that does its work.

use super::{Work, follow};
use crate::{
    plan::{Job, Stage},
    spec::Experiment,
};

/// The work of every stage of `experiment`.
pub fn stage_work(experiment: &Experiment) -> Box<Work<'_>> {
    Box::new(move |stage, inputs, out, context| {
        let mut work = || Job::new(stage, experiment).run(inputs, out, context);
        match stage {
            Stage::Pretrain => follow::with_others(experiment, inputs[&Stage::Data].stage_key(), work),
            _ => work(),
        }
    })
}

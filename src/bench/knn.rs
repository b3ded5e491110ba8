//! Measures the kNN evaluation: scaling to unit length, exact search, weighted votes.

use super::{
    Options, Workload,
    rows::{self, CLASSES, DIM, SPLITS},
};
use crate::{
    ops::normalize::normalize_rows,
    stage::{KnnConfig, nearest::Bank, votes::Vote},
};

/// Default number of neighbours: the largest K that a spec uses by default.
const K: usize = 200;

pub(super) fn prepare(options: &Options) -> Workload {
    let k = options.k.unwrap_or(K).min(SPLITS[0]);
    let mut task = rows::classes();
    let what = format!("{} queries, a bank of {}, width {DIM}, K {k}", SPLITS[1], SPLITS[0]);
    Workload::new(what, None, move || {
        normalize_rows(&mut task.train.rows, DIM);
        normalize_rows(&mut task.test.rows, DIM);
        let vote = Vote { ks: &[k], temperature: KnnConfig::default().temperature, classes: CLASSES };
        let bank = Bank::new(None, &task.train.rows, DIM, k)?;
        let nearest = |queries: &[f32], k| bank.top_k(queries, k);
        std::hint::black_box(vote.classify(nearest, &[&task.targets], &task.test.rows, DIM, |_| true)?);
        Ok(())
    })
}

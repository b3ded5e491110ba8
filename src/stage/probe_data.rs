//! Test helpers for the probes: synthetic features, and a recording [`Progress`].

use std::cell::RefCell;

use rand::RngExt;

use super::{
    Progress,
    features::{Features, SplitFeatures},
};
use crate::ops::random::{Purpose, stream};

const DIM: usize = 8;

/// Features that cluster by class.
pub fn blobs(classes: usize, train: usize, test: usize) -> SplitFeatures {
    make(classes, train, test, 0.6)
}

/// Features without any relation to the classes.
pub fn noise(classes: usize, train: usize, test: usize) -> SplitFeatures {
    make(classes, train, test, 0.0)
}

/// `features` without the labels of the training split.
pub fn unlabelled(mut features: SplitFeatures) -> SplitFeatures {
    features.train.labels.fill(None);
    features
}

fn make(classes: usize, train: usize, test: usize, signal: f32) -> SplitFeatures {
    let split = |n: usize, seed: u64| {
        let mut rng = stream(seed, Purpose::Synthetic, 0, 0, 0);
        let rows = (0..n)
            .flat_map(|i| (0..DIM).map(move |d| (i % classes == d % classes) as u8 as f32))
            .map(|one| one * signal + (rng.random::<f32>() - 0.5) * 0.7)
            .collect();
        let labels = (0..n).map(|i| Some((i % classes) as i64)).collect();
        Features { dim: DIM, ids: (0..n as i64).collect(), labels, rows }
    };
    SplitFeatures { train: split(train, 1), test: split(test, 2) }
}

/// Records all messages.
#[derive(Default)]
pub struct Heard(RefCell<Vec<String>>);

impl Heard {
    /// All lines and warnings so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.borrow().clone()
    }
}

impl Progress for Heard {
    fn value(&self, _name: &str, _value: f64) {}
    fn detail(&self, _text: &str) {}
    fn start(&self, _total: Option<u64>, _unit: &str) {}
    fn advance(&self, _count: u64) {}
    fn message(&self, _text: &str) {}
    fn log(&self, text: &str) {
        self.0.borrow_mut().push(text.to_owned());
    }
    fn warn(&self, text: &str) {
        self.0.borrow_mut().push(text.to_owned());
    }
}

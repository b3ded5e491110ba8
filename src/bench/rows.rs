//! Makes random rows of features.

use rayon::prelude::*;

use crate::{
    ops::random::{Normals, Purpose, stream},
    stage::{
        features::{Features, SplitFeatures},
        labelled::Task,
    },
};

/// Number of classes in [`classes`].
pub(super) const CLASSES: usize = 10;
/// Rows of the training split and of the test split, as in CIFAR-10.
pub(super) const SPLITS: [usize; 2] = [50_000, 10_000];
/// Width of a row, as of ResNet-18's features.
pub(super) const DIM: usize = 512;

/// `n` rows from a standard normal distribution, [n, dim].
pub(super) fn normal(n: usize, dim: usize, seed: u64) -> Vec<f32> {
    let mut rows = vec![0.0; n * dim];
    rows.par_chunks_mut(dim).enumerate().for_each(|(row, values)| {
        let mut normals = Normals::of(stream(seed, Purpose::Synthetic, 0, row as u64, 0));
        values.fill_with(|| normals.draw() as f32);
    });
    rows
}

/// A classification task with noisy rows: the rows of a class are scattered around the class's centre.
pub(super) fn classes() -> Task {
    let centres = normal(CLASSES, DIM, 1);
    let split = |n: usize, seed: u64| {
        let mut rows = normal(n, DIM, seed);
        rows.par_chunks_mut(DIM).enumerate().for_each(|(i, row)| {
            let centre = &centres[i % CLASSES * DIM..][..DIM];
            row.iter_mut().zip(centre).for_each(|(x, c)| *x += 0.2 * c);
        });
        let labels = (0..n).map(|i| Some((i % CLASSES) as i64)).collect();
        Features { dim: DIM, ids: (0..n as i64).collect(), labels, rows }
    };
    let [train, test] = SPLITS;
    Task::new(SplitFeatures { train: split(train, 2), test: split(test, 3) }).expect("both splits have labels")
}

//! The storage of a queue: a bank of unit vectors that can be searched, read and overwritten.

use std::ops::Range;

use super::{Memory, RowsOf};
use crate::ops::{matmul::MatmulPrecision, pending::Pending};

/// The origin of each row of a bank: sample, label and training step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The sample of the row.
    pub samples: Vec<i64>,
    /// The label of the sample, for diagnostics only.
    pub labels: Vec<i64>,
    /// The training step in which the row was written.
    pub steps: Vec<i64>,
}

impl Marks {
    /// The samples, labels and steps of the rows in a range.
    pub fn of(&self, rows: Range<usize>) -> [&[i64]; 3] {
        [&self.samples, &self.labels, &self.steps].map(|marks| &marks[rows.clone()])
    }
}

/// The K nearest rows of each query, nearest first.
pub struct Nearest<B: Memory> {
    pub k: usize,
    /// [n k, dim], unit length
    pub vectors: RowsOf<B>,
    /// The length of each vector before it was scaled to unit length, [n k, 1].
    pub norms: RowsOf<B>,
    /// The origins of the vectors, and their similarities to the queries.
    pub origins: Pending<Origins<B::Real>>,
}

/// The origins of the K nearest rows of each query, and their similarities to it.
#[derive(Clone, Debug)]
pub struct Origins<E> {
    pub k: usize,
    /// The sample of each row, [n, k]; -1 if it has none.
    pub samples: Vec<i64>,
    /// The label of each row, [n, k]; -1 if it has none.
    pub labels: Vec<i64>,
    /// The training step in which each row was written, [n, k]; -1 for a row of the initial bank.
    pub steps: Vec<i64>,
    /// Cosine of each row with its query, [n, k].
    pub similarities: Vec<E>,
}

/// The operations on banks. A bank holds rows at unit length, the lengths that they had before, and their marks.
pub trait Banks: Memory {
    type Bank;

    /// A bank of `rows` at unit length, whose lengths were `norms` before. `matmul` is the precision in which the search reads
    /// the factors of its products.
    fn bank(
        &self,
        rows: Vec<Self::Real>,
        norms: Vec<Self::Real>,
        marks: &Marks,
        matmul: MatmulPrecision,
    ) -> Result<Self::Bank, Self::Error>;

    /// The rows and lengths of a bank. Waits for the device.
    fn read_bank(&self, bank: &Self::Bank) -> Result<[Vec<Self::Real>; 2], Self::Error>;

    /// All rows [length, dim].
    fn bank_rows(&self, bank: &Self::Bank, shape: (usize, usize)) -> anyhow::Result<RowsOf<Self>>;

    /// Overwrites the rows from `first` on with the rows `rows` of `batch` [n, dim], which may have any length. `marks` are those
    /// of the whole bank, with the new ones in place.
    fn overwrite(
        &self,
        bank: &mut Self::Bank,
        first: usize,
        batch: &RowsOf<Self>,
        rows: Range<usize>,
        marks: &Marks,
    ) -> anyhow::Result<()>;

    /// The `k` rows nearest to each of `queries` [n, dim] (unit length). With `exclude` [n], the sample of each query, rows of
    /// that sample are left out. The bank must have `k` other rows.
    fn nearest(
        &self,
        bank: &Self::Bank,
        queries: &RowsOf<Self>,
        k: usize,
        exclude: Option<&[i64]>,
        marks: &Marks,
    ) -> anyhow::Result<Nearest<Self>>;
}

//! What a queue of rows is made of: a bank of unit vectors that is searched, read and overwritten.

use std::ops::Range;

use super::{Memory, RowsOf};
use crate::ops::{matmul::MatmulPrecision, pending::Pending};

/// What is known of each row of a bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Sample that it came from.
    pub samples: Vec<i64>,
    /// That sample's label, for diagnostics only.
    pub labels: Vec<i64>,
    /// Training step in which it came.
    pub steps: Vec<i64>,
}

impl Marks {
    /// Those of some rows, one kind behind the other.
    pub fn of(&self, rows: Range<usize>) -> [&[i64]; 3] {
        [&self.samples, &self.labels, &self.steps].map(|marks| &marks[rows.clone()])
    }
}

/// The K nearest rows of each query, nearest first.
pub struct Nearest<B: Memory> {
    pub k: usize,
    /// [n k, dim], unit length
    pub vectors: RowsOf<B>,
    /// Length of each vector as it came, [n k, 1].
    pub norms: RowsOf<B>,
    /// Where they came from, and how near they are.
    pub origins: Pending<Origins<B::Real>>,
}

/// What is known of the K nearest rows of each query.
#[derive(Clone, Debug)]
pub struct Origins<E> {
    pub k: usize,
    /// Sample of each row, [n, k]; -1 where there is none.
    pub samples: Vec<i64>,
    /// [n, k]; -1 where there is none
    pub labels: Vec<i64>,
    /// Training step in which each row came, [n, k]; -1 where it was there from the start.
    pub steps: Vec<i64>,
    /// Cosine of each row with its query, [n, k].
    pub similarities: Vec<E>,
}

/// Rows at unit length, the lengths that they came with, and their marks.
pub trait Banks: Memory {
    type Bank;

    /// A bank of `rows` at unit length, which came with the lengths `norms`. The search reads factors as
    /// `products` says.
    fn bank(
        &self,
        rows: Vec<Self::Real>,
        norms: Vec<Self::Real>,
        marks: &Marks,
        matmul: MatmulPrecision,
    ) -> Result<Self::Bank, Self::Error>;

    /// Its rows and lengths. Waits for the device.
    fn read_bank(&self, bank: &Self::Bank) -> Result<[Vec<Self::Real>; 2], Self::Error>;

    /// All rows [length, dim].
    fn bank_rows(&self, bank: &Self::Bank, shape: (usize, usize)) -> anyhow::Result<RowsOf<Self>>;

    /// Overwrites the rows from `first` on by rows of `batch` [n, dim], of any length; `marks` are the new ones.
    fn overwrite(
        &self,
        bank: &mut Self::Bank,
        first: usize,
        batch: &RowsOf<Self>,
        rows: Range<usize>,
        marks: &Marks,
    ) -> anyhow::Result<()>;

    /// The `k` rows nearest to each of `queries` [n, dim] (unit length), which must be there, but for those of the samples
    /// `exclude` [n].
    fn nearest(
        &self,
        bank: &Self::Bank,
        queries: &RowsOf<Self>,
        k: usize,
        exclude: Option<&[i64]>,
        marks: &Marks,
    ) -> anyhow::Result<Nearest<Self>>;
}

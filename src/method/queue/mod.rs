//! FIFO queue C of the momentum branch's projections: the candidate neighbours.

mod rows;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range};

use dfdx::prelude::HasShape;

use self::rows::Rows;
pub use self::rows::{Neighbours, Origins};
use super::Overflow;
use crate::ops::{
    Real,
    backend::Backend,
    named::{NamedTensor, Values},
    normalize::normalize_rows,
    product::Products,
    random::{Normals, Purpose, stream},
    seam::Matrix,
    topk::Bank,
};

/// Marks a row that came from no sample, or a sample without label.
const NONE: i64 = -1;

/// The queue. Rows are kept at unit length, as the search needs them, with the lengths beside them.
#[derive(Debug)]
pub struct Queue<E> {
    /// What its tensors are called in a checkpoint.
    name: &'static str,
    dim: usize,
    rows: Rows<E>,
    marks: Marks,
    /// How many rows each sample has.
    copies: BTreeMap<i64, usize>,
    /// Where the next row goes.
    next: usize,
}

/// What is known of each row.
#[derive(Debug)]
struct Marks {
    /// Sample that it came from.
    samples: Vec<i64>,
    /// That sample's label, for diagnostics only.
    labels: Vec<i64>,
    /// Training step in which it came.
    steps: Vec<i64>,
}

impl Marks {
    /// Those of some rows, one kind behind the other.
    #[cfg(any(test, feature = "cuda"))]
    fn all(&self, rows: Range<usize>) -> [&[i64]; 3] {
        [&self.samples, &self.labels, &self.steps].map(|marks| &marks[rows.clone()])
    }
}

/// Where the rows of a batch come from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub samples: &'a [i64],
    pub labels: &'a [i64],
    /// Training step.
    pub step: u64,
}

/// The queue holds too few rows of other images.
#[derive(Debug, thiserror::Error)]
#[error(
    "the queue of {length} rows holds only {available} of other images for some image, but {k} are needed: \
     use a longer method.queue_length, fewer neighbours, or method.exclude_self: false"
)]
pub struct TooFewNeighbours {
    length: usize,
    available: usize,
    k: usize,
}

/// Rows of a batch and the rows of the queue that they are written over.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    from: usize,
    to: Range<usize>,
}

impl<E: Real> Queue<E> {
    /// A queue of random unit vectors, called `name` in checkpoints.
    pub fn new(name: &'static str, length: usize, dim: usize, seed: u64) -> Self {
        let mut normals = Normals::of(stream(seed, Purpose::Queue, 0, 0, 0));
        let mut bank: Vec<E> = (0..length * dim).map(|_| E::of(normals.draw())).collect();
        normalize_rows(&mut bank, dim);
        Self {
            name,
            dim,
            rows: Rows::Host(Bank::new(bank, dim, Products::Full), vec![E::one(); length]),
            marks: Marks { samples: vec![NONE; length], labels: vec![NONE; length], steps: vec![NONE; length] },
            copies: [(NONE, length)].into(),
            next: 0,
        }
    }

    /// Has the search read factors as `products` says. Rows themselves stay as they are.
    pub fn set_products(&mut self, products: Products) {
        match &mut self.rows {
            Rows::Host(bank, _) => bank.set_products(products),
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(..) => {} // reads them as they are
        }
    }

    /// Moves it to a GPU, where it is searched and filled from then on.
    ///
    /// # Errors
    /// When memory runs out.
    #[cfg(any(test, feature = "cuda"))]
    pub fn move_to(&mut self, gpu: &crate::ops::cuda::Gpu) -> Result<(), crate::ops::cuda::GpuError> {
        self.rows.move_to(gpu, self.dim, &self.marks)
    }

    /// All rows [length, dim], at unit length.
    ///
    /// # Errors
    /// When the device fails.
    pub fn all<D: Backend<E>>(&self, device: &D) -> anyhow::Result<Matrix<E, D>> {
        self.rows.all(device, (self.marks.samples.len(), self.dim))
    }

    /// Whether every row came from a sample.
    pub fn is_full(&self) -> bool {
        !self.copies.contains_key(&NONE)
    }

    /// The K rows nearest to each of `queries` [n, dim] (unit length) by cosine; with `exclude`, rows that came from
    /// the query's own sample are left out. `k` is at least 1.
    ///
    /// # Errors
    /// [`TooFewNeighbours`] when fewer than K rows are left; or when the device fails.
    pub fn search<D: Backend<E>>(
        &self,
        queries: &Matrix<E, D>,
        k: usize,
        exclude: Option<&[i64]>,
    ) -> anyhow::Result<Neighbours<E, D>> {
        let length = self.marks.samples.len();
        let own = |sample| self.copies.get(sample).copied().unwrap_or(0);
        let available = length - exclude.into_iter().flatten().map(own).max().unwrap_or(0);
        if available < k {
            return Err(TooFewNeighbours { length, available, k }.into());
        }
        self.rows.search(queries, k, exclude, &self.marks)
    }

    /// Writes `rows` [n, dim] of any length over the oldest ones.
    ///
    /// # Errors
    /// When the device fails.
    pub fn enqueue<D: Backend<E>>(
        &mut self,
        rows: &Matrix<E, D>,
        origin: Origin,
        overflow: Overflow,
    ) -> anyhow::Result<()> {
        let (n, length) = (rows.shape().0, self.marks.samples.len());
        let runs = runs(n, length, self.next, overflow);
        for Run { from, to } in &runs {
            let from = *from..from + to.len();
            for sample in &self.marks.samples[to.clone()] {
                match self.copies.get_mut(sample) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => drop(self.copies.remove(sample)),
                }
            }
            self.marks.samples[to.clone()].copy_from_slice(&origin.samples[from.clone()]);
            self.marks.labels[to.clone()].copy_from_slice(&origin.labels[from.clone()]);
            self.marks.steps[to.clone()].fill(origin.step as i64);
            origin.samples[from].iter().for_each(|sample| *self.copies.entry(*sample).or_default() += 1);
        }
        self.rows.write(rows, &runs, &self.marks)?;
        let end = runs.last().map_or(self.next, |run| run.to.end);
        self.next = end % length;
        Ok(())
    }

    /// Everything that a checkpoint must hold.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> anyhow::Result<Vec<NamedTensor<E>>> {
        let length = self.marks.samples.len();
        let (bank, norms) = self.rows.read()?;
        let name = |part: &str| format!("{}.{part}", self.name);
        Ok(vec![
            NamedTensor::real(name("bank"), &[length, self.dim], bank),
            NamedTensor::real(name("norms"), &[length], norms),
            NamedTensor::integer(name("samples"), &[length], self.marks.samples.clone()),
            NamedTensor::integer(name("labels"), &[length], self.marks.labels.clone()),
            NamedTensor::integer(name("steps"), &[length], self.marks.steps.clone()),
            NamedTensor::integer(name("next"), &[1], vec![self.next as i64]),
        ])
    }

    /// Takes over what [`Queue::state`] gave; tensors of other names are left alone.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, tensors: &[NamedTensor<E>]) -> anyhow::Result<()> {
        let (mut bank, mut norms) = self.rows.read()?;
        for tensor in tensors {
            let part = tensor.name.strip_prefix(self.name).and_then(|rest| rest.strip_prefix('.'));
            match (part, &tensor.values) {
                (Some("bank"), Values::Real(values)) => bank.clone_from(values),
                (Some("norms"), Values::Real(values)) => norms.clone_from(values),
                (Some("samples"), Values::Integer(samples)) => self.marks.samples.clone_from(samples),
                (Some("labels"), Values::Integer(labels)) => self.marks.labels.clone_from(labels),
                (Some("steps"), Values::Integer(steps)) => self.marks.steps.clone_from(steps),
                (Some("next"), Values::Integer(next)) => self.next = next[0] as usize,
                _ => {}
            }
        }
        self.copies.clear();
        self.marks.samples.iter().for_each(|sample| *self.copies.entry(*sample).or_default() += 1);
        match &mut self.rows {
            Rows::Host(kept, kept_norms) => {
                kept.write(0, &bank);
                *kept_norms = norms;
            }
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(gpu, _) => {
                let gpu = gpu.clone();
                self.rows = Rows::Host(Bank::new(bank, self.dim, Products::Full), norms);
                self.move_to(&gpu)?;
            }
        }
        Ok(())
    }
}

/// Where `n` rows of a batch go in a queue of `length`, from `next` on. Of more than fit, the last ones stay.
fn runs(n: usize, length: usize, next: usize, overflow: Overflow) -> Vec<Run> {
    let (skipped, taken) = match overflow {
        Overflow::Truncate => (0, n.min(length - next)),
        Overflow::Wrap => (n.saturating_sub(length), n.min(length)),
    };
    let start = (next + skipped) % length;
    let first = taken.min(length - start);
    let runs = [Run { from: skipped, to: start..start + first }, Run { from: skipped + first, to: 0..taken - first }];
    runs.into_iter().filter(|run| !run.to.is_empty()).collect()
}

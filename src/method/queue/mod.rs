//! The queue C: a FIFO of projections of earlier batches. Methods look up neighbours in it.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range};

use super::{Overflow, Rows};
use crate::{
    backend::{Backend, Marks, Nearest},
    ops::{
        Number,
        matmul::MatmulPrecision,
        named::{NamedTensor, Values},
        normalize::normalize_rows,
        random::{Normals, Purpose, stream},
    },
};

/// Marks a row without a sample, or a sample without a label.
const NONE: i64 = -1;

/// The queue. It stores rows at unit length, as the search needs them, and their original lengths separately.
pub struct Queue<B: Backend> {
    /// Prefix of its tensors in a checkpoint.
    name: &'static str,
    dim: usize,
    /// Precision of the search. The rows themselves are stored in full.
    matmul: MatmulPrecision,
    bank: B::Bank,
    marks: Marks,
    /// Number of rows of each sample.
    copies: BTreeMap<i64, usize>,
    /// Index of the row that is overwritten next.
    next: usize,
}

/// The origin of the rows of a batch.
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
    "the queue is too short: of its {length} rows, only {available} are of other images than one of the batch, and {k} are needed; \
     use a longer method.queue_length, fewer neighbours, or method.exclude_self: false"
)]
pub struct TooFewNeighbours {
    length: usize,
    available: usize,
    k: usize,
}

/// A run of consecutive rows: its first row in the batch, and the rows of the queue that it replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    from: usize,
    to: Range<usize>,
}

impl<B: Backend> Queue<B> {
    /// A queue of random unit vectors [length, dim], called `name` in checkpoints. `matmul` is the precision of its search.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(
        on: &B,
        name: &'static str,
        [length, dim]: [usize; 2],
        seed: u64,
        matmul: MatmulPrecision,
    ) -> Result<Self, B::Error> {
        let mut normals = Normals::of(stream(seed, Purpose::Queue, 0, 0, 0));
        let mut rows: Vec<B::Real> = (0..length * dim).map(|_| B::Real::of(normals.draw())).collect();
        normalize_rows(&mut rows, dim);
        let marks = Marks { samples: vec![NONE; length], labels: vec![NONE; length], steps: vec![NONE; length] };
        let bank = on.bank(rows, vec![B::Real::of(1.0); length], &marks, matmul)?;
        Ok(Self { name, dim, matmul, bank, marks, copies: [(NONE, length)].into(), next: 0 })
    }

    /// Number of rows, and their width.
    pub fn shape(&self) -> [usize; 2] {
        [self.marks.samples.len(), self.dim]
    }

    /// All rows [length, dim], at unit length.
    ///
    /// # Errors
    /// When the device fails.
    pub fn all(&self, on: &B) -> anyhow::Result<Rows<B>> {
        on.bank_rows(&self.bank, self.shape().into())
    }

    /// Whether every row came from a sample.
    pub fn is_full(&self) -> bool {
        !self.copies.contains_key(&NONE)
    }

    /// The K rows nearest to each of `queries` [n, dim] (unit length) by cosine. With `exclude`, the sample of each query,
    /// rows of that sample are left out. `k` is at least 1.
    ///
    /// # Errors
    /// [`TooFewNeighbours`] when fewer than K rows are left; or when the device fails.
    pub fn search(&self, on: &B, queries: &Rows<B>, k: usize, exclude: Option<&[i64]>) -> anyhow::Result<Nearest<B>> {
        let length = self.marks.samples.len();
        let own = |sample| self.copies.get(sample).copied().unwrap_or(0);
        let available = length - exclude.into_iter().flatten().map(own).max().unwrap_or(0);
        if available < k {
            return Err(TooFewNeighbours { length, available, k }.into());
        }
        on.nearest(&self.bank, queries, k, exclude, &self.marks)
    }

    /// Replaces the oldest rows by `rows` [n, dim], which may have any length.
    ///
    /// # Errors
    /// When the device fails.
    pub fn enqueue(&mut self, on: &B, rows: &Rows<B>, origin: Origin, overflow: Overflow) -> anyhow::Result<()> {
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
        for Run { from, to } in &runs {
            on.overwrite(&mut self.bank, to.start, rows, *from..from + to.len(), &self.marks)?;
        }
        let end = runs.last().map_or(self.next, |run| run.to.end);
        self.next = end % length;
        Ok(())
    }

    /// The state for a checkpoint.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self, on: &B) -> Result<Vec<NamedTensor<B::Real>>, B::Error> {
        let length = self.marks.samples.len();
        let [bank, norms] = on.read_bank(&self.bank)?;
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

    /// Restores the state of [`Queue::state`]; ignores tensors of other names.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, on: &B, tensors: &[NamedTensor<B::Real>]) -> Result<(), B::Error> {
        let [mut bank, mut norms] = on.read_bank(&self.bank)?;
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
        self.bank = on.bank(bank, norms, &self.marks, self.matmul)?;
        Ok(())
    }
}

/// The places of `n` rows of a batch in a queue of `length`, from row `next` on. With [`Overflow::Wrap`], a batch that is longer
/// than the queue leaves its last rows there. With [`Overflow::Truncate`], the rows beyond the queue's end are dropped.
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

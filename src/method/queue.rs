//! FIFO queue C of the momentum branch's projections: the candidate neighbours.

use std::{collections::BTreeMap, ops::Range};

use dfdx::prelude::*;
use rand_distr::{Distribution, StandardNormal};

use super::{Overflow, device_error};
use crate::ops::{
    Real,
    backend::Backend,
    later::Later,
    named::{NamedTensor, Values},
    normalize::{norm, normalize_rows},
    random::{Purpose, stream},
    seam::Matrix,
    topk::top_k,
};
#[cfg(any(test, feature = "cuda"))]
use crate::ops::{
    cuda::{Gpu, GpuError},
    topk::cuda::BankGpu,
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
    /// Sample that each row came from.
    samples: Vec<i64>,
    /// That sample's label, for diagnostics only.
    labels: Vec<i64>,
    /// Training step in which each row came.
    steps: Vec<i64>,
    /// How many rows each sample has.
    copies: BTreeMap<i64, usize>,
    /// Where the next row goes.
    next: usize,
}

/// Where the rows lie.
#[derive(Debug)]
enum Rows<E> {
    /// On the host: rows [length, dim], and the length that each came with.
    Host(Vec<E>, Vec<E>),
    /// On a GPU, with what is known of each row beside it.
    #[cfg(any(test, feature = "cuda"))]
    Gpu(Gpu, Box<BankGpu>),
}

/// The K nearest rows of each query, nearest first.
pub struct Neighbours<E: Real, D: Backend<E>> {
    pub k: usize,
    /// [n k, dim], unit length
    pub vectors: Matrix<E, D>,
    /// Length of each vector as it came, [n k].
    pub norms: Tensor<(usize,), E, D>,
    /// Where they came from, and how near they are.
    pub origins: Later<Origins<E>>,
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
        let mut random = stream(seed, Purpose::Queue, 0, 0, 0);
        let mut draw = || -> f64 { StandardNormal.sample(&mut random) };
        let mut bank: Vec<E> = (0..length * dim).map(|_| E::of(draw())).collect();
        normalize_rows(&mut bank, dim);
        Self {
            name,
            dim,
            rows: Rows::Host(bank, vec![E::one(); length]),
            samples: vec![NONE; length],
            labels: vec![NONE; length],
            steps: vec![NONE; length],
            copies: [(NONE, length)].into(),
            next: 0,
        }
    }

    /// Moves it to a GPU, where it is searched and filled from then on.
    ///
    /// # Errors
    /// When memory runs out.
    #[cfg(any(test, feature = "cuda"))]
    pub fn move_to(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        if let Rows::Host(bank, norms) = &self.rows {
            let narrow = |values: &[E]| values.iter().map(|v| v.as_f64() as f32).collect::<Vec<_>>();
            let marks = [&self.samples[..], &self.labels, &self.steps];
            let bank = BankGpu::new(gpu, self.dim, &narrow(bank), &narrow(norms), marks)?;
            self.rows = Rows::Gpu(gpu.clone(), Box::new(bank));
        }
        Ok(())
    }

    /// All rows [length, dim], at unit length, of a queue that was not moved to a GPU.
    ///
    /// # Panics
    /// When it was.
    pub fn host_rows(&self) -> &[E] {
        match &self.rows {
            Rows::Host(bank, _) => bank,
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(..) => panic!("the rows of {} lie on a GPU", self.name),
        }
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
        let length = self.samples.len();
        let own = |sample| self.copies.get(sample).copied().unwrap_or(0);
        let available = length - exclude.into_iter().flatten().map(own).max().unwrap_or(0);
        if available < k {
            return Err(TooFewNeighbours { length, available, k }.into());
        }
        match &self.rows {
            Rows::Host(bank, norms) => {
                let own = |query: usize, row: usize| exclude.is_some_and(|samples| samples[query] == self.samples[row]);
                let found = top_k(&queries.as_vec(), bank, self.dim, k, own);
                let (indices, device) = (found.indices, queries.device());
                let vectors = indices.iter().flat_map(|i| &bank[i * self.dim..(i + 1) * self.dim]).copied().collect();
                let vectors = device.try_tensor_from_vec(vectors, (indices.len(), self.dim)).map_err(device_error)?;
                let norms = indices.iter().map(|i| norms[*i]).collect();
                let norms = device.try_tensor_from_vec(norms, (indices.len(),)).map_err(device_error)?;
                let of_each = |values: &[i64]| indices.iter().map(|i| values[*i]).collect();
                let (samples, labels, steps) = (of_each(&self.samples), of_each(&self.labels), of_each(&self.steps));
                let origins = Origins { k, samples, labels, steps, similarities: found.scores };
                Ok(Neighbours { k, vectors, norms, origins: Later::now(origins) })
            }
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(gpu, bank) => {
                let (n, device) = (queries.shape().0, queries.device());
                let found = bank.search(D::lend(gpu, queries)?.at, n, k, exclude)?;
                let near = bank.gather(&found)?;
                let vectors = device.tensor_at(gpu, near.vectors.at(), (n * k, self.dim))?;
                let norms = device.tensor_at(gpu, near.norms.at(), (n * k,))?;
                let (marks, scores) = (near.marks.read_later::<i64>()?, found.scores.read_later::<f32>()?);
                let origins = Later::new(move || {
                    let (marks, scores) = (marks.wait()?, scores.wait()?);
                    let mark = |i: usize| marks[i * n * k..][..n * k].to_vec();
                    let similarities = scores.into_iter().map(|score| E::of(score.into())).collect();
                    Ok(Origins { k, samples: mark(0), labels: mark(1), steps: mark(2), similarities })
                });
                Ok(Neighbours { k, vectors, norms, origins })
            }
        }
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
        let (n, length) = (rows.shape().0, self.samples.len());
        let runs = runs(n, length, self.next, overflow);
        for Run { from, to } in &runs {
            let from = *from..from + to.len();
            for sample in &self.samples[to.clone()] {
                match self.copies.get_mut(sample) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => drop(self.copies.remove(sample)),
                }
            }
            self.samples[to.clone()].copy_from_slice(&origin.samples[from.clone()]);
            self.labels[to.clone()].copy_from_slice(&origin.labels[from.clone()]);
            self.steps[to.clone()].fill(origin.step as i64);
            origin.samples[from].iter().for_each(|sample| *self.copies.entry(*sample).or_default() += 1);
        }
        match &mut self.rows {
            Rows::Host(bank, norms) => {
                let (values, dim) = (rows.as_vec(), self.dim);
                for Run { from, to } in &runs {
                    let rows = &values[from * dim..][..to.len() * dim];
                    let kept = &mut bank[to.start * dim..to.end * dim];
                    kept.copy_from_slice(rows);
                    normalize_rows(kept, dim);
                    let lengths = norms[to.clone()].iter_mut().zip(rows.chunks_exact(dim));
                    lengths.for_each(|(length, row)| *length = E::of(norm(row)));
                }
            }
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(gpu, bank) => {
                let lent = D::lend(gpu, rows)?;
                for Run { from, to } in &runs {
                    let marks = [&self.samples, &self.labels, &self.steps].map(|marks| &marks[to.clone()]);
                    bank.write(to.start, lent.at + 4 * (from * self.dim) as u64, marks)?;
                }
            }
        }
        let end = runs.last().map_or(self.next, |run| run.to.end);
        self.next = end % length;
        Ok(())
    }

    /// Everything that a checkpoint must hold.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> anyhow::Result<Vec<NamedTensor<E>>> {
        let length = self.samples.len();
        let (bank, norms) = self.read_rows()?;
        let name = |part: &str| format!("{}.{part}", self.name);
        Ok(vec![
            NamedTensor::real(name("bank"), &[length, self.dim], bank),
            NamedTensor::real(name("norms"), &[length], norms),
            NamedTensor::integer(name("samples"), &[length], self.samples.clone()),
            NamedTensor::integer(name("labels"), &[length], self.labels.clone()),
            NamedTensor::integer(name("steps"), &[length], self.steps.clone()),
            NamedTensor::integer(name("next"), &[1], vec![self.next as i64]),
        ])
    }

    /// Takes over what [`Queue::state`] gave; tensors of other names are left alone.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, tensors: &[NamedTensor<E>]) -> anyhow::Result<()> {
        let (mut bank, mut norms) = self.read_rows()?;
        for tensor in tensors {
            let part = tensor.name.strip_prefix(self.name).and_then(|rest| rest.strip_prefix('.'));
            match (part, &tensor.values) {
                (Some("bank"), Values::Real(values)) => bank.clone_from(values),
                (Some("norms"), Values::Real(values)) => norms.clone_from(values),
                (Some("samples"), Values::Integer(samples)) => self.samples.clone_from(samples),
                (Some("labels"), Values::Integer(labels)) => self.labels.clone_from(labels),
                (Some("steps"), Values::Integer(steps)) => self.steps.clone_from(steps),
                (Some("next"), Values::Integer(next)) => self.next = next[0] as usize,
                _ => {}
            }
        }
        self.copies.clear();
        self.samples.iter().for_each(|sample| *self.copies.entry(*sample).or_default() += 1);
        let before = std::mem::replace(&mut self.rows, Rows::Host(bank, norms));
        match before {
            Rows::Host(..) => Ok(()),
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(gpu, _) => Ok(self.move_to(&gpu)?),
        }
    }

    /// The rows and the lengths that they came with, wherever they lie.
    fn read_rows(&self) -> anyhow::Result<(Vec<E>, Vec<E>)> {
        match &self.rows {
            Rows::Host(bank, norms) => Ok((bank.clone(), norms.clone())),
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(_, bank) => {
                let (rows, norms) = bank.read()?;
                let widen = |values: Vec<f32>| values.into_iter().map(|v| E::of(v.into())).collect();
                Ok((widen(rows), widen(norms)))
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden::{Golden, assert_close};

    /// Samples that are their own labels, of step 0.
    fn origin(samples: &[i64]) -> Origin<'_> {
        Origin { samples, labels: samples, step: 0 }
    }

    fn matrix(rows: &[f32], dim: usize) -> Matrix<f32, Cpu> {
        Cpu::default().tensor_from_vec(rows.to_vec(), (rows.len() / dim, dim))
    }

    /// A queue on the host, and one on a GPU, emulated or not.
    fn on_both(length: usize, dim: usize) -> Vec<Queue<f32>> {
        let gpu = crate::ops::cuda::testing::one_gpu().map(|gpu| {
            let mut queue = Queue::new("queue", length, dim, 0);
            queue.move_to(&gpu).unwrap();
            queue
        });
        [Queue::new("queue", length, dim, 0)].into_iter().chain(gpu).collect()
    }

    #[test]
    fn rows_go_in_first_and_out_first_as_in_the_reference() {
        let golden = Golden::load("queue_fifo");
        for (overflow, name) in [(Overflow::Truncate, "truncate"), (Overflow::Wrap, "wrap")] {
            for mut queue in on_both(8, 4) {
                let initial = golden.get::<f32>("in.bank");
                queue.enqueue(&matrix(&initial, 4), origin(&[0; 8]), Overflow::Wrap).unwrap();
                for (i, batch) in golden.get::<f32>("in.batches").chunks_exact(12).enumerate() {
                    queue.enqueue(&matrix(batch, 4), origin(&[1, 2, 3]), overflow).unwrap();
                    let (rows, norms) = queue.read_rows().unwrap();
                    let rows = rows.chunks(4).zip(&norms);
                    let raw: Vec<f32> = rows.flat_map(|(row, norm)| row.iter().map(move |v| v * norm)).collect();
                    assert_close("bank", &raw, &golden.get(&format!("out.{name}.bank{i}")), 1e-6);
                    assert_eq!(queue.next as i64, golden.integers(&format!("out.{name}.ptr"))[i]);
                }
            }
        }
    }

    #[test]
    fn of_a_batch_longer_than_the_queue_the_last_rows_stay() {
        let run = |from: usize, to: Range<usize>| Run { from, to };
        assert_eq!(runs(3, 8, 7, Overflow::Wrap), [run(0, 7..8), run(1, 0..2)]);
        assert_eq!(runs(3, 8, 7, Overflow::Truncate), [run(0, 7..8)]);
        assert_eq!(runs(10, 4, 1, Overflow::Wrap), [run(6, 3..4), run(7, 0..3)]);
        assert_eq!(runs(4, 4, 0, Overflow::Wrap), [run(0, 0..4)]);
        for mut queue in on_both(2, 1) {
            queue.enqueue(&matrix(&[1.0, 2.0, 3.0, 4.0, 5.0], 1), origin(&[1, 2, 3, 4, 5]), Overflow::Wrap).unwrap();
            assert_eq!(
                (queue.read_rows().unwrap().1, &queue.samples[..], queue.next),
                (vec![5.0, 4.0], &[5, 4][..], 1)
            );
        }
    }

    #[test]
    fn an_images_own_rows_are_left_out_and_too_few_others_are_an_error() {
        for mut queue in on_both(3, 2) {
            let origin = Origin { samples: &[7, 8, 9], labels: &[0, 1, 2], step: 4 };
            queue.enqueue(&matrix(&[1.0, 0.0, 0.8, 0.6, 0.0, 2.0], 2), origin, Overflow::Wrap).unwrap();
            let search = |k, exclude| queue.search(&matrix(&[1.0, 0.0], 2), k, exclude);
            assert_eq!(search(2, None).unwrap().origins.wait().unwrap().labels, [0, 1]);
            let others = search(2, Some(&[7])).unwrap();
            assert_close("vectors", &others.vectors.as_vec(), &[0.8, 0.6, 0.0, 1.0], 1e-6);
            assert_close("norms", &others.norms.as_vec(), &[1.0, 2.0], 1e-6);
            let others = others.origins.wait().unwrap();
            assert_close("similarities", &others.similarities, &[0.8, 0.0], 1e-6);
            assert_eq!((others.samples, others.labels, others.steps), (vec![8, 9], vec![1, 2], vec![4, 4]));
            let error = search(3, Some(&[7])).err().expect("a row is the image's own").to_string();
            assert!(error.contains("holds only 2 of other images") && error.contains("3 are needed"), "{error}");
        }
    }

    /// What a step diagnoses later is what its search found, though the batch has been enqueued since.
    #[test]
    fn neighbours_are_told_as_they_were_when_they_were_found() {
        for mut queue in on_both(2, 1) {
            queue.enqueue(&matrix(&[1.0, -1.0], 1), origin(&[4, 5]), Overflow::Wrap).unwrap();
            let near = queue.search(&matrix(&[1.0], 1), 1, None).unwrap();
            queue.enqueue(&matrix(&[-1.0, 1.0], 1), origin(&[6, 7]), Overflow::Wrap).unwrap();
            assert_eq!((near.vectors.as_vec(), near.origins.wait().unwrap().samples), (vec![1.0], vec![4]));
        }
    }

    #[test]
    fn a_queue_is_full_when_every_row_came_from_a_sample() {
        let mut queue = Queue::<f32>::new("queue", 2, 1, 0);
        queue.enqueue(&matrix(&[1.0], 1), origin(&[0]), Overflow::Wrap).unwrap();
        assert!(!queue.is_full());
        queue.enqueue(&matrix(&[1.0], 1), origin(&[1]), Overflow::Wrap).unwrap();
        assert!(queue.is_full());
    }

    #[test]
    fn state_survives_a_round_trip_between_devices() {
        let mut queue = Queue::<f32>::new("queue", 5, 2, 3);
        queue.enqueue(&matrix(&[1.0, 0.0], 2), origin(&[4]), Overflow::Wrap).unwrap();
        for mut other in on_both(5, 2) {
            other.restore(&queue.state().unwrap()).unwrap();
            assert_eq!(other.state().unwrap(), queue.state().unwrap());
            assert_eq!(other.copies, queue.copies);
        }
    }
}

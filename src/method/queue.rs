//! FIFO queue C of the momentum branch's projections: the candidate neighbours.

use rand_distr::{Distribution, StandardNormal};

use super::Overflow;
use crate::ops::{
    Real,
    named::{NamedTensor, Values},
    normalize::{norm, normalize_rows},
    random::{Purpose, stream},
    topk::top_k,
};

/// Marks a row that came from no sample, or a sample without label.
const NONE: i64 = -1;

/// The queue. Rows are kept at unit length, as the search needs them, with the lengths beside them.
#[derive(Clone, Debug)]
pub struct Queue<E> {
    dim: usize,
    /// [length, dim]
    bank: Vec<E>,
    /// Length of each row as it came.
    norms: Vec<E>,
    /// Sample that each row came from.
    samples: Vec<i64>,
    /// That sample's label, for diagnostics only.
    labels: Vec<i64>,
    /// Where the next row goes.
    next: usize,
}

/// The K nearest rows of each query, nearest first.
#[derive(Clone, Debug)]
pub struct Neighbours<E> {
    pub k: usize,
    /// [n, k, dim], unit length
    pub vectors: Vec<E>,
    /// Length of each vector as it came, [n, k].
    pub norms: Vec<E>,
    /// [n, k]; -1 where there is none
    pub labels: Vec<i64>,
}

/// The queue holds too few rows of other images.
#[derive(Debug, thiserror::Error)]
#[error(
    "the queue of {length} rows holds only {available} of other images for some image, but method.k is {k}: \
     use a longer method.queue_length, a smaller method.k, or method.exclude_self: false"
)]
pub struct TooFewNeighbours {
    length: usize,
    available: usize,
    k: usize,
}

impl<E: Real> Queue<E> {
    /// A queue of random unit vectors.
    pub fn new(length: usize, dim: usize, seed: u64) -> Self {
        let mut random = stream(seed, Purpose::Queue, 0, 0, 0);
        let mut draw = || -> f64 { StandardNormal.sample(&mut random) };
        let mut bank: Vec<E> = (0..length * dim).map(|_| E::of(draw())).collect();
        normalize_rows(&mut bank, dim);
        Self {
            dim,
            bank,
            norms: vec![E::one(); length],
            samples: vec![NONE; length],
            labels: vec![NONE; length],
            next: 0,
        }
    }

    /// The K rows nearest to each of `queries` [n, dim] (unit length) by cosine; with `exclude`, rows that came from
    /// the query's own sample are left out.
    ///
    /// # Errors
    /// When fewer than K rows are left.
    pub fn search(&self, queries: &[E], k: usize, exclude: Option<&[i64]>) -> Result<Neighbours<E>, TooFewNeighbours> {
        let own = |query: usize, row: usize| exclude.is_some_and(|samples| samples[query] == self.samples[row]);
        let found = top_k(queries, &self.bank, self.dim, k, own);
        if found.k < k {
            return Err(TooFewNeighbours { length: self.samples.len(), available: found.k, k });
        }
        let indices = found.indices;
        let vectors = indices.iter().flat_map(|i| &self.bank[i * self.dim..(i + 1) * self.dim]).copied().collect();
        let norms = indices.iter().map(|i| self.norms[*i]).collect();
        let labels = indices.iter().map(|i| self.labels[*i]).collect();
        Ok(Neighbours { k, vectors, norms, labels })
    }

    /// Writes `rows` [n, dim] of any length over the oldest ones.
    pub fn enqueue(&mut self, rows: &[E], samples: &[i64], labels: &[i64], overflow: Overflow) {
        let length = self.samples.len();
        for (i, row) in rows.chunks_exact(self.dim).enumerate() {
            let kept = &mut self.bank[self.next * self.dim..][..self.dim];
            kept.copy_from_slice(row);
            normalize_rows(kept, self.dim);
            self.norms[self.next] = E::of(norm(row));
            self.samples[self.next] = samples[i];
            self.labels[self.next] = labels[i];
            self.next = (self.next + 1) % length;
            if self.next == 0 && overflow == Overflow::Truncate {
                return;
            }
        }
    }

    /// Everything that a checkpoint must hold.
    pub fn state(&self) -> Vec<NamedTensor<E>> {
        let length = self.samples.len();
        vec![
            NamedTensor::real("queue.bank", &[length, self.dim], self.bank.clone()),
            NamedTensor::real("queue.norms", &[length], self.norms.clone()),
            NamedTensor::integer("queue.samples", &[length], self.samples.clone()),
            NamedTensor::integer("queue.labels", &[length], self.labels.clone()),
            NamedTensor::integer("queue.next", &[1], vec![self.next as i64]),
        ]
    }

    /// Takes over what [`Queue::state`] gave; tensors of other names are left alone.
    pub fn restore(&mut self, tensors: &[NamedTensor<E>]) {
        for tensor in tensors {
            match (tensor.name.as_str(), &tensor.values) {
                ("queue.bank", Values::Real(bank)) => self.bank.clone_from(bank),
                ("queue.norms", Values::Real(norms)) => self.norms.clone_from(norms),
                ("queue.samples", Values::Integer(samples)) => self.samples.clone_from(samples),
                ("queue.labels", Values::Integer(labels)) => self.labels.clone_from(labels),
                ("queue.next", Values::Integer(next)) => self.next = next[0] as usize,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden::{Golden, assert_close};

    #[test]
    fn rows_go_in_first_and_out_first_as_in_the_reference() {
        let golden = Golden::load("queue_fifo");
        for (overflow, name) in [(Overflow::Truncate, "truncate"), (Overflow::Wrap, "wrap")] {
            let mut queue = Queue::<f32>::new(8, 4, 0);
            let initial = golden.get::<f32>("in.bank");
            queue.enqueue(&initial, &[0; 8], &[0; 8], Overflow::Wrap);
            for (i, batch) in golden.get::<f32>("in.batches").chunks_exact(12).enumerate() {
                queue.enqueue(batch, &[1, 2, 3], &[0, 0, 0], overflow);
                let rows = queue.bank.chunks(4).zip(&queue.norms);
                let raw: Vec<f32> = rows.flat_map(|(row, norm)| row.iter().map(move |v| v * norm)).collect();
                assert_close("bank", &raw, &golden.get(&format!("out.{name}.bank{i}")), 1e-6);
                assert_eq!(queue.next as i64, golden.integers(&format!("out.{name}.ptr"))[i]);
            }
        }
    }

    #[test]
    fn an_images_own_rows_are_left_out_and_too_few_others_are_an_error() {
        let mut queue = Queue::<f32>::new(3, 2, 0);
        queue.enqueue(&[1.0, 0.0, 0.8, 0.6, 0.0, 1.0], &[7, 8, 9], &[0, 1, 2], Overflow::Wrap);
        let search = |k, exclude| queue.search(&[1.0, 0.0], k, exclude);
        assert_eq!(search(2, None).unwrap().labels, [0, 1]);
        let others = search(2, Some(&[7])).unwrap();
        assert_eq!((others.labels, others.vectors), (vec![1, 2], vec![0.8, 0.6, 0.0, 1.0]));
        let error = search(3, Some(&[7])).unwrap_err().to_string();
        assert!(error.contains("holds only 2 of other images") && error.contains("method.k is 3"), "{error}");
    }

    #[test]
    fn state_survives_a_round_trip() {
        let mut queue = Queue::<f32>::new(5, 2, 3);
        queue.enqueue(&[1.0, 0.0], &[4], &[2], Overflow::Wrap);
        let mut other = Queue::<f32>::new(5, 2, 9);
        other.restore(&queue.state());
        assert_eq!(format!("{queue:?}"), format!("{other:?}"));
    }
}

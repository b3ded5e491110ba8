//! FIFO queue C of the momentum branch's projections: the candidate neighbours.

use rand_distr::{Distribution, StandardNormal};

use super::Overflow;
use crate::ops::{
    Real,
    named::{NamedTensor, Values},
    normalize::{norm, normalize_rows},
    product::Products,
    random::{Purpose, stream},
    topk::{TopK, top_k},
};

/// Marks a row that came from no sample, or a sample without label.
const NONE: i64 = -1;

/// The queue. Rows are kept at unit length, as the search needs them, with the lengths beside them.
#[derive(Clone, Debug)]
pub struct Queue<E> {
    /// What its tensors are called in a checkpoint.
    name: &'static str,
    dim: usize,
    /// [length, dim]
    bank: Vec<E>,
    /// Length of each row as it came.
    norms: Vec<E>,
    /// Sample that each row came from.
    samples: Vec<i64>,
    /// That sample's label, for diagnostics only.
    labels: Vec<i64>,
    /// Training step in which each row came.
    steps: Vec<i64>,
    /// Where the next row goes.
    next: usize,
    /// How the search reads factors.
    products: Products,
    /// Where it is searched, if that is a GPU.
    #[cfg(any(test, feature = "cuda"))]
    mirror: Option<Box<super::mirror::Mirror>>,
}

/// The K nearest rows of each query, nearest first.
#[derive(Clone, Debug)]
pub struct Neighbours<E> {
    pub k: usize,
    /// [n, k, dim], unit length
    pub vectors: Vec<E>,
    /// Length of each vector as it came, [n, k].
    pub norms: Vec<E>,
    /// Sample of each vector, [n, k]; -1 where there is none.
    pub samples: Vec<i64>,
    /// [n, k]; -1 where there is none
    pub labels: Vec<i64>,
    /// Training step in which each vector came, [n, k]; -1 where it was there from the start.
    pub steps: Vec<i64>,
    /// Cosine of each vector with its query, [n, k].
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
            bank,
            norms: vec![E::one(); length],
            samples: vec![NONE; length],
            labels: vec![NONE; length],
            steps: vec![NONE; length],
            next: 0,
            products: Products::Full,
            #[cfg(any(test, feature = "cuda"))]
            mirror: None,
        }
    }

    /// Has the search read factors as `products` says. Rows themselves stay as they are.
    pub fn set_products(&mut self, products: Products) {
        self.products = products;
    }

    /// Has it searched on a GPU.
    #[cfg(any(test, feature = "cuda"))]
    pub fn search_on(&mut self, gpu: &crate::ops::cuda::Gpu) {
        self.mirror = Some(Box::new(super::mirror::Mirror::new(gpu)));
    }

    /// All rows [length, dim], at unit length.
    pub fn rows(&self) -> &[E] {
        &self.bank
    }

    /// Whether every row came from a sample.
    pub fn is_full(&self) -> bool {
        self.samples.iter().all(|sample| *sample != NONE)
    }

    /// The K rows nearest to each of `queries` [n, dim] (unit length) by cosine; with `exclude`, rows that came from
    /// the query's own sample are left out.
    ///
    /// # Errors
    /// [`TooFewNeighbours`] when fewer than K rows are left; or when the GPU fails that searches.
    pub fn search(&self, queries: &[E], k: usize, exclude: Option<&[i64]>) -> anyhow::Result<Neighbours<E>> {
        let found = self.find(queries, k, exclude)?;
        if found.k < k {
            return Err(TooFewNeighbours { length: self.samples.len(), available: found.k, k }.into());
        }
        let indices = found.indices;
        let vectors = indices.iter().flat_map(|i| &self.bank[i * self.dim..(i + 1) * self.dim]).copied().collect();
        let norms = indices.iter().map(|i| self.norms[*i]).collect();
        let of_each = |values: &[i64]| indices.iter().map(|i| values[*i]).collect();
        let (samples, labels, steps) = (of_each(&self.samples), of_each(&self.labels), of_each(&self.steps));
        Ok(Neighbours { k, vectors, norms, samples, labels, steps, similarities: found.scores })
    }

    fn find(&self, queries: &[E], k: usize, exclude: Option<&[i64]>) -> anyhow::Result<TopK<E>> {
        #[cfg(any(test, feature = "cuda"))]
        if let Some(mirror) = &self.mirror {
            let rows = super::mirror::Rows { bank: &self.bank, samples: &self.samples, dim: self.dim };
            return Ok(mirror.search(rows, queries, k, exclude)?);
        }
        let own = |query: usize, row: usize| exclude.is_some_and(|samples| samples[query] == self.samples[row]);
        Ok(top_k(queries, &self.bank, self.dim, k, self.products, own))
    }

    /// Writes `rows` [n, dim] of any length over the oldest ones.
    pub fn enqueue(&mut self, rows: &[E], origin: Origin, overflow: Overflow) {
        let length = self.samples.len();
        for (i, row) in rows.chunks_exact(self.dim).enumerate() {
            let kept = &mut self.bank[self.next * self.dim..][..self.dim];
            kept.copy_from_slice(row);
            normalize_rows(kept, self.dim);
            self.norms[self.next] = E::of(norm(row));
            self.samples[self.next] = origin.samples[i];
            self.labels[self.next] = origin.labels[i];
            self.steps[self.next] = origin.step as i64;
            #[cfg(any(test, feature = "cuda"))]
            self.mirror.iter_mut().for_each(|mirror| mirror.changed(self.next));
            self.next = (self.next + 1) % length;
            if self.next == 0 && overflow == Overflow::Truncate {
                return;
            }
        }
    }

    /// Everything that a checkpoint must hold.
    pub fn state(&self) -> Vec<NamedTensor<E>> {
        let length = self.samples.len();
        let name = |part: &str| format!("{}.{part}", self.name);
        vec![
            NamedTensor::real(name("bank"), &[length, self.dim], self.bank.clone()),
            NamedTensor::real(name("norms"), &[length], self.norms.clone()),
            NamedTensor::integer(name("samples"), &[length], self.samples.clone()),
            NamedTensor::integer(name("labels"), &[length], self.labels.clone()),
            NamedTensor::integer(name("steps"), &[length], self.steps.clone()),
            NamedTensor::integer(name("next"), &[1], vec![self.next as i64]),
        ]
    }

    /// Takes over what [`Queue::state`] gave; tensors of other names are left alone.
    pub fn restore(&mut self, tensors: &[NamedTensor<E>]) {
        #[cfg(any(test, feature = "cuda"))]
        self.mirror.iter_mut().for_each(|mirror| mirror.forget());
        for tensor in tensors {
            let part = tensor.name.strip_prefix(self.name).and_then(|rest| rest.strip_prefix('.'));
            match (part, &tensor.values) {
                (Some("bank"), Values::Real(bank)) => self.bank.clone_from(bank),
                (Some("norms"), Values::Real(norms)) => self.norms.clone_from(norms),
                (Some("samples"), Values::Integer(samples)) => self.samples.clone_from(samples),
                (Some("labels"), Values::Integer(labels)) => self.labels.clone_from(labels),
                (Some("steps"), Values::Integer(steps)) => self.steps.clone_from(steps),
                (Some("next"), Values::Integer(next)) => self.next = next[0] as usize,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::golden::{Golden, assert_close};

    /// Samples that are their own labels, of step 0.
    fn origin(samples: &[i64]) -> Origin<'_> {
        Origin { samples, labels: samples, step: 0 }
    }

    #[test]
    fn rows_go_in_first_and_out_first_as_in_the_reference() {
        let golden = Golden::load("queue_fifo");
        for (overflow, name) in [(Overflow::Truncate, "truncate"), (Overflow::Wrap, "wrap")] {
            let mut queue = Queue::<f32>::new("queue", 8, 4, 0);
            let initial = golden.get::<f32>("in.bank");
            queue.enqueue(&initial, origin(&[0; 8]), Overflow::Wrap);
            for (i, batch) in golden.get::<f32>("in.batches").chunks_exact(12).enumerate() {
                queue.enqueue(batch, origin(&[1, 2, 3]), overflow);
                let rows = queue.bank.chunks(4).zip(&queue.norms);
                let raw: Vec<f32> = rows.flat_map(|(row, norm)| row.iter().map(move |v| v * norm)).collect();
                assert_close("bank", &raw, &golden.get(&format!("out.{name}.bank{i}")), 1e-6);
                assert_eq!(queue.next as i64, golden.integers(&format!("out.{name}.ptr"))[i]);
            }
        }
    }

    #[test]
    fn an_images_own_rows_are_left_out_and_too_few_others_are_an_error() {
        let mut queue = Queue::<f32>::new("queue", 3, 2, 0);
        let origin = Origin { samples: &[7, 8, 9], labels: &[0, 1, 2], step: 4 };
        queue.enqueue(&[1.0, 0.0, 0.8, 0.6, 0.0, 1.0], origin, Overflow::Wrap);
        let search = |k, exclude| queue.search(&[1.0, 0.0], k, exclude);
        assert_eq!(search(2, None).unwrap().labels, [0, 1]);
        let others = search(2, Some(&[7])).unwrap();
        assert_eq!((others.labels, others.vectors), (vec![1, 2], vec![0.8, 0.6, 0.0, 1.0]));
        assert_eq!((others.samples, others.steps), (vec![8, 9], vec![4, 4]));
        let error = search(3, Some(&[7])).unwrap_err().to_string();
        assert!(error.contains("holds only 2 of other images") && error.contains("3 are needed"), "{error}");
    }

    #[test]
    fn a_queue_is_full_when_every_row_came_from_a_sample() {
        let mut queue = Queue::<f32>::new("queue", 2, 1, 0);
        queue.enqueue(&[1.0], origin(&[0]), Overflow::Wrap);
        assert!(!queue.is_full());
        queue.enqueue(&[1.0], origin(&[1]), Overflow::Wrap);
        assert!(queue.is_full());
    }

    #[test]
    fn state_survives_a_round_trip() {
        let mut queue = Queue::<f32>::new("queue", 5, 2, 3);
        queue.enqueue(&[1.0, 0.0], origin(&[4]), Overflow::Wrap);
        let mut other = Queue::<f32>::new("queue", 5, 2, 9);
        other.restore(&queue.state());
        assert_eq!(format!("{queue:?}"), format!("{other:?}"));
    }
}

//! The rows of a queue, on the host or on a GPU: there they are searched, gathered and overwritten.

use dfdx::prelude::*;
use rayon::prelude::*;

use super::{Marks, Run};
#[cfg(any(test, feature = "cuda"))]
use crate::ops::{
    cuda::{Gpu, GpuError},
    topk::cuda::BankGpu,
};
use crate::{
    method::device_error,
    ops::{
        Real,
        backend::Backend,
        later::Later,
        normalize::{norm, normalize_rows},
        seam::Matrix,
        topk::Bank,
    },
};

/// Rows at unit length, and the lengths that they came with.
#[derive(Debug)]
pub(super) enum Rows<E> {
    /// On the host: rows [length, dim], lengths [length].
    Host(Bank<E>, Vec<E>),
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

impl<E: Real> Rows<E> {
    /// Moves them to a GPU.
    ///
    /// # Errors
    /// When memory runs out.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn move_to(&mut self, gpu: &Gpu, dim: usize, marks: &Marks) -> Result<(), GpuError> {
        if let Rows::Host(bank, norms) = self {
            let narrow = |values: &[E]| values.iter().map(|v| v.as_f64() as f32).collect::<Vec<_>>();
            let bank = BankGpu::new(gpu, dim, &narrow(bank.rows()), &narrow(norms), marks.all(0..norms.len()))?;
            *self = Rows::Gpu(gpu.clone(), Box::new(bank));
        }
        Ok(())
    }

    /// All of them, [length, dim].
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn all<D: Backend<E>>(&self, device: &D, shape: (usize, usize)) -> anyhow::Result<Matrix<E, D>> {
        match self {
            Rows::Host(bank, _) => device.try_tensor_from_vec(bank.rows().to_vec(), shape).map_err(device_error),
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(gpu, bank) => Ok(device.tensor_at(gpu, bank.rows(), shape)?),
        }
    }

    /// The `k` rows nearest to each of `queries` [n, dim], which must be there, but for those of the samples `exclude` [n].
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn search<D: Backend<E>>(
        &self,
        queries: &Matrix<E, D>,
        k: usize,
        exclude: Option<&[i64]>,
        marks: &Marks,
    ) -> anyhow::Result<Neighbours<E, D>> {
        let ((n, dim), device) = (*queries.shape(), queries.device());
        match self {
            Rows::Host(bank, norms) => {
                let own = |query: usize, row: usize| exclude.is_some_and(|out| out[query] == marks.samples[row]);
                let (found, bank) = (bank.top_k(&queries.as_vec(), k, own), bank.rows());
                let indices = found.indices;
                let mut vectors = vec![E::zero(); n * k * dim];
                vectors.par_chunks_exact_mut(dim).zip(&indices).with_min_len(k).for_each(|(vector, i)| {
                    vector.copy_from_slice(&bank[i * dim..(i + 1) * dim]);
                });
                let vectors = device.try_tensor_from_vec(vectors, (n * k, dim)).map_err(device_error)?;
                let norms = indices.iter().map(|i| norms[*i]).collect();
                let norms = device.try_tensor_from_vec(norms, (n * k,)).map_err(device_error)?;
                let of_each = |values: &[i64]| indices.iter().map(|i| values[*i]).collect();
                let (samples, labels, steps) = (of_each(&marks.samples), of_each(&marks.labels), of_each(&marks.steps));
                let origins = Origins { k, samples, labels, steps, similarities: found.scores };
                Ok(Neighbours { k, vectors, norms, origins: Later::now(origins) })
            }
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(gpu, bank) => {
                let lent = D::lend(gpu, queries)?;
                let found = bank.search(lent.view(), n, k, exclude)?;
                let near = bank.gather(&found)?;
                let vectors = device.tensor_at(gpu, near.vectors.view(), (n * k, dim))?;
                let norms = device.tensor_at(gpu, near.norms.view(), (n * k,))?;
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

    /// Overwrites rows by those of a batch, of any length; `marks` are the new ones already.
    ///
    /// # Errors
    /// When the device fails.
    #[cfg_attr(
        not(any(test, feature = "cuda")),
        expect(unused_variables, reason = "a GPU alone keeps marks with its rows")
    )]
    pub(super) fn write<D: Backend<E>>(
        &mut self,
        batch: &Matrix<E, D>,
        runs: &[Run],
        marks: &Marks,
    ) -> anyhow::Result<()> {
        let dim = batch.shape().1;
        match self {
            Rows::Host(bank, norms) => {
                let values = batch.as_vec();
                for Run { from, to } in runs {
                    let rows = &values[from * dim..][..to.len() * dim];
                    let lengths = norms[to.clone()].iter_mut().zip(rows.chunks_exact(dim));
                    lengths.for_each(|(length, row)| *length = E::of(norm(row)));
                    let mut unit = rows.to_vec();
                    normalize_rows(&mut unit, dim);
                    bank.write(to.start, &unit);
                }
            }
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(gpu, bank) => {
                let lent = D::lend(gpu, batch)?;
                for Run { from, to } in runs {
                    let rows = lent.view().part(from * dim..(from + to.len()) * dim);
                    bank.write(to.start, rows, marks.all(to.clone()))?;
                }
            }
        }
        Ok(())
    }

    /// The rows, and the lengths that they came with. Waits for a GPU.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn read(&self) -> anyhow::Result<(Vec<E>, Vec<E>)> {
        match self {
            Rows::Host(bank, norms) => Ok((bank.rows().to_vec(), norms.clone())),
            #[cfg(any(test, feature = "cuda"))]
            Rows::Gpu(_, bank) => {
                let (rows, norms) = bank.read()?;
                let widen = |values: Vec<f32>| values.into_iter().map(|v| E::of(v.into())).collect();
                Ok((widen(rows), widen(norms)))
            }
        }
    }
}

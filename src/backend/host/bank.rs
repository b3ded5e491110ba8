//! The bank of a queue on the host: its rows and their lengths.

use std::{convert::Infallible, ops::Range};

use dfdx::prelude::*;
use rayon::prelude::*;

use super::Host;
use crate::{
    backend::{Banks, Marks, Memory, Nearest, Origins},
    ops::{
        Real,
        matmul::MatmulPrecision,
        normalize::{norm, normalize_rows},
        pending::Pending,
        tensor::{CpuTensors, Rows, to_vec},
        topk,
    },
};

/// Rows at unit length, and the lengths that they had before.
pub struct Bank<E> {
    rows: topk::Bank<E>,
    norms: Vec<E>,
}

impl<E: Real> Banks for Host<E>
where
    Cpu: CpuTensors<E>,
{
    type Bank = Bank<E>;

    fn bank(&self, rows: Vec<E>, norms: Vec<E>, _: &Marks, matmul: MatmulPrecision) -> Result<Bank<E>, Infallible> {
        let dim = rows.len() / norms.len();
        Ok(Bank { rows: topk::Bank::new(rows, dim, matmul), norms })
    }

    fn read_bank(&self, bank: &Bank<E>) -> Result<[Vec<E>; 2], Infallible> {
        Ok([bank.rows.rows().to_vec(), bank.norms.clone()])
    }

    fn bank_rows(&self, bank: &Bank<E>, shape: (usize, usize)) -> anyhow::Result<Rows<E, Cpu>> {
        Ok(Rows::new(self.tensors().try_tensor_from_vec(bank.rows.rows().to_vec(), shape)?, ()))
    }

    fn overwrite(
        &self,
        bank: &mut Bank<E>,
        first: usize,
        batch: &Rows<E, Cpu>,
        rows: Range<usize>,
        _: &Marks,
    ) -> anyhow::Result<()> {
        let dim = batch.shape().1;
        let mut unit = to_vec(batch.tensor())[rows.start * dim..rows.end * dim].to_vec();
        let norms = bank.norms[first..][..rows.len()].iter_mut().zip(unit.chunks_exact(dim));
        norms.for_each(|(length, row)| *length = E::of(norm(row)));
        normalize_rows(&mut unit, dim);
        bank.rows.write(first, &unit);
        Ok(())
    }

    fn nearest(
        &self,
        bank: &Bank<E>,
        queries: &Rows<E, Cpu>,
        k: usize,
        exclude: Option<&[i64]>,
        marks: &Marks,
    ) -> anyhow::Result<Nearest<Self>> {
        let (n, dim) = queries.shape();
        // Each rank searches for its share of the queries. The results are indices of rows, and every rank has all rows.
        let share = self.ranks.share(n);
        let own = |query: usize, row: usize| exclude.is_some_and(|out| out[share.start + query] == marks.samples[row]);
        let found = bank.rows.top_k(&to_vec(queries.tensor())[share.start * dim..share.end * dim], k, own);
        let (indices, similarities) = (self.ranks.gather(&found.indices), self.ranks.gather(&found.scores));
        let rows = bank.rows.rows();
        let mut vectors = vec![E::zero(); n * k * dim];
        vectors.par_chunks_exact_mut(dim).zip(&indices).with_min_len(k).for_each(|(vector, i)| {
            vector.copy_from_slice(&rows[i * dim..(i + 1) * dim]);
        });
        let vectors = Rows::new(self.tensors().try_tensor_from_vec(vectors, (n * k, dim))?, ());
        let norms = indices.iter().map(|i| bank.norms[*i]).collect();
        let norms = Rows::new(self.tensors().try_tensor_from_vec(norms, (n * k, 1))?, ());
        let of_each = |values: &[i64]| indices.iter().map(|i| values[*i]).collect();
        let (samples, labels, steps) = (of_each(&marks.samples), of_each(&marks.labels), of_each(&marks.steps));
        let origins = Origins { k, samples, labels, steps, similarities };
        Ok(Nearest { k, vectors, norms, origins: Pending::now(origins) })
    }
}

//! The bank of a queue on a GPU: its rows, their lengths, and their marks.

use std::ops::Range;

use super::Gpu;
use crate::{
    backend::{Banks, Contrasts, Marks, Nearest, Origins},
    ops::{
        cuda::GpuError,
        matmul::MatmulPrecision,
        pending::Pending,
        tensor::{GpuTensors, Rows},
        topk::cuda::BankGpu,
    },
};

impl<D: GpuTensors> Contrasts for Gpu<D> {}

impl<D: GpuTensors> Banks for Gpu<D> {
    type Bank = BankGpu;

    /// The search on a GPU always reads factors in full precision.
    fn bank(&self, rows: Vec<f32>, norms: Vec<f32>, marks: &Marks, _: MatmulPrecision) -> Result<BankGpu, GpuError> {
        let dim = rows.len() / norms.len();
        BankGpu::new(self.device(), dim, &rows, &norms, marks.of(0..norms.len()))
    }

    fn read_bank(&self, bank: &BankGpu) -> Result<[Vec<f32>; 2], GpuError> {
        let (rows, norms) = bank.read()?;
        Ok([rows, norms])
    }

    fn bank_rows(&self, bank: &BankGpu, shape: (usize, usize)) -> anyhow::Result<Rows<f32, D>> {
        Ok(self.tensors.rows_at(self.device(), bank.rows(), shape)?)
    }

    fn overwrite(
        &self,
        bank: &mut BankGpu,
        first: usize,
        batch: &Rows<f32, D>,
        rows: Range<usize>,
        marks: &Marks,
    ) -> anyhow::Result<()> {
        let (dim, count) = (batch.shape().1, rows.len());
        let lent = D::lend(self.device(), batch)?;
        let rows = lent.view().part(rows.start * dim..rows.end * dim);
        Ok(bank.write(first, rows, marks.of(first..first + count))?)
    }

    fn nearest(
        &self,
        bank: &BankGpu,
        queries: &Rows<f32, D>,
        k: usize,
        exclude: Option<&[i64]>,
        _: &Marks,
    ) -> anyhow::Result<Nearest<Self>> {
        let ((n, dim), gpu) = (queries.shape(), self.device());
        let lent = D::lend(gpu, queries)?;
        let found = bank.search(lent.view(), n, k, exclude)?;
        let near = bank.gather(&found)?;
        let vectors = self.tensors.rows_at(gpu, near.vectors.view(), (n * k, dim))?;
        let norms = self.tensors.rows_at(gpu, near.norms.view(), (n * k, 1))?;
        let (marks, scores) = (near.marks.read_later::<i64>()?, found.scores.read_later::<f32>()?);
        let origins = Pending::new(move || {
            let (marks, similarities) = (marks.wait()?, scores.wait()?);
            let mark = |i: usize| marks[i * n * k..][..n * k].to_vec();
            Ok(Origins { k, samples: mark(0), labels: mark(1), steps: mark(2), similarities })
        });
        Ok(Nearest { k, vectors, norms, origins })
    }
}

//! The backend for the host: this project's own kernels on all CPU cores.

mod bank;
mod contrasts;
mod convolutions;
mod perceptrons;
mod transformers;

use std::{convert::Infallible, ops::Range};

use dfdx::prelude::*;

use super::Memory;
use crate::{
    ops::{
        Real,
        buffers::{Buffer, Buffers},
        parts::{self, Threads},
        tensor::{CpuTensors, Rows},
    },
    ranks::Ranks,
};

/// The host, with its pool of memory and its ranks.
#[derive(Clone, Debug, Default)]
pub struct Host<E> {
    pool: Buffers<E>,
    tensors: Cpu,
    ranks: Ranks,
}

impl<E: Real> Host<E> {
    /// The host as one of `ranks`.
    pub fn among(ranks: Ranks) -> Self {
        Self { ranks, ..Self::default() }
    }
}

impl<E: Real> Memory for Host<E>
where
    Cpu: CpuTensors<E>,
{
    type Real = E;
    type Error = Infallible;
    type Tensors = Cpu;
    type Buffer = Buffer<E>;
    type Params = Vec<E>;

    const ASYNCHRONOUS: bool = false;

    fn tensors(&self) -> &Cpu {
        &self.tensors
    }

    fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    fn with_ranks(&self, ranks: Ranks) -> Self {
        Self { ranks, ..self.clone() }
    }

    fn gather(&self, own: Buffer<E>) -> Result<Buffer<E>, Infallible> {
        Ok(if self.ranks.is_alone() { own } else { self.ranks.gather(&own).into() })
    }

    fn share(&self, all: Buffer<E>) -> Result<Buffer<E>, Infallible> {
        Ok(if self.ranks.is_alone() { all } else { all[self.ranks.share(all.len())].to_vec().into() })
    }

    fn sum_over_ranks(&self, values: &mut Buffer<E>) -> Result<(), Infallible> {
        self.ranks.sum(values);
        Ok(())
    }

    fn buffer(&self, values: Vec<E>) -> Result<Buffer<E>, Infallible> {
        Ok(values.into())
    }

    fn zeros(&self, len: usize) -> Result<Buffer<E>, Infallible> {
        Ok(Buffer::zeros(len))
    }

    fn zero(&self, buffer: &mut Buffer<E>) -> Result<(), Infallible> {
        buffer.fill(E::zero());
        Ok(())
    }

    fn read(&self, buffer: &Buffer<E>) -> Result<Vec<E>, Infallible> {
        Ok(buffer.to_vec())
    }

    fn write(&self, buffer: &mut Buffer<E>, values: &[E]) -> Result<(), Infallible> {
        buffer[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn images(&self, values: Vec<E>) -> Result<Buffer<E>, Infallible> {
        self.buffer(values)
    }

    fn params(&self, values: Vec<E>, _: usize) -> Result<Vec<E>, Infallible> {
        Ok(values)
    }

    fn read_params(&self, params: &Vec<E>) -> Result<Vec<E>, Infallible> {
        Ok(params.clone())
    }

    fn write_params(&self, params: &mut Vec<E>, values: &[E]) -> Result<(), Infallible> {
        params[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn weight(&self, params: &Vec<E>, range: Range<usize>, shape: (usize, usize)) -> anyhow::Result<Rows<E, Cpu>> {
        Ok(Rows::new(self.tensors.try_tensor_from_vec(params[range].to_vec(), shape)?, ()))
    }

    fn rows(&self, buffer: &Buffer<E>, shape: (usize, usize)) -> anyhow::Result<Rows<E, Cpu>> {
        Ok(Rows::new(self.tensors.try_tensor_from_vec(buffer.to_vec(), shape)?, ()))
    }

    fn gradient(&self, gradients: &mut Gradients<E, Cpu>, of: &Rows<E, Cpu>) -> anyhow::Result<Buffer<E>> {
        Ok(gradients.get_or_alloc_mut(of.tensor())?.to_vec().into())
    }

    fn begin_gradient(
        &self,
        gradients: &mut Gradients<E, Cpu>,
        of: &Rows<E, Cpu>,
        start: &Buffer<E>,
        range: Range<usize>,
    ) -> anyhow::Result<()> {
        gradients.get_or_alloc_mut(of.tensor())?.copy_from_slice(&start[range]);
        Ok(())
    }

    fn len(&self, buffer: &Buffer<E>) -> usize {
        buffer.len()
    }

    fn part(&self, buffer: &Buffer<E>, range: Range<usize>) -> Result<Buffer<E>, Infallible> {
        let mut part = self.pool.take(range.len());
        part.copy_from_slice(&buffer[range]);
        Ok(part)
    }

    fn scale(&self, values: &mut Buffer<E>, factor: f64) -> Result<(), Infallible> {
        let factor = E::of(factor);
        values.iter_mut().for_each(|value| *value *= factor);
        Ok(())
    }

    fn take_out(&self, buffer: &mut Buffer<E>, range: Range<usize>) -> Result<Buffer<E>, Infallible> {
        let values = buffer[range.clone()].to_vec();
        buffer[range].fill(E::zero());
        Ok(values.into())
    }

    fn put(&self, buffer: &mut Buffer<E>, range: Range<usize>, values: &Buffer<E>) -> Result<(), Infallible> {
        buffer[range].copy_from_slice(values);
        Ok(())
    }

    fn add(&self, total: &mut Buffer<E>, range: Range<usize>, more: &Buffer<E>) -> Result<(), Infallible> {
        parts::add(&mut total[range], more, Threads::All);
        Ok(())
    }
}

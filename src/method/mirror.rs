//! A queue's rows on a GPU, brought up to date when they are searched.

use std::sync::{Mutex, PoisonError};

use crate::ops::{
    Real,
    cuda::{Gpu, GpuError},
    topk::{TopK, cuda::BankGpu},
};

/// Where a queue is searched. A clone starts empty.
#[derive(Debug)]
pub struct Mirror {
    gpu: Gpu,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bank: Option<BankGpu>,
    /// Rows that changed since, as runs of neighbours: first row and number.
    stale: Vec<(usize, usize)>,
}

/// The queue's rows and the samples that they came from.
#[derive(Clone, Copy)]
pub struct Rows<'a, E> {
    pub bank: &'a [E],
    pub samples: &'a [i64],
    pub dim: usize,
}

impl Clone for Mirror {
    fn clone(&self) -> Self {
        Self::new(&self.gpu)
    }
}

impl Mirror {
    /// An empty one.
    pub fn new(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), state: Mutex::default() }
    }

    /// Notes that a row has changed.
    pub fn changed(&mut self, row: usize) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        match state.stale.last_mut() {
            Some((first, count)) if *first + *count == row => *count += 1,
            _ => state.stale.push((row, 1)),
        }
    }

    /// Notes that everything has changed.
    pub fn forget(&mut self) {
        *self.state.get_mut().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    /// The `k` rows nearest to each of `queries`, but for those of its own sample, where samples are given.
    ///
    /// # Errors
    /// When the device fails.
    pub fn search<E: Real>(
        &self,
        rows: Rows<E>,
        queries: &[E],
        k: usize,
        exclude: Option<&[i64]>,
    ) -> Result<TopK<E>, GpuError> {
        let narrow = |values: &[E]| values.iter().map(|v| v.as_f64() as f32).collect::<Vec<_>>();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { bank, stale } = &mut *state;
        let bank = match bank {
            None => bank.insert(BankGpu::new(&self.gpu, rows.dim, &narrow(rows.bank), rows.samples)?),
            Some(bank) => {
                for (first, count) in stale.iter() {
                    let values = narrow(&rows.bank[first * rows.dim..(first + count) * rows.dim]);
                    bank.write(*first, &values, &rows.samples[*first..first + count])?;
                }
                bank
            }
        };
        stale.clear();
        let found = bank.search_for(&narrow(queries), k, exclude)?;
        let scores = found.scores.into_iter().map(|score| E::of(score as f64)).collect();
        Ok(TopK { k: found.k, indices: found.indices, scores })
    }
}

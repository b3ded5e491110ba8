//! Large buffers that are handed back and used again, so that a training step does not ask the system for fresh pages.

use super::Real;

/// Buffers of earlier use.
#[derive(Debug)]
pub struct Buffers<E> {
    free: Vec<Vec<E>>,
}

impl<E> Default for Buffers<E> {
    fn default() -> Self {
        Self { free: Vec::new() }
    }
}

impl<E: Real> Buffers<E> {
    /// A buffer of `len` elements whose values are unspecified.
    pub fn take(&mut self, len: usize) -> Vec<E> {
        let fits = |b: &Vec<E>| b.capacity() >= len && b.capacity() <= 2 * len;
        // What had the same length needs no zeros.
        let cost = |i: &usize| (self.free[*i].len() != len, self.free[*i].capacity());
        let best = (0..self.free.len()).filter(|i| fits(&self.free[*i])).min_by_key(cost);
        let mut buffer = best.map_or_else(|| Vec::with_capacity(len), |i| self.free.swap_remove(i));
        buffer.resize(len, E::zero());
        buffer
    }

    /// Hands a buffer back.
    pub fn give(&mut self, buffer: Vec<E>) {
        self.free.push(buffer);
    }
}

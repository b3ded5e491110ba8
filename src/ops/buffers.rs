//! Host buffers that return to the pool they came from when they are dropped, so that a training step does not ask the system for
//! fresh pages.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Real,
    scratch::{Aligned, LINE, filled},
};

/// A pool of host memory. Clones share the pool.
#[derive(Clone, Debug)]
pub struct Buffers<E>(Arc<Mutex<Vec<Aligned<E>>>>);

impl<E> Default for Buffers<E> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<E: Real> Buffers<E> {
    /// A buffer of `len` elements whose values are unspecified.
    pub fn take(&self, len: usize) -> Buffer<E> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |b: &Aligned<E>| b.len() >= len && b.len() <= 2 * len;
        let best = (0..free.len()).filter(|i| fits(&free[*i])).min_by_key(|i| free[*i].len());
        let values = best.map(|i| free.swap_remove(i));
        drop(free);
        Buffer { values: values.unwrap_or_else(|| filled(len, E::zero())), len, home: Home::Pool(self.clone()) }
    }
}

/// A buffer of elements in host memory.
#[derive(Debug)]
pub struct Buffer<E: Real> {
    /// At least `len` elements.
    values: Aligned<E>,
    len: usize,
    home: Home<E>,
}

/// Where the memory of a buffer goes when the buffer is dropped.
#[derive(Debug)]
enum Home<E> {
    Pool(Buffers<E>),
    /// The working memory of the thread that drops the buffer, or of all threads if the memory is large.
    Thread,
    /// The system's allocator. The vector holds the elements.
    System(Vec<E>),
}

impl<E: Real> Buffer<E> {
    /// A buffer of zeros that starts at a cache line.
    pub fn zeros(len: usize) -> Self {
        Self { values: filled(len, E::zero()), len, home: Home::Pool(Buffers::default()) }
    }

    /// A buffer of working memory of this thread (see [`Scratch`](super::scratch::Scratch)). Its values are unspecified. Memory
    /// that a thread reuses again and again should stay in its core's cache.
    pub fn of_thread(len: usize) -> Self {
        Self { values: E::take_scratch(len), len, home: Home::Thread }
    }
}

impl<E: Real> From<Vec<E>> for Buffer<E> {
    fn from(values: Vec<E>) -> Self {
        Self { len: values.len(), values: Aligned::new(LINE), home: Home::System(values) }
    }
}

impl<E: Real> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        match &self.home {
            Home::System(values) => values,
            Home::Pool(_) | Home::Thread => &self.values[..self.len],
        }
    }
}

impl<E: Real> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        match &mut self.home {
            Home::System(values) => values,
            Home::Pool(_) | Home::Thread => &mut self.values[..self.len],
        }
    }
}

impl<E: Real> Drop for Buffer<E> {
    fn drop(&mut self) {
        let values = std::mem::replace(&mut self.values, Aligned::new(LINE));
        match &self.home {
            Home::Pool(pool) => pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(values),
            Home::Thread => E::give_scratch(values),
            Home::System(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_begins_a_cache_line() {
        for n in [1, 257, 5000, 1 << 20] {
            for buffer in [Buffer::<f32>::zeros(n), Buffer::of_thread(n), Buffers::default().take(n)] {
                assert_eq!((buffer.len(), buffer.as_ptr() as usize % LINE), (n, 0));
            }
        }
    }

    #[test]
    fn memory_is_used_again_where_it_is_about_as_large() {
        let pool = Buffers::<f32>::default();
        let first = pool.take(1000);
        let at = first.as_ptr();
        drop(first);
        assert_ne!(pool.take(100).as_ptr(), at, "most of it would lie idle");
        let again = pool.take(600);
        assert_eq!((again.as_ptr(), again.len()), (at, 600));
        assert_ne!(pool.take(600).as_ptr(), at, "it is in use");
        drop(again);
        assert_eq!(pool.take(1000).len(), 1000);
    }
}

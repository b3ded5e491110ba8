//! Working memory that kernels reuse instead of asking the system for fresh pages.
//!
//! Small memory returns to a pool of its thread, large memory to a pool of all threads. Otherwise each thread would in time hold
//! the memory that the largest step needs.

use std::{
    cell::RefCell,
    sync::{Mutex, PoisonError},
};

use aligned_vec::{AVec, ConstAlign};

/// Bytes of a cache line, and of the widest vector. The system's allocator aligns to 16 bytes only. A vector of 64 bytes would
/// then always span two lines and take two accesses.
pub const LINE: usize = 64;

/// Memory that starts at a cache line.
pub type Aligned<E> = AVec<E, ConstAlign<LINE>>;

/// Memory with `len` copies of `value`.
pub fn filled<E: Clone>(len: usize, value: E) -> Aligned<E> {
    let mut memory = Aligned::with_capacity(LINE, len);
    memory.resize(len, value);
    memory
}

/// Number of elements from which on memory belongs to the pool of all threads (1 MiB in f32).
const SHARED: usize = 1 << 18;

/// A scalar with pools of working memory.
pub trait Scratch: Copy + Sized + 'static {
    /// Takes at least `len` elements of unspecified value from a pool.
    fn take_scratch(len: usize) -> Aligned<Self>;

    /// Puts memory back into its pool.
    fn give_scratch(memory: Aligned<Self>);

    /// Calls `f` with `len` elements of unspecified value.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
        // The memory leaves the pool while it is in use: `f` may take more memory, and its thread may run other rayon tasks in
        // the meantime.
        let mut memory = Self::take_scratch(len);
        let result = f(&mut memory[..len]);
        Self::give_scratch(memory);
        result
    }
}

/// Takes the smallest memory of at least `len` elements, else the longest.
fn take<T>(free: &mut Vec<Aligned<T>>, len: usize) -> Option<Aligned<T>> {
    let enough = (0..free.len()).filter(|i| free[*i].len() >= len).min_by_key(|i| free[*i].len());
    let best = enough.or_else(|| (0..free.len()).max_by_key(|i| free[*i].len()))?;
    Some(free.swap_remove(best))
}

macro_rules! scratch {
    ($scalar:ty) => {
        const _: () = {
            thread_local! {
                static OWN: RefCell<Vec<Aligned<$scalar>>> = const { RefCell::new(Vec::new()) };
            }
            static OF_ALL: Mutex<Vec<Aligned<$scalar>>> = Mutex::new(Vec::new());

            /// Calls `look` with the pool of memory of `len` elements.
            fn pool<R>(len: usize, look: impl FnOnce(&mut Vec<Aligned<$scalar>>) -> R) -> R {
                match len < SHARED {
                    true => OWN.with_borrow_mut(look),
                    false => look(&mut OF_ALL.lock().unwrap_or_else(PoisonError::into_inner)),
                }
            }

            impl Scratch for $scalar {
                fn take_scratch(len: usize) -> Aligned<Self> {
                    let found = pool(len, |free| take(free, len));
                    let mut memory = found.unwrap_or_else(|| Aligned::new(LINE));
                    if memory.len() < len {
                        memory.resize(len, 0.0);
                    }
                    memory
                }

                fn give_scratch(memory: Aligned<Self>) {
                    pool(memory.len(), |free| free.push(memory));
                }
            }
        };
    };
}

scratch!(f32);
scratch!(f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_memory_that_is_long_enough_is_taken_else_the_longest() {
        let mut free: Vec<_> = [30, 10, 20].map(|len| filled(len, 0.0f32)).into();
        let lengths = [15, 15, 15, 15].map(|len| take(&mut free, len).map(|memory| memory.len()));
        assert_eq!(lengths, [Some(20), Some(30), Some(10), None]);
    }
}

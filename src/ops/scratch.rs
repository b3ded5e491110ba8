//! Working memory that a thread uses again and again, so that kernels do not ask the system for fresh pages.

use std::cell::RefCell;

/// A scalar with a pool of working memory per thread.
pub trait Scratch: Copy + Sized + 'static {
    /// At least `len` elements of unspecified value, from this thread's pool.
    fn take_scratch(len: usize) -> Vec<Self>;

    /// Puts memory into this thread's pool.
    fn give_scratch(memory: Vec<Self>);

    /// Calls `f` with `len` elements of unspecified value.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
        // Taken out while in use: `f` may ask for more, and its thread may meanwhile do other work.
        let mut memory = Self::take_scratch(len);
        let result = f(&mut memory[..len]);
        Self::give_scratch(memory);
        result
    }
}

/// The smallest buffer that is long enough, else the longest.
fn take<T>(free: &mut Vec<Vec<T>>, len: usize) -> Option<Vec<T>> {
    let enough = (0..free.len()).filter(|i| free[*i].len() >= len).min_by_key(|i| free[*i].len());
    let best = enough.or_else(|| (0..free.len()).max_by_key(|i| free[*i].len()))?;
    Some(free.swap_remove(best))
}

macro_rules! scratch {
    ($scalar:ty) => {
        const _: () = {
            thread_local! {
                static FREE: RefCell<Vec<Vec<$scalar>>> = const { RefCell::new(Vec::new()) };
            }

            impl Scratch for $scalar {
                fn take_scratch(len: usize) -> Vec<Self> {
                    let mut memory = FREE.with_borrow_mut(|free| take(free, len)).unwrap_or_default();
                    if memory.len() < len {
                        memory.resize(len, 0.0);
                    }
                    memory
                }

                fn give_scratch(memory: Vec<Self>) {
                    FREE.with_borrow_mut(|free| free.push(memory));
                }
            }
        };
    };
}

scratch!(f32);
scratch!(f64);

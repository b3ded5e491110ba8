//! Working memory that a thread uses again and again, so that kernels do not ask the system for fresh pages.

use std::cell::RefCell;

use aligned_vec::{AVec, ConstAlign};

/// Bytes of a cache line, and of the widest vector. The system aligns to 16; a vector of 64 bytes would then always lie in two
/// lines, and take two accesses.
pub const LINE: usize = 64;

/// Memory that begins a cache line.
pub type Aligned<E> = AVec<E, ConstAlign<LINE>>;

/// `len` elements of a value.
pub fn filled<E: Clone>(len: usize, value: E) -> Aligned<E> {
    let mut memory = Aligned::with_capacity(LINE, len);
    memory.resize(len, value);
    memory
}

/// A scalar with a pool of working memory per thread.
pub trait Scratch: Copy + Sized + 'static {
    /// At least `len` elements of unspecified value, from this thread's pool.
    fn take_scratch(len: usize) -> Aligned<Self>;

    /// Puts memory into this thread's pool.
    fn give_scratch(memory: Aligned<Self>);

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
fn take<T>(free: &mut Vec<Aligned<T>>, len: usize) -> Option<Aligned<T>> {
    let enough = (0..free.len()).filter(|i| free[*i].len() >= len).min_by_key(|i| free[*i].len());
    let best = enough.or_else(|| (0..free.len()).max_by_key(|i| free[*i].len()))?;
    Some(free.swap_remove(best))
}

macro_rules! scratch {
    ($scalar:ty) => {
        const _: () = {
            thread_local! {
                static FREE: RefCell<Vec<Aligned<$scalar>>> = const { RefCell::new(Vec::new()) };
            }

            impl Scratch for $scalar {
                fn take_scratch(len: usize) -> Aligned<Self> {
                    let found = FREE.with_borrow_mut(|free| take(free, len));
                    let mut memory = found.unwrap_or_else(|| Aligned::new(LINE));
                    if memory.len() < len {
                        memory.resize(len, 0.0);
                    }
                    memory
                }

                fn give_scratch(memory: Aligned<Self>) {
                    FREE.with_borrow_mut(|free| free.push(memory));
                }
            }
        };
    };
}

scratch!(f32);
scratch!(f64);

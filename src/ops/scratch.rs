//! Working memory that a thread uses again and again, so that kernels do not ask the system for fresh pages.

use std::cell::RefCell;

/// A scalar with a pool of working memory per thread.
pub trait Scratch: Sized + 'static {
    /// Calls `f` with `len` elements of unspecified value.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
}

/// The smallest buffer that is long enough, else the longest.
fn take<T>(free: &mut Vec<Vec<T>>, len: usize) -> Option<Vec<T>> {
    let enough = (0..free.len()).filter(|i| free[*i].len() >= len).min_by_key(|i| free[*i].len());
    let best = enough.or_else(|| (0..free.len()).max_by_key(|i| free[*i].len()))?;
    Some(free.swap_remove(best))
}

macro_rules! scratch {
    ($scalar:ty) => {
        impl Scratch for $scalar {
            fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
                thread_local! {
                    static FREE: RefCell<Vec<Vec<$scalar>>> = const { RefCell::new(Vec::new()) };
                }
                // Taken out while in use: `f` may ask for more, and its thread may meanwhile do other work.
                let mut buffer = FREE.with_borrow_mut(|free| take(free, len)).unwrap_or_default();
                if buffer.len() < len {
                    buffer.resize(len, 0.0);
                }
                let result = f(&mut buffer[..len]);
                FREE.with_borrow_mut(|free| free.push(buffer));
                result
            }
        }
    };
}

scratch!(f32);
scratch!(f64);

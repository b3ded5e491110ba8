//! Working memory that a thread uses again and again, so that kernels do not ask the system for fresh pages.

use std::cell::RefCell;

/// A scalar with a pool of working memory per thread.
pub trait Scratch: Sized + 'static {
    /// Calls `f` with `len` elements of unspecified value.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
}

macro_rules! scratch {
    ($scalar:ty) => {
        impl Scratch for $scalar {
            fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
                thread_local! {
                    static FREE: RefCell<Vec<Vec<$scalar>>> = const { RefCell::new(Vec::new()) };
                }
                // Taken out while in use: `f` may ask for more, and its thread may meanwhile do other work.
                let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
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

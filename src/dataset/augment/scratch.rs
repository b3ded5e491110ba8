//! Buffers of a thread that all augmentation steps share.

use std::cell::RefCell;

use super::{
    planes::{BlurBuffers, Planes},
    resize::Resizer,
};

/// Buffers that grow to the largest image that the thread has seen, and are kept.
#[derive(Default)]
pub(super) struct Scratch {
    pub resizer: Resizer,
    pub planes: Planes,
    pub blur: BlurBuffers,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs `work` with this thread's buffers. `work` must not call `with_scratch` again.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(work)
}

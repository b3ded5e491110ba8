//! The buffers that the steps of a thread share.

use std::cell::RefCell;

use super::{
    planes::{BlurBuffers, Planes},
    resize::Resizer,
};

/// Buffers that grow to the largest image a thread has seen and stay.
#[derive(Default)]
pub(super) struct Scratch {
    pub resizer: Resizer,
    pub planes: Planes,
    pub blur: BlurBuffers,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs `work` with this thread's buffers. `work` must not call back here.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(work)
}

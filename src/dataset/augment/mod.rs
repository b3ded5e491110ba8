//! Augmentation of one view of one image, with torchvision's semantics.
//!
//! Steps work on 8-bit planes and round where Pillow rounds. All random numbers come from the caller's stream, so a view does not
//! depend on the thread or on the order of views.

mod blur;
mod color;
mod config;
mod crop;
pub mod cuda;
mod eval;
mod filters;
#[cfg(test)]
mod golden;
mod hue;
mod jitter;
mod normalize;
mod pipeline;
mod planes;
mod resize;
mod scratch;

pub use config::*;
pub use eval::EvalTransform;
pub use pipeline::{Drawn, Pipeline, draw_all};
pub use resize::shrink;

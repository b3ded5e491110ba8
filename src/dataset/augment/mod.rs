//! Augmentation of one view of one image, with torchvision's semantics.
//!
//! Steps work on 8-bit planes and round where Pillow rounds. Random numbers come from the caller's stream alone, so a
//! view is the same whatever the thread and the order.

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

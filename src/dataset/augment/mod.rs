//! Augmentation of one view of one image, with torchvision's semantics.

mod config;

pub use config::*;

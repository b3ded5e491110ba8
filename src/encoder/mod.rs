//! Encoders: images in, features out, gradients by hand. Unaware of methods and data sets.

mod config;

pub use config::*;

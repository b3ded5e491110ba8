//! Self-supervised methods: heads, neighbour queue and loss, on encoder outputs. Unaware of encoders and data sets.

mod config;

pub use config::*;

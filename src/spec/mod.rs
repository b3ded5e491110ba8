//! A YAML spec becomes a located, schema-checked [`Experiment`].

mod experiment;
mod load;

pub use experiment::Experiment;
pub use load::{Loaded, SpecErrors, load, semantic};

//! A YAML spec becomes a located, schema-checked [`Experiment`].

mod experiment;

pub use experiment::Experiment;

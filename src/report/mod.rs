//! Compares and exports runs; one file per output format.

mod artifacts;
pub mod audit;
pub mod comparison;
pub mod contents;
pub mod csv;
pub mod diff;
pub mod duplicates;
pub mod embeddings;
pub mod file;
pub mod flips;
pub mod grid;
pub mod group;
pub mod html;
pub mod json;
pub mod markdown;
mod mcnemar;
pub mod paired;
pub mod parquet;
pub mod predictions;
mod provenance;
pub mod runs;
pub mod safetensors;
pub mod table;
pub mod tables;
pub mod tensorboard;
pub mod views;

pub use artifacts::{state, steps};
pub use comparison::Comparison;
pub use runs::{FindError, Found, Run, Runs, find};

/// The format in which a comparison is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Table for a terminal.
    Table,
    Json,
    Csv,
    Markdown,
}

impl Format {
    /// The text of `comparison`, ending in a line break.
    ///
    /// # Errors
    /// When a value cannot be written in the format.
    pub fn render(self, comparison: &Comparison) -> anyhow::Result<String> {
        match self {
            Format::Table => Ok(table::render(comparison)),
            Format::Json => json::render(comparison),
            Format::Csv => csv::render(comparison),
            Format::Markdown => Ok(markdown::render(comparison)),
        }
    }
}

#[cfg(test)]
mod samples;

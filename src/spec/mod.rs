//! A YAML spec becomes a located, schema-checked [`Experiment`], or several of them.
//!
//! `read` makes a value and the places of its parts out of a text, `extends` and `merge` lay it over its bases,
//! `overrides` changes it, `variant` drops what a newly chosen variant does not take, `sweep` makes points of it, `check` holds each against the JSON Schema and `rules` against
//! what no schema can say. All errors come at once, as [`SpecErrors`].

mod check;
mod describe;
mod editor;
mod error;
mod experiment;
mod extends;
mod format;
mod load;
mod locate;
mod merge;
mod origin;
mod overrides;
mod problem;
mod read;
mod reference;
mod rules;
mod schema;
mod semantic;
mod suggest;
mod sweep;
mod synonyms;
mod variant;
mod walk;

pub use check::ONE_LINE;
pub use editor::schema_text;
pub use error::{SpecError, SpecErrors};
pub use experiment::Experiment;
pub use format::Format;
pub use load::{Changes, Loaded, Point, Points, load, load_points, load_text, outline};
pub use locate::Place;
pub use origin::{Leaf, leaves, resolved_text};
pub use problem::Problem;
pub use reference::reference;
pub use schema::schema;
pub use semantic::semantic;

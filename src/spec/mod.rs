//! Loads a YAML spec as one or several checked [`Experiment`]s, and records the place of each value.
//!
//! `read` parses a text into a value and the places of its parts. `extends` and `merge` merge it into its bases. `overrides`
//! changes it. `variant` drops keys that a newly chosen variant does not have. `sweep` derives points from it. `check` validates
//! each point against the JSON Schema, and `rules` checks what no schema can express. All errors are reported at once, as
//! [`SpecErrors`].

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
pub use sweep::plain;

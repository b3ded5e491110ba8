//! One file per command.

pub mod compare;
pub mod export;
pub mod schema;
pub mod validate;

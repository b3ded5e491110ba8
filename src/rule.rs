//! What the values of a spec must be, said once beside the types that they are of: for specs, where all that is wrong is told at
//! once, and for the code that goes by the values.

/// A rule that values break.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}; {hint}", keys[0])]
pub struct Broken {
    /// The keys that do not go together, first the one that is most likely meant otherwise.
    pub keys: Vec<&'static str>,
    /// Why they do not.
    pub what: String,
    /// What goes.
    pub allowed: String,
    /// What to do.
    pub hint: String,
}

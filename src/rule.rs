//! A broken rule between values of a spec. Each rule is written once, beside the type that it concerns. It is applied both by the
//! check of specs, which reports all errors at once, and by the code that uses the values.

/// A rule that values break.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {what}; {hint}", keys[0])]
pub struct Broken {
    /// The keys that do not fit together. The first one is the most likely mistake.
    pub keys: Vec<&'static str>,
    /// Why they do not fit.
    pub what: String,
    /// What would be allowed.
    pub allowed: String,
    /// What to do.
    pub hint: String,
}

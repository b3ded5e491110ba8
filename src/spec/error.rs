//! The errors of a spec, all at once, each with its place. They are rendered for people here, and for programs by
//! `snclr validate --json`.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{locate::Place, problem::Problem};

/// One problem, with its place and the key that it concerns.
#[derive(Clone, Debug)]
pub struct SpecError {
    /// None if the problem concerns the file as a whole.
    pub place: Option<Place>,
    /// Dotted key; empty if the problem concerns the spec as a whole.
    pub key: String,
    pub problem: Problem,
}

impl SpecError {
    /// `specs/a.yaml:12:3` or `--set method.tau=x`.
    fn location(&self, path: &Path) -> String {
        self.place.as_ref().map_or_else(|| path.display().to_string(), ToString::to_string)
    }

    /// Whether this is the same mistake as `other`, found at another point of a sweep. Values of unknown keys are not compared.
    pub(super) fn is_same_as(&self, other: &SpecError) -> bool {
        let found = |error: &SpecError| match &error.problem {
            Problem::UnknownKey { .. } => None,
            problem => problem.found().map(str::to_owned),
        };
        (&self.place, &self.key) == (&other.place, &other.key)
            && self.problem.to_string() == other.problem.to_string()
            && found(self) == found(other)
    }

    fn render(&self, path: &Path, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "error: {}: ", self.location(path))?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        writeln!(f, "{}", self.problem)?;
        if let Some(found) = self.problem.found() {
            writeln!(f, "  found:   {found}")?;
        }
        let allowed = self.problem.allowed();
        if !allowed.is_empty() {
            writeln!(f, "  allowed: {}", allowed.join(", "))?;
        }
        if let Some(help) = self.problem.help() {
            writeln!(f, "  help:    {help}")?;
        }
        Ok(())
    }
}

/// All problems of one spec, in the order of its file, then of its bases, then of overrides. `Display` writes the whole text for
/// the terminal, including the prefixes `error:`.
#[derive(Debug)]
pub struct SpecErrors {
    /// The spec's file, as it was given.
    pub path: PathBuf,
    /// Never empty.
    pub errors: Vec<SpecError>,
}

impl SpecErrors {
    pub(super) fn new(path: &Path, mut errors: Vec<SpecError>) -> Self {
        errors.sort_by_key(|error| match &error.place {
            None => (0, None, 0, 0),
            Some(Place::File { file, line, column }) if **file == *path => (1, None, *line, *column),
            Some(Place::File { file, line, column }) => (2, Some(file.clone()), *line, *column),
            Some(Place::Set(_) | Place::Method(_)) => (3, None, 0, 0),
            Some(Place::Sweep(_)) => (4, None, 0, 0),
        });
        SpecErrors { path: path.to_owned(), errors }
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for error in &self.errors {
            error.render(&self.path, f)?;
            writeln!(f)?;
        }
        let count = self.errors.len();
        write!(f, "{}: {count} error{}", self.path.display(), if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for SpecErrors {}

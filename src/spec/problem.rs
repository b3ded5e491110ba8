//! All problems that a spec can have, as data. `error.rs` formats them as text.

use super::locate::Place;

/// One kind of problem, with the facts needed to explain it. `Display` writes the headline.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be opened or is not text.
    #[error("cannot be read: {reason}")]
    Unreadable { reason: String, nearest: Option<String> },
    /// The text is not YAML.
    #[error("not valid YAML: {reason}")]
    Syntax { reason: String, hint: Option<&'static str> },
    /// The file holds nothing but comments.
    #[error("the spec is empty")]
    Empty,
    /// A key occurs twice in one section.
    #[error("key given twice")]
    DuplicateKey { first: Place },
    /// YAML that specs do not support: tags, NaN, sections as keys.
    #[error("{what}")]
    Unsupported { what: String, hint: String },
    /// A `--set` that cannot be applied.
    #[error("{reason}")]
    Override { reason: String, hint: String },
    /// A base that cannot be opened or is not text.
    #[error("the base cannot be read: {reason}")]
    Base { found: String, reason: String, nearest: Option<String> },
    /// Specs that extend each other.
    #[error("specs extend each other in a circle")]
    Circle { found: String },
    /// A sweep where one experiment is wanted, or one that cannot be carried out.
    #[error("{reason}")]
    Sweep { reason: String, found: String, hint: String },
    /// A key that its section does not have.
    #[error("unknown key")]
    UnknownKey {
        found: String,
        allowed: Vec<String>,
        /// Keys of the same section, or whole dotted keys of others.
        nearest: Vec<String>,
        /// Explains why the key is wrong here, if more is known than `nearest` says.
        note: Option<String>,
    },
    /// A key that its section must have.
    #[error("required key is missing")]
    MissingKey {
        name: String,
        parent: String,
        allowed: Vec<String>,
        about: Option<String>,
        /// Whether its section comes from `--method` or `--set`.
        by_option: bool,
    },
    /// A value of another type.
    #[error("wrong type")]
    WrongType { found: String, allowed: String, hint: Option<String> },
    /// A text that is none of the choices.
    #[error("unknown value")]
    UnknownValue { found: String, allowed: Vec<String>, nearest: Option<String> },
    /// A number beyond its bounds.
    #[error("out of range")]
    OutOfRange { found: String, allowed: String, nearest: Option<String> },
    /// A list that is too short or too long.
    #[error("wrong number of items")]
    WrongLength { found: String, allowed: String },
    /// A list with equal items.
    #[error("an item is listed twice")]
    Repeated { found: String },
    /// A text of the wrong form.
    #[error("not a valid name")]
    BadName { found: String, nearest: String },
    /// Keys that are each valid but do not fit together.
    #[error("{what}")]
    Rule { what: String, found: String, allowed: String, hint: String },
    /// Any other problem, found only by a later check.
    #[error("{reason}")]
    Other { reason: String, found: Option<String> },
}

impl Problem {
    /// The key or value in the spec that is wrong.
    pub fn found(&self) -> Option<&str> {
        match self {
            Problem::Base { found, .. }
            | Problem::Circle { found }
            | Problem::Sweep { found, .. }
            | Problem::UnknownKey { found, .. }
            | Problem::WrongType { found, .. }
            | Problem::UnknownValue { found, .. }
            | Problem::OutOfRange { found, .. }
            | Problem::WrongLength { found, .. }
            | Problem::Repeated { found }
            | Problem::BadName { found, .. }
            | Problem::Rule { found, .. } => Some(found),
            Problem::Other { found, .. } => found.as_deref(),
            Problem::Unreadable { .. }
            | Problem::Syntax { .. }
            | Problem::Empty
            | Problem::DuplicateKey { .. }
            | Problem::Unsupported { .. }
            | Problem::Override { .. }
            | Problem::MissingKey { .. } => None,
        }
    }

    /// The allowed keys or values, or a description of them.
    pub fn allowed(&self) -> Vec<&str> {
        match self {
            Problem::UnknownKey { allowed, .. }
            | Problem::UnknownValue { allowed, .. }
            | Problem::MissingKey { allowed, .. } => allowed.iter().map(String::as_str).collect(),
            Problem::WrongType { allowed, .. }
            | Problem::OutOfRange { allowed, .. }
            | Problem::WrongLength { allowed, .. }
            | Problem::Rule { allowed, .. } => vec![allowed],
            Problem::Repeated { .. } => vec!["items that differ"],
            Problem::BadName { .. } => {
                vec!["letters, digits, `.`, `_` and `-`, with a letter or digit first; 200 characters at most"]
            }
            _ => vec![],
        }
    }

    /// The nearest match: what was probably meant.
    pub fn suggestion(&self) -> Option<&str> {
        match self {
            Problem::UnknownKey { nearest, .. } => nearest.first().map(String::as_str),
            Problem::Unreadable { nearest, .. }
            | Problem::Base { nearest, .. }
            | Problem::UnknownValue { nearest, .. }
            | Problem::OutOfRange { nearest, .. } => nearest.as_deref(),
            Problem::BadName { nearest, .. } => Some(nearest),
            _ => None,
        }
    }

    /// How to solve the problem.
    pub fn help(&self) -> Option<String> {
        match self {
            Problem::Unreadable { nearest: Some(nearest), .. } | Problem::Base { nearest: Some(nearest), .. } => {
                Some(format!("did you mean `{nearest}`?"))
            }
            Problem::Base { nearest: None, .. } => {
                Some("give the path of a spec, relative to the folder of the file that extends it".to_owned())
            }
            Problem::Circle { .. } => Some("remove `extends` from one of them".to_owned()),
            Problem::Unreadable { nearest: None, .. } => {
                Some("check the path, and that the file may be read".to_owned())
            }
            Problem::Syntax { hint, .. } => hint.map(str::to_owned),
            Problem::Empty => {
                Some("start from a copy of specs/quickstart.yaml; `snclr schema` lists every key".to_owned())
            }
            Problem::DuplicateKey { first: Place::File { line, column, .. } } => {
                Some(format!("it is given first at line {line}, column {column}; keep one of the two"))
            }
            Problem::DuplicateKey { .. } => Some("keep one of the two".to_owned()),
            Problem::Unsupported { hint, .. }
            | Problem::Override { hint, .. }
            | Problem::Sweep { hint, .. }
            | Problem::Rule { hint, .. } => Some(hint.clone()),
            Problem::UnknownKey { note: Some(note), .. } => Some(note.clone()),
            Problem::UnknownKey { nearest, .. } if nearest.is_empty() => {
                Some("remove it, or use one of the allowed keys".to_owned())
            }
            Problem::UnknownKey { nearest, .. } => {
                let quoted: Vec<String> = nearest.iter().map(|key| format!("`{key}`")).collect();
                Some(format!("did you mean {}?", quoted.join(" or ")))
            }
            Problem::MissingKey { name, parent, about, by_option, .. } => {
                let place = if parent.is_empty() { "the spec".to_owned() } else { format!("`{parent}`") };
                let about = about.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
                Some(match by_option {
                    true => format!("add `--set {parent}.{name}=…`{about}"),
                    false => format!("add `{name}:` to {place}{about}"),
                })
            }
            Problem::WrongType { hint, .. } => hint.clone(),
            Problem::UnknownValue { nearest: Some(nearest), .. } => Some(format!("did you mean `{nearest}`?")),
            Problem::UnknownValue { nearest: None, .. } => Some("use one of the allowed values".to_owned()),
            Problem::OutOfRange { nearest, .. } => {
                nearest.as_ref().map(|value| format!("the nearest allowed value is {value}"))
            }
            Problem::WrongLength { .. } => None,
            Problem::Repeated { .. } => Some("remove the repeated item".to_owned()),
            Problem::BadName { nearest, .. } => Some(format!("did you mean `{nearest}`?")),
            Problem::Other { .. } => None,
        }
    }
}

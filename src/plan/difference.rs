//! Finds the leaves in which two sets of components differ.

use std::{collections::BTreeSet, fmt};

use serde_json::Value;

use crate::artifact::Components;

/// A leaf with its values, as JSON texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub leaf: String,
    /// None where the first set does not have it.
    pub old: Option<String>,
    /// None where the second set does not have it.
    pub new: Option<String>,
}

impl Difference {
    /// All leaves in which two sets differ, in the order of their names.
    pub fn all(old: &Components, new: &Components) -> Vec<Difference> {
        let value = |components: &Components, leaf: &str| components.0.get(leaf).cloned();
        let leaves = differences(old, new).into_iter();
        leaves.map(|leaf| Difference { leaf: leaf.to_owned(), old: value(old, leaf), new: value(new, leaf) }).collect()
    }
}

/// `leaf old -> new`, for people.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let text = |value: &Option<String>| value.as_deref().map_or("(none)".to_owned(), show);
        write!(f, "{} {} -> {}", self.leaf, text(&self.old), text(&self.new))
    }
}

/// Names of the leaves in which two sets differ, in order.
pub(super) fn differences<'a>(old: &'a Components, new: &'a Components) -> Vec<&'a str> {
    let names: BTreeSet<_> = old.0.keys().chain(new.0.keys()).collect();
    // Where a section is empty in one set and has fields in the other, only the fields are reported.
    let empty = |name: &String| [old, new].iter().any(|side| side.0.get(name).is_some_and(|text| text == "{}"));
    let filled =
        |name: &String| names.iter().any(|other| other.strip_prefix(name.as_str()).is_some_and(|r| r.starts_with('.')));
    let differs = |name: &&&String| old.0.get(**name) != new.0.get(**name) && !(empty(name) && filled(name));
    names.iter().filter(differs).map(|name| name.as_str()).collect()
}

/// A leaf for people: no quotes, hashes cut short, 32-bit numbers without the digits that widening gave them.
fn show(text: &str) -> String {
    match serde_json::from_str(text) {
        Ok(value) => show_value(&value),
        Err(_) => text.to_owned(),
    }
}

fn show_value(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) => text[..8].to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(wide) if number.is_f64() && f64::from(wide as f32) == wide => (wide as f32).to_string(),
            _ => number.to_string(),
        },
        Value::Array(items) => format!("[{}]", items.iter().map(show_value).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

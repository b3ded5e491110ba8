//! Lists the origin of each value of a resolved spec: a line of a file, the command line, or the default.

use serde_json::Value;

use super::{
    load::Loaded,
    locate::{Node, Place},
};

/// Column of the comments with the origins.
const COLUMN: usize = 44;

/// A value of a resolved spec. A list is one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    /// Dotted key.
    pub key: String,
    pub value: Value,
    /// `file:line`, `--set …`, `--sweep …` or `default`; several when items of a list were overridden one by one.
    pub source: String,
}

/// Every value of `loaded`, in the order of the resolved spec.
pub fn leaves(loaded: &Loaded) -> Vec<Leaf> {
    let mut leaves = vec![];
    walk(&loaded.value(), Some(&loaded.places), &mut vec![], &mut |path, value, source| {
        if let Some(source) = source {
            leaves.push(Leaf { key: path.join("."), value: value.clone(), source });
        }
    });
    leaves
}

/// The resolved spec as YAML, each value with a comment that says where it comes from.
pub fn resolved_text(loaded: &Loaded) -> String {
    let mut text = String::new();
    walk(&loaded.value(), Some(&loaded.places), &mut vec![], &mut |path, value, source| {
        let Some(name) = path.last() else { return };
        let line = format!("{}{name}:", "  ".repeat(path.len() - 1));
        text += &match source {
            None => line,
            Some(source) => format!("{:<COLUMN$} # {source}", format!("{line} {}", yaml(value))),
        };
        text += "\n";
    });
    text
}

/// Visits each section (without a source), and then the values inside it (each with its source).
fn walk(
    value: &Value,
    node: Option<&Node>,
    path: &mut Vec<String>,
    visit: &mut impl FnMut(&[String], &Value, Option<String>),
) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            visit(path, value, None);
            for (name, inner) in map {
                path.push(name.clone());
                walk(inner, node.and_then(|node| node.child(name)), path, visit);
                path.pop();
            }
        }
        _ => visit(path, value, Some(node.map_or("default".to_owned(), source))),
    }
}

fn source(node: &Node) -> String {
    let name = |place: &Place| match place {
        Place::File { file, line, .. } => format!("{}:{line}", file.display()),
        other => other.to_string(),
    };
    let mut all = vec![name(&node.value)];
    for item in node.children().filter(|item| !matches!(item.value, Place::File { .. })) {
        let item = name(&item.value);
        if !all.contains(&item) {
            all.push(item);
        }
    }
    all.join(", ")
}

/// Formats a value on one line. JSON is valid YAML; plain texts need no quotes.
fn yaml(value: &Value) -> String {
    match value {
        Value::String(text) if !text.contains('\n') => {
            serde_yaml::to_string(text).map_or_else(|_| value.to_string(), |text| text.trim_end().to_owned())
        }
        Value::Array(items) => format!("[{}]", items.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec::load_text;

    const SPEC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/specs/quickstart.yaml");

    fn loaded() -> Loaded {
        let text = std::fs::read_to_string(SPEC).unwrap();
        let set = ["method.tau=0.5", "knn.k.1=7", "description='a: b'"].map(str::to_owned);
        load_text(Path::new("q.yaml"), &text, &set).unwrap()
    }

    #[test]
    fn every_value_has_its_source() {
        let leaves = leaves(&loaded());
        let source = |key: &str| leaves.iter().find(|leaf| leaf.key == key).unwrap().source.clone();
        assert_eq!(source("method.tau"), "--set method.tau=0.5");
        assert_eq!(source("method.gamma"), "default");
        assert_eq!(source("health.every"), "default");
        let text = std::fs::read_to_string(SPEC).unwrap();
        let line = |start: &str| text.lines().position(|line| line.starts_with(start)).unwrap() + 1;
        assert_eq!(source("name"), format!("q.yaml:{}", line("name:")));
        assert_eq!(source("knn.k"), format!("q.yaml:{}, --set knn.k.1=7", line("  k: [")));
        let view = format!("q.yaml:{}", line("    grayscale:"));
        assert_eq!(source("augmentations.view2.grayscale.p"), view, "where the anchor is");
    }

    #[test]
    fn the_text_is_the_resolved_spec() {
        let loaded = loaded();
        let text = resolved_text(&loaded);
        assert!(text.contains(&format!("{:<COLUMN$} # --set method.tau=0.5\n", "  tau: 0.5")), "{text}");
        assert!(text.contains("\nmethod:\n  name: snclr "), "{text}");
        let again = load_text(Path::new("r.yaml"), &text, &[]).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        assert_eq!(again.value(), loaded.value());
    }
}

//! Generates the schema for editors. It allows a whole experiment, or a spec that extends another one and holds only the changes.
//!
//! Validation checks the merged document against the schema of an experiment, but an editor sees a single file.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::schema::shared;

/// Suffix of the definitions whose required keys may come from a base.
const PART: &str = "Part";

static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", schema()));

/// The schema as it is committed under `schemas/`: indented, with a last newline.
pub fn schema_text() -> String {
    TEXT.clone()
}

fn schema() -> Value {
    let mut whole = shared().as_object().cloned().unwrap_or_default();
    let head: Map<String, Value> =
        ["$schema", "title", "description"].iter().filter_map(|key| whole.shift_remove_entry(*key)).collect();
    let mut definitions = match whole.shift_remove("$defs") {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    if let Some(Value::Object(properties)) = whole.get_mut("properties") {
        properties.insert("extends".to_owned(), extends());
        properties.insert("sweep".to_owned(), sweep());
    }
    let whole = Value::Object(whole);
    let changed = with_required_keys(&definitions);
    let parts: Vec<(String, Value)> =
        changed.iter().map(|name| (format!("{name}{PART}"), part(&definitions[name.as_str()], &changed))).collect();
    let spec = part(&whole, &changed);
    definitions.insert("Spec".to_owned(), whole);
    definitions.insert(format!("Spec{PART}"), spec);
    definitions.extend(parts);
    let mut schema = head;
    schema.insert("if".to_owned(), json!({"type": "object", "required": ["extends"]}));
    schema.insert("then".to_owned(), json!({"$ref": format!("#/$defs/Spec{PART}")}));
    schema.insert("else".to_owned(), json!({"$ref": "#/$defs/Spec"}));
    schema.insert("$defs".to_owned(), Value::Object(definitions));
    Value::Object(schema)
}

/// Names of the definitions that require a key, either directly or in a definition that they refer to.
fn with_required_keys(definitions: &Map<String, Value>) -> Vec<String> {
    let mut found: Vec<String> = vec![];
    loop {
        let asks = |name: &&String| !found.contains(name) && asks(&definitions[name.as_str()], &found);
        let more: Vec<String> = definitions.keys().filter(asks).cloned().collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

fn asks(schema: &Value, found: &[String]) -> bool {
    match schema {
        Value::Object(map) => map.iter().any(|(key, value)| match (key.as_str(), value) {
            ("required", Value::Array(_)) => true,
            ("$ref", Value::String(target)) => refers(target, found),
            _ => asks(value, found),
        }),
        Value::Array(items) => items.iter().any(|item| asks(item, found)),
        _ => false,
    }
}

fn refers(target: &str, names: &[String]) -> bool {
    names.iter().any(|name| target.strip_prefix("#/$defs/") == Some(name))
}

/// A copy of `schema` without required keys, since a base may have them. A section without its tag may match several variants, so
/// `oneOf` becomes `anyOf`.
fn part(schema: &Value, changed: &[String]) -> Value {
    match schema {
        Value::Object(map) => map
            .iter()
            .filter(|(key, value)| *key != "required" || !value.is_array())
            .map(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(target)) if refers(target, changed) => {
                    (key.clone(), Value::String(format!("{target}{PART}")))
                }
                ("oneOf", _) => ("anyOf".to_owned(), part(value, changed)),
                _ => (key.clone(), part(value, changed)),
            })
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(|item| part(item, changed)).collect(),
        other => other.clone(),
    }
}

fn extends() -> Value {
    json!({
        "type": "string",
        "description": "Spec that this one is laid over, relative to the folder of this file. Sections merge; \
            other values and sections of another `name`, `format` or `arch` variant replace; `null` takes an optional key away.",
        "x-operational": true,
    })
}

fn sweep() -> Value {
    json!({
        "type": ["object", "null"],
        "description": "Keys (dotted, e.g. `method.tau`) that take several values; every combination is a point that runs.",
        "additionalProperties": {"type": ["array", "null"], "minItems": 1, "uniqueItems": true},
        "x-operational": true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(yaml: &str) -> bool {
        static VALIDATOR: LazyLock<jsonschema::Validator> =
            LazyLock::new(|| jsonschema::draft202012::new(&schema()).unwrap());
        let spec: Value = serde_yaml::from_str(yaml).unwrap();
        VALIDATOR.is_valid(&spec)
    }

    /// Every section rejects unknown keys; otherwise typing errors would go unnoticed. The schema contains all sections of an
    /// experiment, and also those of specs that extend one.
    #[test]
    fn the_schema_is_a_schema_and_every_section_is_closed() {
        fn visit(part: &Value, at: &str) {
            if let Some(map) = part.as_object() {
                if map.contains_key("properties") {
                    assert_eq!(map.get("additionalProperties"), Some(&Value::Bool(false)), "{at}");
                }
                map.iter().for_each(|(key, inner)| visit(inner, &format!("{at}/{key}")));
            } else if let Some(items) = part.as_array() {
                items.iter().enumerate().for_each(|(i, inner)| visit(inner, &format!("{at}/{i}")));
            }
        }
        visit(&schema(), "");
        jsonschema::meta::validate(&schema()).unwrap();
    }

    #[test]
    fn a_spec_that_extends_another_needs_no_key() {
        assert!(accepts("extends: base.yaml\n"));
        assert!(accepts("extends: base.yaml\nmethod: {tau: 0.3}\noptimizer: {name: lars, eta: 0.02}\n"));
        assert!(accepts("extends: base.yaml\nsweep: {method.tau: [0.1, 0.2], seed: null}\n"));
        for wrong in
            ["method: {tua: 0.3}", "epochs: 0", "optimizer: {name: sgd, eta: 0.02}", "lr: 1", "sweep: {seed: 1}"]
        {
            assert!(!accepts(&format!("extends: base.yaml\n{wrong}\n")), "{wrong}");
        }
    }

    #[test]
    fn a_spec_alone_needs_its_keys() {
        let whole = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/specs/quickstart.yaml")).unwrap();
        assert!(accepts(&whole));
        assert!(accepts(&format!("{whole}\nsweep: {{seed: [1, 2]}}\n")));
        assert!(!accepts(&whole.replace("name: quickstart", "")));
        assert!(!accepts(&whole.replace("  k: 5\n", "")));
    }
}

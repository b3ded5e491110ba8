//! Generates the JSON Schema of an experiment from the types. Validation uses it, and `editor` derives the schema for editors
//! from it.

use std::sync::LazyLock;

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Map, Number, Value};

use super::Experiment;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut rest = of::<Experiment>();
    // The keys that identify the schema come first, for readers of the file.
    let mut schema = Map::new();
    if let Some(map) = rest.as_object_mut() {
        for key in ["$schema", "title", "description"] {
            schema.extend(map.shift_remove_entry(key));
        }
        schema.append(map);
    }
    Value::Object(schema)
});

/// The JSON Schema (draft 2020-12) of an experiment; equal in every build of the same types.
pub fn schema() -> Value {
    SCHEMA.clone()
}

pub(super) fn shared() -> &'static Value {
    &SCHEMA
}

/// The JSON Schema of a type.
pub(super) fn of<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(plain_numbers)).into_generator();
    generator.into_root_schema_for::<T>().to_value()
}

/// Replaces Rust's integer formats, which validators do not know, by bounds, which they check. Writes defaults of single
/// precision with as few digits as they need.
fn plain_numbers(schema: &mut Schema) {
    let Some(map) = schema.as_object_mut() else { return };
    let largest = match map.get("format").and_then(Value::as_str) {
        Some("uint" | "uint64") => Some(u64::MAX),
        Some("uint32") => Some(u64::from(u32::MAX)),
        Some("uint8") => Some(u64::from(u8::MAX)),
        _ => None,
    };
    if let Some(largest) = largest {
        map.entry("maximum").or_insert(Value::from(largest));
    }
    map.remove("format");
    if let Some(default) = map.get_mut("default") {
        shorten(default);
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let wide = number.as_f64().unwrap_or_default();
            let narrow = wide as f32;
            if f64::from(narrow) == wide
                && let Some(short) = narrow.to_string().parse().ok().and_then(Number::from_f64)
            {
                *number = short;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        Value::Object(map) => map.values_mut().for_each(shorten),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_names_draft_and_title() {
        let schema = schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["title"], "snclr experiment");
        assert!(schema.get("$id").is_none());
    }

    #[test]
    fn the_schema_is_a_schema() {
        jsonschema::meta::validate(&schema()).unwrap();
    }

    #[test]
    fn defaults_have_the_digits_that_were_written() {
        let text = crate::spec::schema_text();
        assert!(text.contains("0.485") && !text.contains("0.4850000"));
        assert!(text.contains("0.07"));
        assert!(!text.contains("\"format\": \"uint"));
    }
}

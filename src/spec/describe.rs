//! Describes in words what a part of the schema allows, and formats the values of a spec.

use serde_json::Value;

use super::walk::{Walker, is_null};

/// Longest excerpt of a value in a message, in characters.
const EXCERPT: usize = 60;

/// Describes what `part` allows, e.g. "a whole number, at least 1".
pub fn describe<'s>(walker: Walker<'s>, part: &'s Value) -> String {
    if let Some(choices) = walker.choices(part) {
        return format!("one of {}", choices.join(", "));
    }
    if let Some(tagged) = walker.tagged(part) {
        let names: Vec<&str> = tagged.variants.iter().map(|(name, _)| *name).collect();
        return format!("a section with `{}:` one of {}", tagged.tag, names.join(", "));
    }
    if let Some(alternatives) = walker.alternatives(part) {
        let open: Vec<String> =
            alternatives.into_iter().filter(|one| !is_null(one)).map(|one| describe(walker, one)).collect();
        return open.join(" or ");
    }
    let part = walker.deref(part);
    match type_name(part) {
        "integer" => join("a whole number", range(part)),
        "number" => join("a number", range(part)),
        "boolean" => "true or false".to_owned(),
        "string" => "text".to_owned(),
        "array" => list(walker, part),
        "object" => format!("a section with the keys {}", keys(part).join(", ")),
        _ => "another value".to_owned(),
    }
}

fn list<'s>(walker: Walker<'s>, part: &'s Value) -> String {
    let items = part.get("items").map(|items| walker.deref(items));
    let noun = match items.map(type_name) {
        Some("integer") => "whole numbers",
        Some("number") => "numbers",
        Some("string") => "texts",
        _ => "values",
    };
    let limit = |name: &str| part.get(name).and_then(Value::as_u64);
    let count = match (limit("minItems"), limit("maxItems")) {
        (Some(low), Some(high)) if low == high => format!("a list of {low} {noun}"),
        (Some(low), None) => format!("a list of {low} or more {noun}"),
        _ => format!("a list of {noun}"),
    };
    join(&count, items.and_then(range).map(|range| format!("each {range}")))
}

fn join(noun: &str, range: Option<String>) -> String {
    match range {
        Some(range) => format!("{noun}, {range}"),
        None => noun.to_owned(),
    }
}

/// The bounds of a number, e.g. "from 0 to 1". Bounds that only follow from the integer type are left out.
pub fn range(part: &Value) -> Option<String> {
    let bound = |name: &str| part.get(name).and_then(Value::as_f64);
    let low = bound("minimum");
    let high = bound("maximum").filter(|&high| high < f64::from(u32::MAX));
    match (bound("exclusiveMinimum"), low, bound("exclusiveMaximum"), high) {
        (None, Some(low), None, Some(high)) => Some(format!("from {low} to {high}")),
        (None, Some(low), None, None) => Some(format!("at least {low}")),
        (None, Some(low), Some(high), _) => Some(format!("at least {low} and less than {high}")),
        (None, None, None, Some(high)) => Some(format!("at most {high}")),
        (None, None, Some(high), _) => Some(format!("less than {high}")),
        (Some(low), _, None, None) => Some(format!("greater than {low}")),
        (Some(low), _, None, Some(high)) => Some(format!("greater than {low} and at most {high}")),
        (Some(low), _, Some(high), _) => Some(format!("greater than {low} and less than {high}")),
        (None, None, None, None) => None,
    }
}

/// The type that `part` requires, apart from `null`.
pub fn type_name(part: &Value) -> &str {
    match part.get("type") {
        Some(Value::String(name)) => name,
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or(""),
        _ => "",
    }
}

/// The keys of a section.
pub fn keys(part: &Value) -> Vec<String> {
    let properties = part.get("properties").and_then(Value::as_object);
    properties.map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

/// Formats a value for a message.
pub fn show(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Object(map) if map.is_empty() => "an empty section".to_owned(),
        Value::Object(map) => {
            excerpt(&format!("a section with the keys {}", map.keys().cloned().collect::<Vec<_>>().join(", ")))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(show).collect();
            excerpt(&format!("[{}]", items.join(", ")))
        }
        other => excerpt(&other.to_string()),
    }
}

fn excerpt(text: &str) -> String {
    if text.chars().count() <= EXCERPT {
        return text.to_owned();
    }
    let head: String = text.chars().take(EXCERPT - 1).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(dotted: &str) -> String {
        let schema = crate::spec::schema();
        let walker = Walker { root: &schema };
        let path: Vec<String> = dotted.split('.').map(str::to_owned).collect();
        let spec = json!({"encoder": {"arch": "vit_tiny"}, "method": {"name": "snclr"}, "optimizer": {"name": "adamw"}, "data": {"format": "parquet"}});
        describe(walker, walker.at(&path, &spec).unwrap())
    }

    #[test]
    fn what_keys_allow() {
        assert_eq!(words("epochs"), "a whole number, at least 1");
        assert_eq!(words("method.tau"), "a number, greater than 0");
        assert_eq!(words("method.attention_dim"), "a whole number, at least 1");
        let archs = "resnet18, resnet34, resnet50, resnet101, vit_tiny, vit_small, vit_base";
        assert_eq!(words("encoder"), format!("a section with `arch:` one of {archs}"));
        assert_eq!(words("encoder.heads"), "a whole number, at least 1");
        assert_eq!(words("optimizer"), "a section with `name:` one of sgd, adamw, lars");
        assert_eq!(words("optimizer.betas"), "a list of 2 numbers, each at least 0 and less than 1");
        assert_eq!(words("knn.k"), "a list of 1 or more whole numbers, each at least 1");
        assert_eq!(words("data.train"), "text or a list of 1 or more texts");
        assert_eq!(words("data.test"), "text or a list of 1 or more texts");
        assert_eq!(words("augmentations.view1.grayscale"), "a section with the keys p");
        assert_eq!(words("method.detach_w"), "one of none, projection, all");
        assert_eq!(words("method.threshold"), "true or false");
    }

    #[test]
    fn what_values_look_like() {
        assert_eq!(show(&json!(null)), "nothing");
        assert_eq!(show(&json!("0.2")), "\"0.2\"");
        assert_eq!(show(&json!([1, "a"])), "[1, \"a\"]");
        assert_eq!(show(&json!({"a": 1, "b": 2})), "a section with the keys a, b");
        assert_eq!(show(&json!("x".repeat(100))).chars().count(), EXCERPT);
    }
}

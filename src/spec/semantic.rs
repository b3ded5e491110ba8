//! The part of a spec that results depend on: everything but what its type marks `x-operational`.

use serde_json::{Map, Value};

use super::{schema::shared, walk::Walker};

/// `spec` (as in [`crate::spec::Loaded::value`]) without its operational keys: names, descriptions and paths.
pub fn semantic(spec: &Value) -> Value {
    let walker = Walker { root: shared() };
    strip(walker, walker.root, spec).unwrap_or(Value::Null)
}

fn strip<'s>(walker: Walker<'s>, part: &'s Value, value: &Value) -> Option<Value> {
    let section = walker.select(part, value).unwrap_or(part);
    if [part, walker.deref(part), section].into_iter().any(is_operational) {
        return None;
    }
    let Value::Object(map) = value else { return Some(value.clone()) };
    let kept: Map<String, Value> = map
        .iter()
        .filter_map(|(key, inner)| {
            let stripped = match section.get("properties").and_then(|properties| properties.get(key)) {
                Some(property) => strip(walker, property, inner)?,
                None => inner.clone(),
            };
            Some((key.clone(), stripped))
        })
        .collect();
    Some(Value::Object(kept))
}

fn is_operational(part: &Value) -> bool {
    part.get("x-operational").and_then(Value::as_bool) == Some(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_paths_vanish_and_settings_stay() {
        let spec = json!({
            "name": "a",
            "description": "b",
            "seed": 1,
            "data": {"format": "image_folder", "train": "x", "test": ["y", "z"], "on_error": "skip"},
            "method": {"name": "snclr", "tau": 0.2},
            "knn": {"k": [5]},
        });
        let expected = json!({
            "seed": 1,
            "data": {"format": "image_folder", "on_error": "skip"},
            "method": {"name": "snclr", "tau": 0.2},
            "knn": {"k": [5]},
        });
        assert_eq!(semantic(&spec), expected);
    }

    #[test]
    fn every_file_format_loses_its_paths() {
        let idx =
            json!({"data": {"format": "idx", "train": "a", "train_labels": "b", "test": "c", "test_labels": "d"}});
        assert_eq!(semantic(&idx), json!({"data": {"format": "idx"}}));
        let parquet = json!({"data": {"format": "parquet", "train": "a", "label_column": "c"}});
        assert_eq!(semantic(&parquet), json!({"data": {"format": "parquet", "label_column": "c"}}));
        let cifar = json!({"data": {"format": "cifar10", "train": "a", "on_error": "fail"}});
        assert_eq!(semantic(&cifar), json!({"data": {"format": "cifar10", "on_error": "fail"}}));
    }

    #[test]
    fn a_file_of_weights_loses_its_path() {
        for arch in ["resnet50", "vit_tiny"] {
            let encoder = json!({"encoder": {"arch": arch, "init": "w.safetensors"}});
            assert_eq!(semantic(&encoder), json!({"encoder": {"arch": arch}}));
        }
    }

    #[test]
    fn generated_data_are_all_semantic() {
        let data = json!({"data": {"format": "synthetic", "classes": 10, "seed": 3}});
        assert_eq!(semantic(&data), data);
    }
}

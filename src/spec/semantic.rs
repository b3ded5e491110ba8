//! The part of a spec that results depend on: everything except the keys that the types mark as `x-operational`.

use std::sync::LazyLock;

use serde_json::Value;

use super::{
    schema::shared,
    walk::{Walker, is_null},
};

static SPEC: LazyLock<Part> = LazyLock::new(|| Part::of(Walker { root: shared() }, shared()));

/// `spec` (as of [`crate::spec::Loaded::value`]) without its operational keys: names, descriptions and paths.
pub fn semantic(mut spec: Value) -> Value {
    match SPEC.strip(&mut spec) {
        true => spec,
        false => Value::Null,
    }
}

/// The facts about a part of the schema that [`semantic`] needs. References are resolved once, because a sweep needs them
/// thousands of times.
struct Part {
    is_operational: bool,
    inside: Inside,
}

enum Inside {
    /// A section.
    Keys(Vec<(&'static str, Part)>),
    /// Variants by the value of the tag.
    Variants(&'static str, Vec<(&'static str, Part)>),
    /// The only alternative besides `null`.
    Optional(Box<Part>),
    /// A value without keys of its own.
    Nothing,
}

impl Part {
    fn of(walker: Walker<'static>, part: &'static Value) -> Part {
        let whole = walker.deref(part);
        let is_operational = [part, whole].into_iter().any(is_operational);
        Part { is_operational, inside: Inside::of(walker, whole) }
    }

    /// Removes operational keys from `value`. Returns false if all of `value` is operational.
    fn strip(&self, value: &mut Value) -> bool {
        if self.is_operational {
            return false;
        }
        match (&self.inside, value) {
            (Inside::Keys(keys), Value::Object(map)) => {
                map.retain(|key, inner| find(keys, key).is_none_or(|part| part.strip(inner)));
                true
            }
            (Inside::Optional(part), value) => part.strip(value),
            (Inside::Variants(tag, variants), value) => {
                let named = value.get(tag).and_then(Value::as_str);
                named.and_then(|named| find(variants, named)).is_none_or(|variant| variant.strip(value))
            }
            _ => true,
        }
    }
}

impl Inside {
    fn of(walker: Walker<'static>, part: &'static Value) -> Inside {
        if walker.choices(part).is_some() {
            return Inside::Nothing;
        }
        if let Some(tagged) = walker.tagged(part) {
            let variant = |(name, variant)| (name, Part::of(walker, variant));
            return Inside::Variants(tagged.tag, tagged.variants.into_iter().map(variant).collect());
        }
        if let Some(alternatives) = walker.alternatives(part) {
            let open: Vec<_> = alternatives.into_iter().filter(|one| !is_null(one)).collect();
            return match open[..] {
                [only] => Inside::Optional(Box::new(Part::of(walker, only))),
                // The alternatives are texts and lists, which have no keys.
                _ => Inside::Nothing,
            };
        }
        match part.get("properties").and_then(Value::as_object) {
            Some(keys) => Inside::Keys(keys.iter().map(|(key, part)| (key.as_str(), Part::of(walker, part))).collect()),
            None => Inside::Nothing,
        }
    }
}

fn find<'p>(parts: &'p [(&'static str, Part)], name: &str) -> Option<&'p Part> {
    parts.iter().find(|(other, _)| *other == name).map(|(_, part)| part)
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
        assert_eq!(semantic(spec), expected);
    }

    #[test]
    fn every_file_format_loses_its_paths() {
        let idx =
            json!({"data": {"format": "idx", "train": "a", "train_labels": "b", "test": "c", "test_labels": "d"}});
        assert_eq!(semantic(idx), json!({"data": {"format": "idx"}}));
        let parquet = json!({"data": {"format": "parquet", "train": "a", "label_column": "c"}});
        assert_eq!(semantic(parquet), json!({"data": {"format": "parquet", "label_column": "c"}}));
        let cifar = json!({"data": {"format": "cifar10", "train": "a", "on_error": "fail"}});
        assert_eq!(semantic(cifar), json!({"data": {"format": "cifar10", "on_error": "fail"}}));
    }

    #[test]
    fn a_file_of_weights_loses_its_path() {
        for arch in ["resnet50", "vit_tiny"] {
            let encoder = json!({"encoder": {"arch": arch, "init": "w.safetensors"}});
            assert_eq!(semantic(encoder), json!({"encoder": {"arch": arch}}));
        }
    }

    #[test]
    fn generated_data_are_all_semantic() {
        let data = json!({"data": {"format": "synthetic", "classes": 10, "seed": 3}});
        assert_eq!(semantic(data.clone()), data);
    }
}

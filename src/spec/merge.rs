//! Merges a spec into its base: sections merge, everything else replaces. Variants are known from the schema.

use serde_json::Value;

use super::{locate::Node, read::Document, schema::shared, walk::Walker};
use crate::stage::is_inside;

/// Merges `over` into `base`; values of `over` win. A section that selects another variant by its tag (`name: sgd` over
/// `name: lars`) replaces the whole section, so that keys of two variants do not mix.
pub fn merge(base: Document, over: Document) -> Document {
    let walker = Walker { root: shared() };
    let mut merged = base;
    let mut layer = Layer { walker, path: vec![], replaced: vec![], left_out: vec![] };
    layer.lay(Some(walker.root), (&mut merged.value, &mut merged.places), (over.value, over.places));
    // Earlier errors about values that are now replaced no longer apply.
    let Layer { replaced, left_out, .. } = layer;
    merged.errors.retain(|error| !replaced.iter().any(|section| is_inside(&error.key, section)));
    merged.errors.extend(over.errors);
    merged.left_out.extend(left_out);
    merged
}

struct Layer {
    walker: Walker<'static>,
    path: Vec<String>,
    replaced: Vec<String>,
    left_out: Vec<(String, String)>,
}

impl Layer {
    /// Merges one value into another. `part` is the schema of the value; None if the schema does not describe it.
    fn lay(&mut self, part: Option<&'static Value>, base: (&mut Value, &mut Node), over: (Value, Node)) {
        let ((value, places), (over, mut over_places)) = (base, over);
        let another = part.and_then(|part| self.switches(part, value, &over));
        let is_another = another.is_some();
        self.left_out.extend(another.map(|what| (self.path.join("."), what)));
        let section = part.and_then(|part| {
            self.walker.select(part, value).or_else(|| self.walker.select(part, &over))?.get("properties")
        });
        match (value, over) {
            (Value::Object(map), Value::Object(over)) if !is_another => {
                (places.key, places.value) = (over_places.key.clone(), over_places.value.clone());
                for (name, inner) in over {
                    let inner_places = over_places.take_child(&name).unwrap_or_else(|| over_places.clone());
                    let place = inner_places.key.clone();
                    let base = (map.entry(name.clone()).or_insert(Value::Null), places.child_or_insert(&name, &place));
                    let part = section.and_then(|properties| properties.get(&name));
                    self.path.push(name);
                    self.lay(part, base, (inner, inner_places));
                    self.path.pop();
                }
            }
            (value, over) => {
                (*value, *places) = (over, over_places);
                self.replaced.push(self.path.join("."));
            }
        }
    }

    /// The variant of `base` (`name: lars`), if `over` is another variant.
    fn switches(&self, part: &'static Value, base: &Value, over: &Value) -> Option<String> {
        let tag = self.walker.tagged(part)?.tag;
        let (base, over) = (base.get(tag)?, over.get(tag)?);
        (base != over).then(|| format!("{tag}: {}", base.as_str().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::spec::read;

    fn merged(base: &str, over: &str) -> Document {
        let read = |text, file: &str| read::document(text, &Path::new(file).into()).unwrap();
        merge(read(base, "base"), read(over, "over"))
    }

    fn place(document: &Document, dotted: &str) -> String {
        let path: Vec<String> = dotted.split('.').map(str::to_owned).collect();
        document.places.get(&path).unwrap().value.to_string()
    }

    #[test]
    fn sections_merge_and_lists_and_scalars_replace() {
        let base = "epochs: 8\nknn: {k: [20, 10], temperature: 0.1}\nmethod: {name: snclr, k: 5}\n";
        let document = merged(base, "seed: 3\nknn:\n  k: [7]\nmethod: {k: 6}\n");
        let expected = json!({"epochs": 8, "knn": {"k": [7], "temperature": 0.1},
            "method": {"name": "snclr", "k": 6}, "seed": 3});
        assert_eq!(document.value, expected);
        assert_eq!(place(&document, "epochs"), "base:1:9");
        assert_eq!(place(&document, "knn.k.0"), "over:3:7");
        assert_eq!(place(&document, "knn.temperature"), "base:2:33");
        assert_eq!(place(&document, "knn"), "over:3:3", "where a missing key would be added");
        assert!(document.places.get(&["knn", "k", "1"].map(str::to_owned)).is_none());
    }

    #[test]
    fn another_variant_replaces_the_whole_section() {
        let base = "optimizer: {name: lars, base_lr: 0.3, eta: 0.02}\ndata: {format: idx, train: a}\n";
        let document = merged(base, "optimizer: {name: sgd, base_lr: 0.1}\ndata: {format: idx, test: b}\n");
        let expected = json!({"optimizer": {"name": "sgd", "base_lr": 0.1},
            "data": {"format": "idx", "train": "a", "test": "b"}});
        assert_eq!(document.value, expected);
        assert!(document.places.get(&["optimizer", "eta"].map(str::to_owned)).is_none());
        assert_eq!(document.left_out, [("optimizer".to_owned(), "name: lars".to_owned())]);
    }

    #[test]
    fn null_takes_away_and_replaced_values_are_not_complained_about() {
        let document = merged("description: long\nseed: .nan\n", "description:\nseed: 1\n");
        assert_eq!(document.value, json!({"description": null, "seed": 1}));
        assert!(document.errors.is_empty());
    }

    #[test]
    fn an_aliased_section_is_overridden_where_it_is_named() {
        let base = "a: &x {p: 1}\nb: *x\n";
        assert_eq!(merged(base, "a: {p: 2}\n").value, json!({"a": {"p": 2}, "b": {"p": 1}}));
    }
}

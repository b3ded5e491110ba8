//! Finds the part of a JSON Schema that describes a value: follows references, and picks the variant by its tag.

use serde_json::Value;

/// Answers questions about the parts of a schema.
#[derive(Clone, Copy, Debug)]
pub struct Walker<'s> {
    pub root: &'s Value,
}

/// A section whose `tag` key selects one of several variants.
#[derive(Debug)]
pub struct Tagged<'s> {
    pub tag: &'s str,
    /// Tag value and schema of each variant.
    pub variants: Vec<(&'s str, &'s Value)>,
}

impl Tagged<'_> {
    /// Index of the variant that `instance` names.
    pub fn position(&self, instance: &Value) -> Option<usize> {
        let named = instance.get(self.tag)?.as_str()?;
        self.variants.iter().position(|(name, _)| *name == named)
    }
}

impl<'s> Walker<'s> {
    /// `part` itself, or the definition that it refers to.
    pub fn deref(&self, mut part: &'s Value) -> &'s Value {
        while let Some(target) = part.get("$ref").and_then(Value::as_str) {
            match target.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer)) {
                Some(next) => part = next,
                None => break,
            }
        }
        part
    }

    /// The alternatives of `part` (`oneOf` or `anyOf`), dereferenced.
    pub fn alternatives(&self, part: &'s Value) -> Option<Vec<&'s Value>> {
        let part = self.deref(part);
        let list = part.get("oneOf").or_else(|| part.get("anyOf"))?.as_array()?;
        Some(list.iter().map(|one| self.deref(one)).collect())
    }

    /// `part` as a section whose variants differ in a constant key.
    pub fn tagged(&self, part: &'s Value) -> Option<Tagged<'s>> {
        let alternatives = self.alternatives(part)?;
        let constant = |one: &'s Value, key: &str| one.get("properties")?.get(key)?.get("const")?.as_str();
        let first = alternatives.first()?.get("properties")?.as_object()?;
        let tag = first.keys().find(|key| alternatives.iter().all(|one| constant(one, key).is_some()))?;
        let variants = alternatives.iter().filter_map(|one| Some((constant(one, tag)?, *one))).collect();
        Some(Tagged { tag, variants })
    }

    /// The values that `part` allows, if it allows only certain texts.
    pub fn choices(&self, part: &'s Value) -> Option<Vec<&'s str>> {
        let part = self.deref(part);
        if let Some(constant) = part.get("const").and_then(Value::as_str) {
            return Some(vec![constant]);
        }
        if let Some(list) = part.get("enum").and_then(Value::as_array) {
            return Some(list.iter().filter_map(Value::as_str).collect());
        }
        let mut all = vec![];
        for one in self.alternatives(part)? {
            if !is_null(one) {
                all.extend(self.choices(one)?);
            }
        }
        Some(all)
    }

    /// Index of the alternative that `instance` means: by its tag, or else the only one that is not `null`, or the only one that
    /// fits its type.
    pub fn chosen(&self, part: &'s Value, instance: &Value) -> Option<usize> {
        if let Some(tagged) = self.tagged(part) {
            return tagged.position(instance);
        }
        let alternatives = self.alternatives(part)?;
        let open: Vec<usize> = (0..alternatives.len()).filter(|&i| !is_null(alternatives[i])).collect();
        match open[..] {
            [only] => Some(only),
            _ => {
                let mut fitting = open.into_iter().filter(|&i| type_fits(alternatives[i], instance));
                fitting.next().filter(|_| fitting.next().is_none())
            }
        }
    }

    /// `part` with references resolved, and alternatives as `instance` selects them.
    pub fn select(&self, part: &'s Value, instance: &Value) -> Option<&'s Value> {
        let mut part = self.deref(part);
        while let Some(alternatives) = self.alternatives(part) {
            if self.choices(part).is_some() {
                break;
            }
            part = alternatives[self.chosen(part, instance)?];
        }
        Some(part)
    }

    /// The part that describes `path` in `instance`. A reference in it is not resolved, because its own `default` comes first.
    pub fn at(&self, path: &[String], instance: &Value) -> Option<&'s Value> {
        let mut part = self.root;
        let mut here = Some(instance);
        for name in path {
            let section = self.select(part, here.unwrap_or(&Value::Null))?;
            part = match section.get("properties").and_then(|p| p.get(name)) {
                Some(property) => property,
                None => section.get("items").filter(|_| name.parse::<usize>().is_ok())?,
            };
            here = here.and_then(|value| step(value, name));
        }
        Some(part)
    }

    /// Paths of all keys. If `instance` selects a variant of a section, only the keys of this variant; otherwise those of all
    /// variants.
    pub fn paths(&self, instance: &Value) -> Vec<Vec<String>> {
        let mut all = vec![];
        self.collect(self.root, instance, &mut vec![], &mut all);
        all
    }

    fn collect(&self, part: &'s Value, instance: &Value, path: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
        let sections = match (self.select(part, instance), self.tagged(part)) {
            (Some(section), _) => vec![section],
            (None, Some(tagged)) => tagged.variants.into_iter().map(|(_, variant)| variant).collect(),
            (None, None) => return,
        };
        for properties in sections.iter().filter_map(|section| section.get("properties")?.as_object()) {
            for (name, property) in properties {
                path.push(name.clone());
                if !all.contains(path) {
                    all.push(path.clone());
                }
                self.collect(property, instance.get(name).unwrap_or(&Value::Null), path, all);
                path.pop();
            }
        }
    }
}

/// Whether `part` allows `null` alone (the absent half of an optional value).
pub fn is_null(part: &Value) -> bool {
    part.get("type").and_then(Value::as_str) == Some("null")
}

/// The value inside `value` that is called `name` (a key, or the index of a list item).
pub fn step<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    match value {
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        other => other.get(name),
    }
}

/// The value at `path` in `value`.
pub fn lookup<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, name| step(value, name))
}

fn type_fits(part: &Value, instance: &Value) -> bool {
    let fits = |name: &str| match instance {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(_) => name == "number" || name == "integer",
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    };
    match part.get("type") {
        Some(Value::String(name)) => fits(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(fits),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(dotted: &str) -> Vec<String> {
        dotted.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn variants_are_picked_by_their_tag() {
        let schema = crate::spec::schema();
        let walker = Walker { root: &schema };
        let spec = json!({"optimizer": {"name": "adamw"}, "data": {"format": "idx"}});
        assert!(walker.at(&path("optimizer.betas"), &spec).is_some());
        assert!(walker.at(&path("optimizer.eta"), &spec).is_none());
        assert!(walker.at(&path("data.train_labels"), &spec).is_some());
        assert!(walker.at(&path("data.classes"), &spec).is_none());
        assert!(walker.at(&path("augmentations.mean.1"), &spec).is_some());
        assert!(walker.at(&path("augmentations.view1.gaussian_blur.sigma"), &spec).is_some());
    }

    #[test]
    fn closed_sets_of_texts() {
        let schema = crate::spec::schema();
        let walker = Walker { root: &schema };
        let spec = json!({"encoder": {"arch": "resnet18"}});
        let choices = |dotted| walker.choices(walker.at(&path(dotted), &spec).unwrap());
        assert_eq!(choices("encoder.stem").unwrap(), ["imagenet", "cifar"]);
        assert!(choices("encoder").is_none());
        assert!(choices("epochs").is_none());
    }

    #[test]
    fn every_variant_is_listed_where_none_is_selected() {
        let schema = crate::spec::schema();
        let walker = Walker { root: &schema };
        let paths = walker.paths(&json!({"optimizer": {"name": "sgd"}}));
        assert!(paths.contains(&path("data.classes")) && paths.contains(&path("data.train_labels")));
        assert!(paths.contains(&path("optimizer.momentum")) && !paths.contains(&path("optimizer.eta")));
    }
}

//! Selects another variant of a section, as the command line or a sweep asks (`method.name=infonce`). Keys that the new variant
//! has are kept; the other keys are dropped and listed in a note. Variants are known from the schema; keys that a method does not
//! use are known from [`MethodConfig::not_taken`].

use serde_json::Value;

use super::{
    locate::Place,
    read::Document,
    schema::shared,
    walk::{Walker, lookup},
};
use crate::{method::MethodConfig, stage::is_inside};

/// The key that selects a method, and the names in it.
pub const METHOD_NAME: &str = "method.name";
pub const METHOD: [&str; 2] = ["method", "name"];

/// The facts that [`settle`] needs about the document before a value was set at `names`.
pub struct Before {
    section: Vec<String>,
    named: Option<String>,
}

impl Before {
    /// None unless `names` is a section with variants, or the tag of one.
    pub fn of(document: &Document, names: &[String]) -> Option<Before> {
        let section = [names, names.split_last()?.1].into_iter().find(|path| tag(document, path).is_some())?;
        if section.len() < names.len() && tag(document, section) != names.last().map(String::as_str) {
            return None;
        }
        let named = variant(document, section).map(str::to_owned);
        Some(Before { section: section.to_vec(), named })
    }
}

/// Drops the keys that the selected variant does not have, if another variant was selected before, and adds a note to the
/// document.
pub fn settle(document: &mut Document, names: &[String], before: Before) {
    let Before { section, named } = before;
    let Some(now) = variant(document, &section).map(str::to_owned).filter(|now| Some(now) != named.as_ref()) else {
        return;
    };
    let Some(properties) = properties(document, &section, &now) else { return };
    let dotted = section.join(".");
    let given: Vec<String> = match lookup(&document.value, &section) {
        Some(Value::Object(map)) => map.keys().cloned().collect(),
        _ => vec![],
    };
    let mut dropped: Vec<Vec<String>> = vec![];
    // A section that is given as a whole has the keys that its author wants. Surplus keys are errors.
    if names.len() > section.len() {
        let others = given.iter().filter(|key| !properties.contains(&key.as_str()));
        dropped.extend(others.map(|key| [&section[..], std::slice::from_ref(key)].concat()));
    }
    if dotted == METHOD[0] {
        let unused =
            MethodConfig::not_taken(&now).iter().map(|key| key.split('.').map(str::to_owned).collect::<Vec<_>>());
        dropped.extend(unused.filter(|path| lookup(&document.value, path).is_some_and(|value| !value.is_null())));
    }
    let place = document.places.get(names).map(|node| node.value.clone());
    dropped.iter().for_each(|path| remove(document, path));
    if let (Some(place), Some(node)) = (&place, node_mut(document, &section)) {
        // Errors about keys that the variant lacks are placed where the variant is named.
        node.key = place.clone();
    }
    if dropped.is_empty() {
        return;
    }
    let list = |paths: &[Vec<String>]| paths.iter().map(|path| path.join(".")).collect::<Vec<_>>().join(", ");
    let tag = tag(document, &section).unwrap_or_default();
    let kept = given.iter().filter(|key| *key != tag && properties.contains(&key.as_str()));
    let kept: Vec<Vec<String>> = kept.map(|key| [&section[..], std::slice::from_ref(key)].concat()).collect();
    let kept = match kept.is_empty() || names.len() == section.len() {
        true => String::new(),
        false => format!("; kept {}", list(&kept)),
    };
    let place = place.as_ref().map_or(String::new(), Place::to_string);
    document.notes.push(format!("{place}: dropped {}, which {now} does not take{kept}", list(&dropped)));
}

/// The key that selects a variant of the section at `path`, where it has variants.
fn tag(document: &Document, path: &[String]) -> Option<&'static str> {
    let walker = Walker { root: shared() };
    Some(walker.tagged(walker.at(path, &document.value)?)?.tag)
}

/// The variant that the section at `path` names.
fn variant<'d>(document: &'d Document, path: &[String]) -> Option<&'d str> {
    lookup(&document.value, path)?.get(tag(document, path)?)?.as_str()
}

/// Keys of a variant of the section at `path`. None if there is no variant of this name, which is reported elsewhere.
fn properties(document: &Document, path: &[String], name: &str) -> Option<Vec<&'static str>> {
    let walker = Walker { root: shared() };
    let tagged = walker.tagged(walker.at(path, &document.value)?)?;
    let (_, part) = tagged.variants.into_iter().find(|(variant, _)| *variant == name)?;
    Some(part.get("properties")?.as_object()?.keys().map(String::as_str).collect())
}

fn remove(document: &mut Document, path: &[String]) {
    let Some((last, parent)) = path.split_last() else { return };
    let section = parent.iter().try_fold(&mut document.value, |value, name| value.get_mut(name));
    if let Some(Value::Object(map)) = section {
        map.shift_remove(last);
    }
    if let Some(node) = node_mut(document, parent) {
        node.take_child(last);
    }
    let key = path.join(".");
    document.errors.retain(|error| !is_inside(&error.key, &key));
}

fn node_mut<'d>(document: &'d mut Document, path: &[String]) -> Option<&'d mut super::locate::Node> {
    path.iter().try_fold(&mut document.places, |node, name| node.child_mut(name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::spec::{overrides, read};

    const SNCLR: &str = "method: {name: snclr, k: 3, queue_length: 64, tau: 0.2}\npredictor: {layers: 2}\n\
        augmentations:\n  local_crops: {count: 2}\n  size: 32\n";

    /// The document after overrides in their order, and its notes.
    fn set(text: &str, overrides: &[&str]) -> (Value, Vec<String>) {
        let mut document = read::document(text, &Path::new("a").into()).unwrap();
        for text in overrides {
            assert!(overrides::apply(text, &mut document).is_ok(), "{text}");
        }
        (document.value, document.notes)
    }

    #[test]
    fn keys_that_the_new_variant_has_are_kept_and_the_others_are_named() {
        let (value, notes) = set(SNCLR, &["method.name=infonce"]);
        assert_eq!(value["method"], json!({"name": "infonce", "tau": 0.2}));
        assert_eq!(value["predictor"], json!({"layers": 2}));
        let told = "--set method.name=infonce: dropped method.k, method.queue_length, which infonce does not take; kept method.tau";
        assert_eq!(notes, [told]);
        let (value, notes) = set("optimizer: {name: sgd, momentum: 0.9}\n", &["optimizer.name=adamw"]);
        assert_eq!(value, json!({"optimizer": {"name": "adamw"}}));
        let told = "--set optimizer.name=adamw: dropped optimizer.momentum, which adamw does not take";
        assert_eq!(notes, [told]);
    }

    #[test]
    fn sections_that_a_method_has_no_use_for_go_too() {
        let (value, notes) = set(SNCLR, &["method.name=simclr"]);
        assert_eq!(value, json!({"method": {"name": "simclr", "tau": 0.2}, "augmentations": {"size": 32}}));
        let told = "--set method.name=simclr: dropped method.k, method.queue_length, predictor, augmentations.local_crops, which \
            simclr does not take; kept method.tau";
        assert_eq!(notes, [told]);
        let (value, notes) = set(SNCLR, &["method={name: swav, k: 3}"]);
        assert_eq!((&value["method"], value.get("predictor")), (&json!({"name": "swav", "k": 3}), None));
        assert_eq!(notes, ["--set method={name: swav, k: 3}: dropped predictor, which swav does not take"]);
    }

    #[test]
    fn the_same_variant_and_one_that_there_is_not_drop_nothing() {
        for text in
            ["method.name=snclr", "method.name=snlcr", "method.name=3", "method={name: snclr, k: 1}", "method.k=5"]
        {
            let (value, notes) = set(SNCLR, &[text]);
            assert_eq!((value["predictor"].is_object(), notes), (true, vec![]), "{text}");
        }
        assert_eq!(set("epochs: 1\n", &["method.name=infonce"]).1, [] as [&str; 0]);
        let (value, _) = set(SNCLR, &["method.k=5", "method.name=nnclr", "method.anchor=prediction"]);
        let expected = json!({"name": "nnclr", "queue_length": 64, "tau": 0.2, "anchor": "prediction"});
        assert_eq!(value["method"], expected);
    }
}

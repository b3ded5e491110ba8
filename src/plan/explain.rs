//! Why a stage has to run: the leaves in which it differs from the nearest artifact there is.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::artifact::{Components, Manifest};

/// Differences that are spelled out.
const SHOWN: usize = 8;

/// The differing leaves against the earlier artifact of the stage that has the fewest; of several the newest.
pub fn explain(components: &Components, earlier: &[Manifest]) -> String {
    let nearest = earlier
        .iter()
        .map(|manifest| (differences(&manifest.components, components), manifest))
        .min_by_key(|(names, manifest)| (names.len(), u64::MAX - manifest.created, manifest.key.clone()));
    let Some((names, manifest)) = nearest else { return "no artifact yet".to_owned() };
    let mut parts: Vec<_> = names
        .iter()
        .take(SHOWN)
        .map(|name| {
            let show = |components: &Components| components.0.get(*name).map_or("(none)".to_owned(), |text| show(text));
            format!("{name} {} -> {}", show(&manifest.components), show(components))
        })
        .collect();
    if names.len() > SHOWN {
        parts.push(format!("and {} more", names.len() - SHOWN));
    }
    parts.join(", ")
}

/// Names of the leaves in which two sets differ, in order.
fn differences<'a>(old: &'a Components, new: &'a Components) -> Vec<&'a str> {
    let names: BTreeSet<_> = old.0.keys().chain(new.0.keys()).collect();
    // An empty section against one with fields: the fields say it all.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn components(leaves: &[(&str, Value)]) -> Components {
        let mut components = Components::default();
        leaves.iter().for_each(|(name, value)| components.insert(*name, value));
        components
    }

    fn manifest(created: u64, leaves: &[(&str, Value)]) -> Manifest {
        Manifest::new("pretrain", components(leaves), Vec::new(), created, 0, None)
    }

    #[test]
    fn the_nearest_artifact_is_compared_and_of_equally_near_ones_the_newest() {
        let new = components(&[("a", json!(1)), ("tau", json!(0.1))]);
        assert_eq!(explain(&new, &[]), "no artifact yet");
        let far = manifest(9, &[("a", json!(2)), ("tau", json!(0.3))]);
        let near = manifest(1, &[("a", json!(1)), ("tau", json!(0.2))]);
        assert_eq!(explain(&new, &[far.clone(), near.clone()]), "tau 0.2 -> 0.1");
        let newer = manifest(2, &[("a", json!(1)), ("tau", json!(0.5))]);
        assert_eq!(explain(&new, &[newer, far, near]), "tau 0.5 -> 0.1");
    }

    #[test]
    fn values_are_shown_for_people() {
        let hash = |digit: &str| json!(digit.repeat(64));
        let old =
            manifest(1, &[("h", hash("a")), ("k", json!([20, 10])), ("p", json!(0.8f32)), ("name", json!("sgd"))]);
        let new = components(&[("h", hash("b")), ("k", json!([5])), ("p", json!(1.0f32)), ("dim", json!(64))]);
        assert_eq!(
            explain(&new, &[old]),
            "dim (none) -> 64, h aaaaaaaa -> bbbbbbbb, k [20, 10] -> [5], name sgd -> (none), p 0.8 -> 1"
        );
    }

    #[test]
    fn long_lists_of_differences_are_cut() {
        let leaves = |value: u64| (0..11).map(|i| (format!("leaf{i:02}"), json!(value))).collect::<Vec<_>>();
        let borrow = |leaves: &[(String, Value)]| {
            components(&leaves.iter().map(|(n, v)| (n.as_str(), v.clone())).collect::<Vec<_>>())
        };
        let old = Manifest::new("x", borrow(&leaves(1)), Vec::new(), 0, 0, None);
        let text = explain(&borrow(&leaves(2)), &[old]);
        assert!(text.ends_with("leaf07 1 -> 2, and 3 more"), "{text}");
    }
}

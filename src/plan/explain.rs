//! Why a stage has to run: the leaves in which it differs from the nearest artifact there is.

use super::difference::{Difference, differences};
use crate::artifact::{Components, Manifest};

/// Differences that are spelled out.
const SHOWN: usize = 8;

/// The differing leaves against the [`nearest`] artifact.
pub fn explain(components: &Components, earlier: &[Manifest]) -> String {
    let Some(manifest) = nearest(components, earlier) else { return "no artifact yet".to_owned() };
    let all = Difference::all(&manifest.components, components);
    let mut parts: Vec<_> = all.iter().take(SHOWN).map(Difference::to_string).collect();
    if all.len() > SHOWN {
        parts.push(format!("and {} more", all.len() - SHOWN));
    }
    parts.join(", ")
}

/// The earlier artifact of a stage that has the fewest differing leaves; of several the newest.
pub fn nearest<'a>(components: &Components, earlier: &'a [Manifest]) -> Option<&'a Manifest> {
    let distance = |manifest: &&Manifest| {
        let differing = differences(&manifest.components, components).len();
        (differing, u64::MAX - manifest.created, manifest.key.clone())
    };
    earlier.iter().min_by_key(distance)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

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

//! Finds the earlier artifact that is most similar to a stage, so that the differences explain why the stage runs.

use super::difference::differences;
use crate::artifact::{Components, Manifest};

/// The earlier artifact of a stage with the fewest differing leaves; of several, the newest.
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
    use crate::plan::{Difference, tests::components};

    fn manifest(created: u64, leaves: &[(&str, Value)]) -> Manifest {
        Manifest::new("pretrain", components(leaves), Vec::new(), created, 0, None)
    }

    /// The differences from the nearest artifact, as they are shown.
    fn shown(new: &Components, earlier: &[Manifest]) -> Vec<String> {
        let near = nearest(new, earlier).expect("there is one");
        Difference::all(&near.components, new).iter().map(Difference::to_string).collect()
    }

    #[test]
    fn the_nearest_artifact_is_compared_and_of_equally_near_ones_the_newest() {
        let new = components(&[("a", json!(1)), ("tau", json!(0.1))]);
        assert_eq!(nearest(&new, &[]), None);
        let far = manifest(9, &[("a", json!(2)), ("tau", json!(0.3))]);
        let near = manifest(1, &[("a", json!(1)), ("tau", json!(0.2))]);
        assert_eq!(shown(&new, &[far.clone(), near.clone()]), ["tau 0.2 -> 0.1"]);
        let newer = manifest(2, &[("a", json!(1)), ("tau", json!(0.5))]);
        assert_eq!(shown(&new, &[newer, far, near]), ["tau 0.5 -> 0.1"]);
    }

    #[test]
    fn values_are_shown_for_people() {
        let hash = |digit: &str| json!(digit.repeat(64));
        let old =
            manifest(1, &[("h", hash("a")), ("k", json!([20, 10])), ("p", json!(0.8f32)), ("name", json!("sgd"))]);
        let new = components(&[("h", hash("b")), ("k", json!([5])), ("p", json!(1.0f32)), ("dim", json!(64))]);
        assert_eq!(
            shown(&new, &[old]),
            ["dim (none) -> 64", "h aaaaaaaa -> bbbbbbbb", "k [20, 10] -> [5]", "name sgd -> (none)", "p 0.8 -> 1"]
        );
    }
}

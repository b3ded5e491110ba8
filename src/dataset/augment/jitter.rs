//! `torchvision.transforms.ColorJitter`: brightness, contrast, saturation and hue in random order.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{ColorJitterConfig, color, crop::uniform, hue::hue, planes::Planes};

/// One change of colour with its drawn strength.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Change {
    Brightness(f64),
    Contrast(f64),
    Saturation(f64),
    Hue(f64),
}

/// Draws the strengths of the changes, and their order. None stands for a change that the configuration turns off.
pub(super) fn draw(config: &ColorJitterConfig, random: &mut ChaCha8Rng) -> [Option<Change>; 4] {
    let mut factor = |strength: f32| {
        let strength = strength as f64;
        (strength > 0.0).then(|| uniform(random, [(1.0 - strength).max(0.0), 1.0 + strength]))
    };
    let mut changes = [
        factor(config.brightness).map(Change::Brightness),
        factor(config.contrast).map(Change::Contrast),
        factor(config.saturation).map(Change::Saturation),
        (config.hue > 0.0).then(|| Change::Hue(uniform(random, [-config.hue as f64, config.hue as f64]))),
    ];
    for last in (1..changes.len()).rev() {
        changes.swap(last, random.random_range(0..=last));
    }
    changes
}

/// Carries out one change.
pub(super) fn apply(change: Change, planes: &mut Planes) {
    match change {
        Change::Brightness(factor) => color::brightness(planes, factor as f32),
        Change::Contrast(factor) => color::contrast(planes, factor as f32),
        Change::Saturation(factor) => color::saturation(planes, factor as f32),
        Change::Hue(turns) => hue(planes, turns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::random::{Purpose, stream};

    #[test]
    fn factors_fill_their_ranges_in_every_order() {
        let config = ColorJitterConfig { p: 1.0, brightness: 0.4, contrast: 1.0, saturation: 0.2, hue: 0.1 };
        let mut random = stream(1, Purpose::Augment, 0, 0, 0);
        let mut ranges = [[f64::MAX, f64::MIN]; 4];
        let mut first = [0; 4];
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..10_000 {
            let kinds = draw(&config, &mut random).map(|change| match change.unwrap() {
                Change::Brightness(factor) => (0, factor),
                Change::Contrast(factor) => (1, factor),
                Change::Saturation(factor) => (2, factor),
                Change::Hue(turns) => (3, turns),
            });
            for (kind, value) in kinds {
                ranges[kind] = [ranges[kind][0].min(value), ranges[kind][1].max(value)];
            }
            first[kinds[0].0] += 1;
            orders.insert(kinds.map(|(kind, _)| kind));
        }
        for (found, expected) in ranges.iter().zip([[0.6, 1.4], [0.0, 2.0], [0.8, 1.2], [-0.1, 0.1]]) {
            let slack = (expected[1] - expected[0]) / 1000.0;
            for (found, expected) in found.iter().zip(expected) {
                // Single-precision settings widen a range by at most 1e-7.
                assert!((found - expected).abs() < slack, "{found} is not {expected}");
            }
        }
        assert_eq!(orders.len(), 24);
        assert!(first.iter().all(|&count| (2300..2700).contains(&count)), "{first:?}");
    }

    #[test]
    fn what_is_zero_stays_away() {
        let config = ColorJitterConfig { p: 1.0, brightness: 0.0, contrast: 0.0, saturation: 0.5, hue: 0.0 };
        let changes = draw(&config, &mut stream(1, Purpose::Augment, 0, 0, 0));
        assert_eq!(changes.iter().flatten().count(), 1);
        assert!(changes.iter().flatten().all(|change| matches!(change, Change::Saturation(_))));
    }
}

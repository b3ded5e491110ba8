//! Measures the positives of a step, in the same way for all methods: their number, class, age and change.

use std::collections::HashSet;

use crate::{
    method::Positives,
    ops::{
        Real,
        named::{NamedTensor, Values},
    },
};

/// Measurements of the positives of a step: means over its rows, with weights normalised per row. NaN if there is nothing to
/// measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Positiveness {
    /// Number of positives of a view with a weight above 0, including the other view of the image.
    pub positives: f64,
    /// Exponential of the entropy of their weights: the number of positives of equal weight that would be as spread out.
    pub effective_positives: f64,
    /// Weight on the other view of the same image.
    pub own_share: f64,
    /// Share of the weight on positives of the class of the image, including its other view; among labelled positives.
    pub same_class_mass: f64,
    /// Share of the weight on positives of the class of the image, among labelled positives from other images only.
    pub neighbour_same_class_mass: f64,
    /// Share of the positives from other images that have the class of the image, all counted equally.
    pub label_agreement: f64,
    /// Steps since the positives entered the queue, weighted.
    pub queue_age: f64,
    /// Share of an image's neighbours (for SwAV, of prototypes) that were not chosen when it was last seen, over the tracked
    /// images since the previous row.
    pub churn: f64,
}

impl Positiveness {
    /// Measures `positives`; `labels` are those of the samples, -1 if there is none.
    pub fn of<E: Real>(positives: &Positives<E>, labels: &[i64], churn: f64) -> Self {
        let k = positives.k;
        let mut means = [Mean::default(); 7];
        for (row, own) in positives.own.iter().enumerate() {
            let (own, label) = (own.as_f64(), labels[row % labels.len()]);
            let others = || (row * k..(row + 1) * k).map(|i| (positives.w[i].as_f64(), positives.labels[i]));
            let total = own + others().map(|(w, _)| w).sum::<f64>();
            if total <= 0.0 {
                continue;
            }
            let weights = || others().map(|(w, _)| w).chain([own]).filter(|w| *w > 0.0);
            let entropy: f64 = weights().map(|w| w / total).map(|p| -p * libm::log(p)).sum();
            means[0].add(weights().count() as f64, 1.0);
            means[1].add(libm::exp(entropy), 1.0);
            means[2].add(own / total, 1.0);
            if label >= 0 {
                let known: f64 = others().filter(|(_, other)| *other >= 0).map(|(w, _)| w).sum();
                let same: f64 = others().filter(|(_, other)| *other == label).map(|(w, _)| w).sum();
                means[3].add_ratio(own + same, own + known);
                means[4].add_ratio(same, known);
                for (_, other) in others().filter(|(_, other)| *other >= 0) {
                    means[5].add(f64::from(u8::from(other == label)), 1.0);
                }
            }
            for i in (row * k..(row + 1) * k).filter(|i| positives.ages.get(*i).is_some_and(|age| *age >= 0)) {
                means[6].add(positives.ages[i] as f64, positives.w[i].as_f64());
            }
        }
        let [positives, effective_positives, own_share, same_class_mass, neighbour_same_class_mass, agreement, age] =
            means.map(Mean::value);
        Self {
            positives,
            effective_positives,
            own_share,
            same_class_mass,
            neighbour_same_class_mass,
            label_agreement: agreement,
            queue_age: age,
            churn,
        }
    }
}

/// Accumulates a weighted mean.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.weight += weight;
    }

    fn add_ratio(&mut self, part: f64, whole: f64) {
        if whole > 0.0 {
            self.add(part / whole, 1.0);
        }
    }

    /// NaN when nothing was added.
    fn value(self) -> f64 {
        self.sum / self.weight
    }
}

/// The largest number of images whose choices are remembered from one epoch to the next.
const TRACKED: usize = 1024;

/// Marks an image that has not been seen.
const UNSEEN: i64 = i64::MIN;

/// Remembers the choices of some images when they were last seen.
#[derive(Clone, Debug)]
pub struct Churn {
    /// The distance between tracked samples.
    stride: i64,
    /// Choices per image.
    width: usize,
    /// [tracked, width]
    previous: Vec<i64>,
    /// Number of new choices, and of all compared choices, since the last row.
    changed: i64,
    compared: i64,
}

impl Churn {
    /// An empty memory for a data set of this many images.
    pub fn new(images: usize) -> Self {
        let stride = images.div_ceil(TRACKED).max(1);
        Self { stride: stride as i64, width: 0, previous: Vec::new(), changed: 0, compared: 0 }
    }

    /// Adds the choices [N, C] of a batch.
    pub fn update(&mut self, samples: &[i64], choices: &[i64]) {
        let width = choices.len() / samples.len().max(1);
        if width == 0 {
            return;
        }
        if self.width != width {
            (self.width, self.previous) = (width, vec![UNSEEN; TRACKED * width]);
        }
        for (sample, choices) in samples.iter().zip(choices.chunks(width)).filter(|(s, _)| *s % self.stride == 0) {
            let Some(previous) = self.previous.chunks_mut(width).nth((sample / self.stride) as usize) else { continue };
            if previous[0] != UNSEEN {
                let known: HashSet<i64> = previous.iter().copied().filter(|choice| *choice >= 0).collect();
                self.changed += choices.iter().filter(|choice| !known.contains(choice)).count() as i64;
                self.compared += width as i64;
            }
            previous.copy_from_slice(choices);
        }
    }

    /// The share of new choices since the last call; NaN if no image was seen again.
    pub fn take(&mut self) -> f64 {
        let share = self.changed as f64 / self.compared as f64;
        (self.changed, self.compared) = (0, 0);
        share
    }

    /// The state for a checkpoint.
    pub fn state<E>(&self) -> Vec<NamedTensor<E>> {
        let counts = vec![self.width as i64, self.changed, self.compared];
        vec![
            NamedTensor::integer("churn.previous", &[self.previous.len()], self.previous.clone()),
            NamedTensor::integer("churn.counts", &[3], counts),
        ]
    }

    /// Restores the state of [`Churn::state`]; ignores tensors of other names.
    pub fn restore<E>(&mut self, tensors: &[NamedTensor<E>]) {
        for tensor in tensors {
            match (tensor.name.as_str(), &tensor.values) {
                ("churn.previous", Values::Integer(previous)) => self.previous.clone_from(previous),
                ("churn.counts", Values::Integer(counts)) => {
                    (self.width, self.changed, self.compared) = (counts[0] as usize, counts[1], counts[2]);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_normalised_and_unknown_labels_do_not_count() {
        let positives = Positives {
            k: 2,
            own: vec![1.0, 1.0],
            w: vec![0.75, 0.25, 1.0, 0.0],
            labels: vec![3, 5, -1, 3],
            ages: vec![10, 2, -1, 4],
            similarities: Vec::new(),
            choices: Vec::new(),
        };
        let figures = Positiveness::of(&positives, &[3], 0.5);
        assert_eq!(figures.positives, 2.5);
        assert_eq!(figures.own_share, 0.5);
        assert_eq!(figures.same_class_mass, (0.875 + 1.0) / 2.0);
        assert_eq!(figures.neighbour_same_class_mass, 0.75);
        assert_eq!(figures.label_agreement, 2.0 / 3.0);
        assert_eq!((figures.queue_age, figures.churn), (8.0, 0.5));
        let second: f64 = 2.0; // two positives of equal weight
        let first = (-(0.5f64.ln() * 0.5 + 0.375f64.ln() * 0.375 + 0.125f64.ln() * 0.125)).exp();
        assert!((figures.effective_positives - (first + second) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn the_own_view_alone_is_one_positive_of_the_own_class() {
        let figures = Positiveness::of(&Positives::<f64>::own_view(3), &[0, -1, 2], f64::NAN);
        assert_eq!((figures.positives, figures.effective_positives, figures.own_share), (1.0, 1.0, 1.0));
        assert_eq!(figures.same_class_mass, 1.0);
        assert!(figures.label_agreement.is_nan() && figures.queue_age.is_nan() && figures.churn.is_nan());
    }

    #[test]
    fn churn_is_the_share_of_choices_that_are_new() {
        let mut churn = Churn::new(4);
        churn.update(&[0, 2], &[10, 11, 12, 13]);
        assert!(churn.take().is_nan());
        churn.update(&[2, 3], &[13, 14, 1, 2]);
        let mut other = Churn::new(4);
        other.restore(&churn.state::<f32>());
        assert_eq!(churn.take(), 0.5);
        other.update(&[0], &[11, 10]);
        assert_eq!(other.take(), 0.25);
    }

    #[test]
    fn of_a_large_data_set_every_so_many_images_are_tracked() {
        let mut churn = Churn::new(10_240);
        churn.update(&[5, 10_230], &[1, 1]);
        churn.update(&[5, 10_230], &[2, 2]);
        assert_eq!((churn.compared, churn.take()), (1, 1.0));
    }
}

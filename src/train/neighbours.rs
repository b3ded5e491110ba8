//! Records the neighbours of a few images throughout training, which reports show.

use rand::seq::SliceRandom;

use crate::{
    method::Positives,
    ops::{
        Real,
        random::{Purpose, stream},
    },
};

/// Number of watched images. Their neighbours are recorded whenever they are in a batch.
const WATCHED: usize = 8;

/// A neighbour in the queue of a watched image.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    /// The watched image and its label, -1 if it has none.
    pub query: i64,
    pub query_label: i64,
    /// Rank among the neighbours; 0 is the most similar.
    pub rank: usize,
    /// The image of the neighbour and its label; -1 for a random vector from the start of the queue.
    pub sample: i64,
    pub label: i64,
    /// The positiveness of the neighbour.
    pub weight: f64,
    /// The cosine of the neighbour with the projection of the watched image.
    pub similarity: f64,
}

/// The watched images. Their choice depends only on the seed and the size of the data set.
#[derive(Clone, Debug)]
pub struct Watch {
    samples: Vec<i64>,
}

impl Watch {
    /// Chooses from this many images.
    pub fn new(images: usize, seed: u64) -> Self {
        let mut samples: Vec<i64> = (0..images as i64).collect();
        let mut random = stream(seed, Purpose::Watch, 0, 0, 0);
        let samples = samples.partial_shuffle(&mut random, WATCHED).0.to_vec();
        Self { samples }
    }

    /// The indices of the watched images.
    pub fn samples(&self) -> &[i64] {
        &self.samples
    }

    /// Neighbours of the watched images among `samples`, in the first direction of the loss. Empty for methods without a queue.
    pub fn of<E: Real>(&self, positives: &Positives<E>, samples: &[i64], labels: &[i64]) -> Vec<Neighbour> {
        let k = positives.k;
        if positives.similarities.is_empty() {
            return Vec::new();
        }
        let watched = (0..samples.len()).filter(|row| self.samples.contains(&samples[*row]));
        watched
            .flat_map(|row| (0..k).map(move |rank| (row, rank)))
            .map(|(row, rank)| Neighbour {
                query: samples[row],
                query_label: labels[row],
                rank,
                sample: positives.choices[row * k + rank],
                label: positives.labels[row * k + rank],
                weight: positives.w[row * k + rank].as_f64(),
                similarity: positives.similarities[row * k + rank].as_f64(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watched_images_are_told_with_their_neighbours_and_others_are_not() {
        let watch = Watch::new(1000, 3);
        assert_eq!(watch.samples.len(), WATCHED);
        assert_ne!(watch.samples, Watch::new(1000, 4).samples);
        assert_eq!(Watch::new(3, 0).samples.len(), 3);
        let other = (0..1000).find(|sample| !watch.samples.contains(sample)).unwrap();
        let positives = Positives {
            k: 2,
            own: vec![1.0; 4],
            w: vec![0.1, 0.9, 0.75, 0.25, 0.5, 0.5, 0.5, 0.5],
            labels: vec![1, 2, 3, -1, 9, 9, 9, 9],
            ages: vec![1; 8],
            similarities: vec![0.5, 0.4, 0.9, 0.8, 0.0, 0.0, 0.0, 0.0],
            choices: vec![11, 12, 13, -1],
        };
        let found = watch.of(&positives, &[other, watch.samples[0]], &[7, 3]);
        let first = Neighbour {
            query: watch.samples[0],
            query_label: 3,
            rank: 0,
            sample: 13,
            label: 3,
            weight: 0.75,
            similarity: 0.9,
        };
        assert_eq!(
            found,
            [first.clone(), Neighbour { rank: 1, sample: -1, label: -1, weight: 0.25, similarity: 0.8, ..first }]
        );
        assert!(watch.of(&Positives::<f64>::own_view(2), &[other, watch.samples[0]], &[7, 3]).is_empty());
    }
}

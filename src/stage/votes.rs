//! Classifies by weighted votes of nearest neighbours (DINO's protocol). Artifacts and splits are left to the caller.

use rayon::prelude::*;

use super::labelled::Predictions;
use crate::ops::{Real, topk::TopK};

/// Queries per search, which bounds the memory.
const CHUNK: usize = 4096;

/// How neighbours vote.
#[derive(Clone, Copy, Debug)]
pub struct Vote<'a> {
    /// Numbers of neighbours, each at most the number of training samples.
    pub ks: &'a [usize],
    /// A neighbour votes exp(cosine / temperature) for its class.
    pub temperature: f64,
    /// Number of classes.
    pub classes: usize,
}

impl Vote<'_> {
    /// Chooses a class for each query, for every labelling of the training samples and every k, from one search. The result is
    /// [labelling][k][query] of (class, its share of the votes). On a draw the lower class wins.
    ///
    /// `queries` [n, dim] have rows of unit length. `nearest` finds the training samples that are nearest to each of some queries,
    /// as many as it is told. After each chunk of queries, `done` is called with the number of queries in it, and returns whether
    /// to continue.
    ///
    /// Returns None if `done` stops it.
    ///
    /// # Errors
    /// Those of `nearest`.
    pub fn classify<E: Real, X>(
        &self,
        nearest: impl Fn(&[E], usize) -> Result<TopK<E>, X>,
        labellings: &[&[usize]],
        queries: &[E],
        dim: usize,
        mut done: impl FnMut(usize) -> bool,
    ) -> Result<Option<Vec<Vec<Predictions>>>, X> {
        let mut predicted = vec![vec![Vec::with_capacity(queries.len() / dim); self.ks.len()]; labellings.len()];
        let most = self.ks.iter().copied().max().unwrap_or(0);
        for chunk in queries.chunks(CHUNK * dim) {
            let found = nearest(chunk, most)?;
            let neighbours = found.scores.par_chunks(found.k.max(1)).zip(found.indices.par_chunks(found.k.max(1)));
            for (labels, predicted) in labellings.iter().zip(&mut predicted) {
                let votes: Vec<_> =
                    neighbours.clone().map(|(cosines, rows)| self.count(cosines, rows, labels)).collect();
                for (i, predicted) in predicted.iter_mut().enumerate() {
                    predicted.extend(votes.iter().map(|votes| winner(&votes[i])));
                }
            }
            if !done(chunk.len() / dim) {
                return Ok(None);
            }
        }
        Ok(Some(predicted))
    }

    /// Votes per class [classes] for each k, from the neighbours of one query, nearest first. All votes are relative to the
    /// nearest neighbour's, so that no temperature overflows.
    fn count<E: Real>(&self, cosines: &[E], rows: &[usize], labels: &[usize]) -> Vec<Vec<f64>> {
        let mut votes = vec![vec![0.0; self.classes]; self.ks.len()];
        for (rank, (cosine, &row)) in cosines.iter().zip(rows).enumerate() {
            let vote = libm::exp((cosine.as_f64() - cosines[0].as_f64()) / self.temperature);
            for (votes, &k) in votes.iter_mut().zip(self.ks) {
                if rank < k {
                    votes[labels[row]] += vote;
                }
            }
        }
        votes
    }
}

fn winner(votes: &[f64]) -> (usize, f64) {
    let (class, most) = votes.iter().enumerate().fold((0, f64::MIN), |b, (c, &v)| if v > b.1 { (c, v) } else { b });
    (class, most / votes.iter().sum::<f64>())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::ops::{
        golden::{Golden, assert_close},
        matmul::MatmulPrecision,
        normalize::normalize_rows,
        topk::top_k,
    };

    /// A search on the CPU.
    fn among<E: Real>(train: &[E], dim: usize) -> impl Fn(&[E], usize) -> Result<TopK<E>, Infallible> {
        move |queries, k| Ok(top_k(queries, train, dim, k, MatmulPrecision::Full, |_, _| false))
    }

    #[test]
    fn golden_knn_vote() {
        let golden = Golden::load("knn_vote");
        let (mut train, mut test) = (golden.get::<f64>("in.train"), golden.get::<f64>("in.test"));
        normalize_rows(&mut train, 8);
        normalize_rows(&mut test, 8);
        let labels: Vec<usize> = golden.integers("in.labels").iter().map(|&l| l as usize).collect();
        let voting = Vote { ks: &[5], temperature: 0.07, classes: 4 };

        let found = top_k(&test, &train, 8, 5, MatmulPrecision::Full, |_, _| false);
        assert_eq!(found.indices.iter().map(|&i| i as i64).collect::<Vec<_>>(), golden.integers("out.idx"));
        // The golden's votes are not relative to the nearest neighbour's.
        let votes: Vec<f64> = found
            .scores
            .chunks(5)
            .zip(found.indices.chunks(5))
            .flat_map(|(cosines, rows)| {
                let nearest = (cosines[0] / 0.07).exp();
                voting.count(cosines, rows, &labels).remove(0).into_iter().map(move |vote| vote * nearest)
            })
            .collect();
        assert_close("votes", &votes, &golden.get::<f64>("out.scores"), 1e-12);

        let predicted = voting.classify(among(&train, 8), &[&labels], &test, 8, |_| true).unwrap().unwrap();
        let classes: Vec<i64> = predicted[0][0].iter().map(|&(class, _)| class as i64).collect();
        assert_eq!(classes, golden.integers("out.pred"));
    }

    #[test]
    fn several_k_and_labellings_from_one_search_equal_one_search_each() {
        let unit = |angle: f64| [angle.cos(), angle.sin()];
        let train: Vec<f64> = (0..40).flat_map(|i| unit(i as f64 * 0.37)).collect();
        let queries: Vec<f64> = (0..CHUNK + 5).flat_map(|i| unit(i as f64 * 0.011)).collect();
        let (a, b): (Vec<usize>, Vec<usize>) = ((0..40).map(|i| i % 3).collect(), (0..40).map(|i| i / 14).collect());
        let classify = |ks: &[usize], labels: &[&[usize]]| {
            let voting = Vote { ks, temperature: 0.1, classes: 3 };
            voting.classify(among(&train, 2), labels, &queries, 2, |_| true).unwrap().unwrap()
        };
        let all = classify(&[7, 1, 40], &[&a, &b]);
        for (l, labels) in [&a, &b].into_iter().enumerate() {
            for (i, k) in [7, 1, 40].into_iter().enumerate() {
                assert_eq!(all[l][i], classify(&[k], &[labels])[0][0]);
                assert_eq!(all[l][i].len(), CHUNK + 5);
            }
        }
        assert_ne!(all[0][0], all[0][2]);
        assert!(all[0][1].iter().all(|&(_, share)| share == 1.0));
    }

    #[test]
    fn a_tiny_temperature_leaves_the_nearest_neighbour_alone() {
        let train = [1.0f32, 0.0, 0.8, 0.6, 0.6, 0.8];
        let voting = Vote { ks: &[3], temperature: 1e-6, classes: 2 };
        let predicted = voting.classify(among(&train, 2), &[&[1, 0, 0]], &[1.0, 0.0], 2, |_| true).unwrap().unwrap();
        assert_eq!(predicted[0][0], [(1, 1.0)]);
    }

    #[test]
    fn stopping_gives_nothing() {
        let voting = Vote { ks: &[1], temperature: 1.0, classes: 1 };
        assert_eq!(voting.classify(among(&[1.0f32], 1), &[&[0]], &[1.0], 1, |_| false), Ok(None));
    }
}

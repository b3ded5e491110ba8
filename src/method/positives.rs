//! The positives of a step, in one form for all methods, so that methods can be compared.

use crate::{backend::Origins, ops::Real};

/// The positives of a step. Rows are the samples of the first direction (view 1 predicts view 2), then those of the second.
#[derive(Clone, Debug)]
pub struct Positives<E> {
    /// K, the number of positives of each row without the other view of the same image.
    pub k: usize,
    /// Weight of the other view of the same image [2N].
    pub own: Vec<E>,
    /// Weights of the other positives [2N, K].
    pub w: Vec<E>,
    /// Labels of the other positives [2N, K], -1 if there is none.
    pub labels: Vec<i64>,
    /// Steps since each of the other positives entered the queue [2N, K], -1 for a random vector from its start; empty without
    /// a queue.
    pub ages: Vec<i64>,
    /// Cosine of each of the other positives with the projection that it was looked up by [2N, K]; empty without a queue.
    pub similarities: Vec<E>,
    /// The choices of each row of the first direction [N, C]: the samples of its neighbours, or its prototype. C is 0 for methods
    /// without either.
    pub choices: Vec<i64>,
}

impl<E: Real> Positives<E> {
    /// Only the other view of the same image (InfoNCE).
    pub fn own_view(samples: usize) -> Self {
        Self { own: vec![E::one(); 2 * samples], ..Self::empty() }
    }

    /// The other view with weight `own`, and rows of a queue with weights `w` [2N, K]. `near` has the rows of each direction.
    pub fn from_queue(own: E, w: Vec<E>, near: [Origins<E>; 2], step: u64) -> Self {
        let [first, second] = near;
        let rows = w.len() / first.k;
        let age = |entered: &i64| if *entered < 0 { -1 } else { step as i64 - entered };
        Self {
            k: first.k,
            own: vec![own; rows],
            w,
            ages: first.steps.iter().chain(&second.steps).map(age).collect(),
            labels: [first.labels, second.labels].concat(),
            similarities: [first.similarities, second.similarities].concat(),
            choices: first.samples,
        }
    }

    /// The images whose codes q [N, P] share prototypes. The weight of image j for image i is the probability of going from i
    /// to a prototype and from there to j: sum_p q_ip q_jp / sum_j' q_j'p. Weights cost N^2 P operations, and are computed only
    /// if `in_full`.
    pub fn from_codes(codes: [Vec<E>; 2], prototypes: usize, labels: &[i64], in_full: bool) -> Self {
        let n = labels.len();
        let nearest =
            |q: &[E]| (0..q.len()).max_by(|a, b| q[*a].as_f64().total_cmp(&q[*b].as_f64())).unwrap_or(0) as i64;
        let mut positives = Self { choices: codes[0].chunks(prototypes).map(nearest).collect(), ..Self::empty() };
        if !in_full {
            return positives;
        }
        positives.k = n - 1;
        for q in &codes {
            let mut used = vec![0.0; prototypes];
            for row in q.chunks(prototypes) {
                used.iter_mut().zip(row).for_each(|(sum, q)| *sum += q.as_f64());
            }
            for (i, row) in q.chunks(prototypes).enumerate() {
                for (j, other) in q.chunks(prototypes).enumerate() {
                    let shared = row.iter().zip(other).zip(&used).filter(|(_, used)| **used > 0.0);
                    let weight = E::of(shared.map(|((a, b), used)| a.as_f64() * b.as_f64() / used).sum());
                    if i == j {
                        positives.own.push(weight);
                    } else {
                        positives.w.push(weight);
                        positives.labels.push(labels[j]);
                    }
                }
            }
        }
        positives
    }

    fn empty() -> Self {
        Self {
            k: 0,
            own: Vec::new(),
            w: Vec::new(),
            labels: Vec::new(),
            ages: Vec::new(),
            similarities: Vec::new(),
            choices: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_one_prototype_are_each_others_positives() {
        // Images 0 and 1 share prototype 0, image 2 has prototype 1 for itself.
        let code = vec![1.0f64, 0.0, 1.0, 0.0, 0.0, 1.0];
        let positives = Positives::from_codes([code.clone(), code], 2, &[7, 8, 9], true);
        assert_eq!((positives.k, &positives.own[..3]), (2, &[0.5, 0.5, 1.0][..]));
        assert_eq!(positives.w[..6], [0.5, 0.0, 0.5, 0.0, 0.0, 0.0]);
        assert_eq!(positives.labels[..6], [8, 9, 7, 9, 7, 8]);
        assert_eq!(positives.choices, [0, 0, 1]);
    }
}

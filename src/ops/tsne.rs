//! Exact t-SNE (van der Maaten and Hinton 2008) from a given start, with the same bits for any number of threads.
//!
//! p_ij are similarities of the vectors, q_ij those of the points; gradient descent moves the points so that q follows p.

#![allow(clippy::disallowed_methods, reason = "a map is for a page, which is no result")]

use rayon::prelude::*;

const PERPLEXITY: f64 = 30.0;
const STEPS: usize = 500;
/// Number of initial steps in which p is multiplied by `EXAGGERATION`, so that groups of points can pass each other.
const EXAGGERATED: usize = 150;
const EXAGGERATION: f64 = 12.0;
/// Minimum number of vectors. Fewer vectors show no groups.
const FEWEST: usize = 12;

/// Maps the vectors `rows` [n, dim] to points in the plane. `start` [n] are the initial points, of any scale. None if there are
/// fewer than 12 vectors.
pub fn project(rows: &[f32], dim: usize, start: &[[f64; 2]]) -> Option<Vec<[f64; 2]>> {
    let n = start.len();
    if n < FEWEST {
        return None;
    }
    let p = similarities(rows, dim, n);
    let spread = (start.iter().map(|point| point[0] * point[0]).sum::<f64>() / n as f64).sqrt().max(f64::MIN_POSITIVE);
    let mut y: Vec<[f64; 2]> = start.iter().map(|point| point.map(|v| 1e-4 * v / spread)).collect();
    let (mut velocity, mut gains) = (vec![[0.0f64; 2]; n], vec![[1.0f64; 2]; n]);
    let rate = (n as f64 / EXAGGERATION / 4.0).max(50.0);
    for step in 0..STEPS {
        let (exaggeration, momentum) = if step < EXAGGERATED { (EXAGGERATION, 0.5) } else { (1.0, 0.8) };
        for (i, g) in gradient(&p, &y, exaggeration).into_iter().enumerate() {
            for axis in 0..2 {
                let (v, gain) = (&mut velocity[i][axis], &mut gains[i][axis]);
                // The gain grows while the point keeps its direction, and shrinks when the gradient turns it back.
                *gain = if (g[axis] > 0.0) == (*v > 0.0) { (*gain * 0.8).max(0.01) } else { *gain + 0.2 };
                *v = momentum * *v - rate * *gain * g[axis];
                y[i][axis] += *v;
            }
        }
        let mean = [0, 1].map(|axis| y.iter().map(|point| point[axis]).sum::<f64>() / n as f64);
        y.iter_mut().for_each(|point| *point = [point[0] - mean[0], point[1] - mean[1]]);
    }
    Some(y)
}

/// The gradient of each point: 4 sum_j (exaggeration p_ij - q_ij) (y_i - y_j) / (1 + |y_i - y_j|^2).
fn gradient(p: &[f32], y: &[[f64; 2]], exaggeration: f64) -> Vec<[f64; 2]> {
    let n = y.len();
    // Per point: the sum of 1 / (1 + distance^2), the attraction by p, and the repulsion by q before its normalisation.
    let rows: Vec<(f64, [f64; 2], [f64; 2])> = y
        .par_iter()
        .zip(p.par_chunks(n))
        .map(|(a, p)| {
            let (mut total, mut pull, mut push) = (0.0, [0.0; 2], [0.0; 2]);
            for (b, p) in y.iter().zip(p) {
                let d = [a[0] - b[0], a[1] - b[1]];
                let close = 1.0 / (1.0 + d[0] * d[0] + d[1] * d[1]);
                total += close;
                for axis in 0..2 {
                    pull[axis] += *p as f64 * close * d[axis];
                    push[axis] += close * close * d[axis];
                }
            }
            (total - 1.0, pull, push)
        })
        .collect();
    let total: f64 = rows.iter().map(|row| row.0).sum();
    let force = |(_, pull, push): &(f64, [f64; 2], [f64; 2])| {
        [0, 1].map(|axis| 4.0 * (exaggeration * pull[axis] - push[axis] / total))
    };
    rows.iter().map(force).collect()
}

/// Symmetric similarities p [n, n] that add up to 1.
fn similarities(rows: &[f32], dim: usize, n: usize) -> Vec<f32> {
    let perplexity = PERPLEXITY.min((n - 1) as f64 / 3.0);
    let vectors: Vec<&[f32]> = rows.chunks(dim).collect();
    let conditional: Vec<Vec<f64>> = (0..n)
        .into_par_iter()
        .map(|i| {
            let distance =
                |other: &&[f32]| -> f64 { vectors[i].iter().zip(*other).map(|(a, b)| ((a - b) as f64).powi(2)).sum() };
            neighbourhood(&vectors.iter().map(distance).collect::<Vec<_>>(), i, perplexity)
        })
        .collect();
    let scale = 1.0 / (2.0 * n as f64);
    (0..n * n).map(|at| ((conditional[at / n][at % n] + conditional[at % n][at / n]) * scale) as f32).collect()
}

/// Softmax of -beta * distance over all vectors except `own`. beta is chosen so that the entropy is log(perplexity).
fn neighbourhood(distances: &[f64], own: usize, perplexity: f64) -> Vec<f64> {
    let nearest =
        distances.iter().enumerate().filter(|(j, _)| *j != own).map(|(_, d)| *d).fold(f64::INFINITY, f64::min);
    let at = |beta: f64| {
        let mut p: Vec<f64> = distances.iter().map(|d| (-beta * (d - nearest)).exp()).collect();
        p[own] = 0.0;
        let total: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        (p, entropy)
    };
    let (mut low, mut high, mut beta) = (0.0, f64::INFINITY, 1.0);
    for _ in 0..60 {
        let entropy = at(beta).1;
        if (entropy - perplexity.ln()).abs() < 1e-5 {
            break;
        }
        if entropy > perplexity.ln() {
            low = beta;
            beta = if high.is_finite() { (low + high) / 2.0 } else { beta * 2.0 };
        } else {
            high = beta;
            beta = (low + high) / 2.0;
        }
    }
    at(beta).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pca;

    /// Three groups far from each other, 20 vectors each.
    fn groups() -> Vec<f32> {
        (0..60)
            .flat_map(|i: usize| {
                (0..5).map(move |d| if d == i / 20 { 1.0 } else { ((i * 7 + d * 3) % 11) as f32 * 0.01 })
            })
            .collect()
    }

    #[test]
    fn groups_stay_together_and_apart_whatever_the_threads() {
        let rows = groups();
        let start = pca::project(&rows, 5);
        let points = project(&rows, 5, &start).unwrap();
        let distance = |a: usize, b: usize| (points[a][0] - points[b][0]).hypot(points[a][1] - points[b][1]);
        for i in 0..60 {
            let nearest =
                (0..60).filter(|j| *j != i).min_by(|a, b| distance(i, *a).total_cmp(&distance(i, *b))).unwrap();
            assert_eq!(nearest / 20, i / 20);
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(points, pool.install(|| project(&rows, 5, &start)).unwrap());
        assert!(project(&rows[..20], 5, &start[..4]).is_none());
    }

    #[test]
    fn a_neighbourhood_has_the_perplexity_that_was_asked_for() {
        let distances: Vec<f64> = (0..50).map(|i| (i as f64 * 0.37).sin().powi(2) * 9.0).collect();
        let p = neighbourhood(&distances, 3, 12.0);
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        assert!((entropy.exp() - 12.0).abs() < 1e-2 && p[3] == 0.0);
    }
}

//! Standardises features by mean and standard deviation of the training split.

use super::softmax::Classifier;

/// A feature whose standard deviation is below this share of the largest one counts as constant. It is set to 0, since scaling
/// it would only amplify noise.
const CONSTANT: f64 = 1e-6;

/// x -> (x - mean) * scale, per feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Standardizer {
    mean: Vec<f64>,
    scale: Vec<f64>,
}

impl Standardizer {
    /// The identity on features of width `dim`.
    pub fn identity(dim: usize) -> Self {
        Standardizer { mean: vec![0.0; dim], scale: vec![1.0; dim] }
    }

    /// The standardiser that gives `rows` [n, dim] mean 0 and standard deviation 1 per feature.
    pub fn fit(rows: &[f32], dim: usize) -> Self {
        let n = (rows.len() / dim).max(1) as f64;
        let mut mean = vec![0.0; dim];
        for row in rows.chunks_exact(dim) {
            mean.iter_mut().zip(row).for_each(|(m, &x)| *m += x as f64);
        }
        mean.iter_mut().for_each(|m| *m /= n);
        let mut variance = vec![0.0; dim];
        for row in rows.chunks_exact(dim) {
            for (v, (&x, m)) in variance.iter_mut().zip(row.iter().zip(&mean)) {
                let off = x as f64 - m;
                *v += off * off;
            }
        }
        let deviation: Vec<f64> = variance.iter().map(|v| (v / n).sqrt()).collect();
        let least = CONSTANT * deviation.iter().fold(0.0, |a: f64, &b| a.max(b));
        let scale = deviation.iter().map(|&d| if d > least { 1.0 / d } else { 0.0 }).collect();
        Standardizer { mean, scale }
    }

    /// Standardises `rows` [n, dim] in place.
    pub fn apply(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.mean.len()) {
            for (x, (mean, scale)) in row.iter_mut().zip(self.mean.iter().zip(&self.scale)) {
                *x = ((*x as f64 - mean) * scale) as f32;
            }
        }
    }

    /// Weight [classes, dim] and bias [classes] that give the logits of `classifier` from raw features.
    pub fn fold(&self, classifier: &Classifier<f32>) -> (Vec<f32>, Vec<f32>) {
        let (dim, classes) = (classifier.dim, classifier.classes);
        let (weight, bias) = classifier.params.split_at(dim * classes);
        let at = |class: usize, d: usize| weight[d * classes + class] as f64 * self.scale[d];
        let folded = (0..classes).flat_map(|class| (0..dim).map(move |d| (class, d))).map(|(c, d)| at(c, d) as f32);
        let shift = |class| (0..dim).map(|d| at(class, d) * self.mean[d]).sum::<f64>();
        (folded.collect(), (0..classes).map(|class| (bias[class] as f64 - shift(class)) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_features_get_mean_zero_and_deviation_one_and_constant_ones_vanish() {
        let mut rows: Vec<f32> = (0..30).flat_map(|i| [i as f32 * 3.0 + 100.0, 7.1, (i % 2) as f32]).collect();
        let standardizer = Standardizer::fit(&rows, 3);
        standardizer.apply(&mut rows);
        for d in [0, 2] {
            let column = || rows.iter().skip(d).step_by(3).map(|&x| x as f64);
            assert!((column().sum::<f64>() / 30.0).abs() < 1e-6);
            assert!((column().map(|x| x * x).sum::<f64>() / 30.0 - 1.0).abs() < 1e-6);
        }
        assert!(rows.iter().skip(1).step_by(3).all(|&x| x == 0.0));
        let mut unseen = [100.0, 9.0, 0.0];
        standardizer.apply(&mut unseen);
        assert_eq!(unseen[1], 0.0);
    }
}

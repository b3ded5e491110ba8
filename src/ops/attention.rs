//! Softmax attention of several heads within each sample: forward and gradient.
//!
//! Queries, keys and values lie as timm's `attn.qkv` gives them, [samples, tokens, 3, heads, head width]. The attention
//! weights of one sample and head fit a core's cache; the backward pass computes them again instead of keeping them.

#[cfg(any(test, feature = "cuda"))]
pub mod cuda;

use rayon::prelude::*;

use super::{
    Real,
    columns::sum,
    gemm::{Matrix, Threads, gemm},
    simd::vectorized,
};

/// Shape of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Tokens per sample.
    pub tokens: usize,
    pub heads: usize,
    /// Elements of one token: `heads` times the width of a head.
    pub width: usize,
}

/// Matrices of one head, used again for the next one.
struct Scratch<E> {
    weights: Vec<E>,
    g_weights: Vec<E>,
    rows: Vec<E>,
}

impl Attention {
    /// y [samples, tokens, heads, head width] = softmax(q k^T / sqrt(head width)) v.
    pub fn forward<E: Real>(&self, qkv: &[E], y: &mut [E]) {
        let (sample, dim) = (self.tokens * self.width, self.head_width());
        assert_eq!(qkv.len(), 3 * y.len());
        y.par_chunks_mut(sample).zip(qkv.par_chunks(3 * sample)).for_each_init(
            || self.scratch(),
            |scratch, (y, qkv)| {
                for head in 0..self.heads {
                    let [q, k, v] = self.matrices(qkv, head);
                    self.weights(q, k, &mut scratch.weights);
                    let weights = Matrix::new(&scratch.weights, self.tokens, self.tokens);
                    gemm(weights, v, false, &mut scratch.rows, Threads::One);
                    self.place(&scratch.rows, y, self.width, head * dim);
                }
            },
        );
    }

    /// Writes the gradient of `qkv` to `g_qkv`, from that of y, `gy`.
    pub fn backward<E: Real>(&self, qkv: &[E], gy: &[E], g_qkv: &mut [E]) {
        let (tokens, sample, dim) = (self.tokens, self.tokens * self.width, self.head_width());
        assert_eq!((qkv.len(), g_qkv.len()), (3 * gy.len(), 3 * gy.len()));
        let samples = g_qkv.par_chunks_mut(3 * sample).zip(gy.par_chunks(sample)).zip(qkv.par_chunks(3 * sample));
        samples.for_each_init(
            || self.scratch(),
            |scratch, ((g_qkv, gy), qkv)| {
                for head in 0..self.heads {
                    let [q, k, v] = self.matrices(qkv, head);
                    self.weights(q, k, &mut scratch.weights);
                    let Scratch { weights, g_weights, rows } = scratch;
                    let gy = Matrix {
                        data: &gy[head * dim..],
                        rows: tokens,
                        columns: dim,
                        row_stride: self.width,
                        column_stride: 1,
                    };
                    gemm(gy, v.t(), false, g_weights, Threads::One);
                    gemm(Matrix::new(weights, tokens, tokens).t(), gy, false, rows, Threads::One);
                    self.place(rows, g_qkv, 3 * self.width, 2 * self.width + head * dim);
                    self.softmax_backward(weights, g_weights);
                    let g_logits = Matrix::new(g_weights.as_slice(), tokens, tokens);
                    gemm(g_logits, k, false, rows, Threads::One);
                    self.place(rows, g_qkv, 3 * self.width, head * dim);
                    gemm(g_logits.t(), q, false, rows, Threads::One);
                    self.place(rows, g_qkv, 3 * self.width, self.width + head * dim);
                }
            },
        );
    }

    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// Factor on the logits.
    fn scale<E: Real>(&self) -> E {
        E::of(1.0 / (self.head_width() as f64).sqrt())
    }

    fn scratch<E: Real>(&self) -> Scratch<E> {
        let square = self.tokens * self.tokens;
        Scratch {
            weights: vec![E::zero(); square],
            g_weights: vec![E::zero(); square],
            rows: vec![E::zero(); self.tokens * self.head_width()],
        }
    }

    /// Queries, keys and values [tokens, head width] of a head of one sample.
    fn matrices<'a, E>(&self, qkv: &'a [E], head: usize) -> [Matrix<'a, E>; 3] {
        [0, 1, 2].map(|part| Matrix {
            data: &qkv[part * self.width + head * self.head_width()..],
            rows: self.tokens,
            columns: self.head_width(),
            row_stride: 3 * self.width,
            column_stride: 1,
        })
    }

    /// weights [tokens, tokens] = softmax over each row of q k^T / sqrt(head width).
    fn weights<E: Real>(&self, q: Matrix<E>, k: Matrix<E>, weights: &mut [E]) {
        gemm(q, k.t(), false, weights, Threads::One);
        let scale = self.scale::<E>();
        vectorized(
            #[inline(always)]
            || {
                for row in weights.chunks_exact_mut(self.tokens) {
                    let largest = row.iter().fold(E::neg_infinity(), |a, b| if *b > a { *b } else { a });
                    for w in row.iter_mut() {
                        *w = ((*w - largest) * scale).exp_inline();
                    }
                    let inverse = E::one() / sum(row.len(), |i| row[i]);
                    for w in row.iter_mut() {
                        *w *= inverse;
                    }
                }
            },
        );
    }

    /// g: from the gradient of the weights to that of q k^T.
    fn softmax_backward<E: Real>(&self, weights: &[E], g: &mut [E]) {
        let (tokens, scale) = (self.tokens, self.scale::<E>());
        vectorized(
            #[inline(always)]
            || {
                for (w, g) in weights.chunks_exact(tokens).zip(g.chunks_exact_mut(tokens)) {
                    let along = sum(tokens, |i| w[i] * g[i]);
                    for (w, g) in w.iter().zip(g) {
                        *g = *w * (*g - along) * scale;
                    }
                }
            },
        );
    }

    /// Copies the rows of one head to their place, `offset` elements into rows of `stride`.
    fn place<E: Real>(&self, rows: &[E], target: &mut [E], stride: usize, offset: usize) {
        let dim = self.head_width();
        for (row, target) in rows.chunks_exact(dim).zip(target.chunks_exact_mut(stride)) {
            target[offset..offset + dim].copy_from_slice(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Attention = Attention { tokens: 19, heads: 2, width: 8 };
    const SAMPLES: usize = 3;

    fn ramp(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| (i as f64 * step).sin() * 2.0).collect()
    }

    fn forward(qkv: &[f64]) -> Vec<f64> {
        let mut y = vec![f64::NAN; qkv.len() / 3];
        SHAPE.forward(qkv, &mut y);
        y
    }

    #[test]
    fn agrees_with_the_formula() {
        let (t, w, d) = (SHAPE.tokens, SHAPE.width, SHAPE.width / SHAPE.heads);
        let qkv = ramp(SAMPLES * t * 3 * w, 0.7);
        let y = forward(&qkv);
        let at = |s: usize, token: usize, part: usize, c: usize| qkv[((s * t + token) * 3 + part) * w + c];
        for (s, i, c) in (0..SAMPLES).flat_map(|s| (0..t).flat_map(move |i| (0..w).map(move |c| (s, i, c)))) {
            let first = c / d * d;
            let logit =
                |j: usize| (first..first + d).map(|c| at(s, i, 0, c) * at(s, j, 1, c)).sum::<f64>() / (d as f64).sqrt();
            let exps: Vec<f64> = (0..t).map(|j| logit(j).exp()).collect();
            let expected = (0..t).map(|j| exps[j] * at(s, j, 2, c)).sum::<f64>() / exps.iter().sum::<f64>();
            assert!((y[(s * t + i) * w + c] - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        let qkv = ramp(SAMPLES * SHAPE.tokens * 3 * SHAPE.width, 0.7);
        let cot = ramp(qkv.len() / 3, 0.37);
        let mut g = vec![f64::NAN; qkv.len()];
        SHAPE.backward(&qkv, &cot, &mut g);
        // Queries, keys and values each along a direction of their own.
        for part in 0..3 {
            let direction: Vec<f64> = ramp(qkv.len(), 1.1)
                .into_iter()
                .enumerate()
                .map(|(i, d)| if i / SHAPE.width % 3 == part { d } else { 0.0 })
                .collect();
            let at = |step: f64| -> f64 {
                let moved: Vec<f64> = qkv.iter().zip(&direction).map(|(v, d)| v + step * d).collect();
                forward(&moved).iter().zip(&cot).map(|(y, c)| y * c).sum()
            };
            let difference = (at(1e-6) - at(-1e-6)) / 2e-6;
            let along: f64 = g.iter().zip(&direction).map(|(g, d)| g * d).sum();
            assert!((along - difference).abs() < 1e-7 * difference.abs().max(1.0), "{part}: {along} {difference}");
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let mut y = vec![0.0f32; 2 * 8];
        let shape = Attention { tokens: 2, ..SHAPE };
        shape.forward(&[100.0; 2 * 3 * 8], &mut y);
        assert!(y.iter().all(|y| (y - 100.0).abs() < 1e-4), "{y:?}");
    }
}

//! Softmax attention of several heads within each sample: forward and gradient, on the calling thread.
//!
//! The attention weights of one sample and head fit a core's cache; the backward pass recomputes them, so that they need not be
//! kept.

pub mod cuda;

use super::{Real, gemm::gemm, matrix::Matrix, parts::Threads, reductions::sum, simd::vectorized};

/// Shape of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Tokens per sample.
    pub tokens: usize,
    pub heads: usize,
    /// Elements of one token: `heads` times the width of a head.
    pub width: usize,
}

/// Tokens of [heads, head width] elements each, which start `row` elements apart.
#[derive(Clone, Copy)]
pub struct Tokens<'a, E> {
    pub data: &'a [E],
    pub row: usize,
}

impl<'a, E> Tokens<'a, E> {
    /// The columns of `head` in the tokens of a sample, where each sample has `count` tokens.
    fn of(self, sample: usize, count: usize, head: usize, dim: usize) -> Matrix<'a, E> {
        let data = &self.data[sample * count * self.row + head * dim..];
        Matrix { data, rows: count, columns: dim, row_stride: self.row, column_stride: 1 }
    }
}

impl Attention {
    /// y [samples, queries, heads, head width] = softmax(q k^T / sqrt(head width)) v, where the length of y determines the
    /// number of queries per sample.
    pub fn forward<E: Real>(&self, samples: usize, [q, k, v]: [Tokens<E>; 3], y: &mut [E]) {
        let (tokens, dim) = (self.tokens, self.head_width());
        let queries = y.len() / (samples * self.width);
        E::with_scratch(queries * (tokens + dim), |memory| {
            let (weights, rows) = memory.split_at_mut(queries * tokens);
            for (sample, y) in y.chunks_exact_mut(queries * self.width).enumerate() {
                for head in 0..self.heads {
                    let [k, v] = [k, v].map(|part| part.of(sample, tokens, head, dim));
                    self.weights(q.of(sample, queries, head, dim), k, weights);
                    gemm(Matrix::new(weights, queries, tokens), v, false, rows, Threads::One);
                    place(rows, dim, y, self.width, head * dim);
                }
            }
        });
    }

    /// Computes gradients from `gy`, the gradient of y: that of q into `g_q` [samples, queries, width], and those of k and v
    /// side by side into `g_kv` [samples, tokens, 2 width].
    pub fn backward<E: Real>(
        &self,
        samples: usize,
        [q, k, v]: [Tokens<E>; 3],
        gy: &[E],
        g_q: &mut [E],
        g_kv: &mut [E],
    ) {
        let (tokens, width, dim) = (self.tokens, self.width, self.head_width());
        let queries = gy.len() / (samples * width);
        let gy = Tokens { data: gy, row: width };
        E::with_scratch(2 * queries * tokens + tokens.max(queries) * dim, |memory| {
            let (weights, memory) = memory.split_at_mut(queries * tokens);
            let (g_weights, rows) = memory.split_at_mut(queries * tokens);
            let samples = g_q.chunks_exact_mut(queries * width).zip(g_kv.chunks_exact_mut(tokens * 2 * width));
            for (sample, (g_q, g_kv)) in samples.enumerate() {
                for head in 0..self.heads {
                    let [k, v] = [k, v].map(|part| part.of(sample, tokens, head, dim));
                    let [q, gy] = [q, gy].map(|part| part.of(sample, queries, head, dim));
                    self.weights(q, k, weights);
                    gemm(gy, v.t(), false, g_weights, Threads::One);
                    let of_keys = &mut rows[..tokens * dim];
                    gemm(Matrix::new(weights, queries, tokens).t(), gy, false, of_keys, Threads::One);
                    place(of_keys, dim, g_kv, 2 * width, width + head * dim);
                    self.softmax_backward(weights, g_weights);
                    let g_logits = Matrix::new(&*g_weights, queries, tokens);
                    gemm(g_logits.t(), q, false, of_keys, Threads::One);
                    place(of_keys, dim, g_kv, 2 * width, head * dim);
                    let of_queries = &mut rows[..queries * dim];
                    gemm(g_logits, k, false, of_queries, Threads::One);
                    place(of_queries, dim, g_q, width, head * dim);
                }
            }
        });
    }

    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// Factor on the logits.
    fn scale<E: Real>(&self) -> E {
        E::of(1.0 / (self.head_width() as f64).sqrt())
    }

    /// weights [queries, tokens] = softmax over each row of q k^T / sqrt(head width).
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

    /// Turns `g` from the gradient of the attention weights into the gradient of q k^T.
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
}

/// Copies rows of `dim` elements into rows of `stride` elements, at `offset`.
fn place<E: Real>(rows: &[E], dim: usize, target: &mut [E], stride: usize, offset: usize) {
    for (row, target) in rows.chunks_exact(dim).zip(target.chunks_exact_mut(stride)) {
        target[offset..offset + dim].copy_from_slice(row);
    }
}

/// Queries, keys and values in the layout of timm's `attn.qkv` output, [samples, tokens, 3, heads, head width].
#[cfg(test)]
pub(crate) mod side_by_side {
    use super::*;

    fn of<'a, E>(shape: &Attention, qkv: &'a [E]) -> (usize, [Tokens<'a, E>; 3]) {
        let row = 3 * shape.width;
        let tokens = [0, 1, 2].map(|part| Tokens { data: &qkv[part * shape.width..], row });
        (qkv.len() / (row * shape.tokens), tokens)
    }

    pub fn forward<E: Real>(shape: &Attention, qkv: &[E], y: &mut [E]) {
        let (samples, tokens) = of(shape, qkv);
        shape.forward(samples, tokens, y);
    }

    pub fn backward<E: Real>(shape: &Attention, qkv: &[E], gy: &[E], g_qkv: &mut [E]) {
        let (samples, tokens) = of(shape, qkv);
        let (mut g_q, mut g_kv) = (gy.to_vec(), vec![E::nan(); 2 * gy.len()]);
        shape.backward(samples, tokens, gy, &mut g_q, &mut g_kv);
        place(&g_q, shape.width, g_qkv, 3 * shape.width, 0);
        place(&g_kv, 2 * shape.width, g_qkv, 3 * shape.width, shape.width);
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
        side_by_side::forward(&SHAPE, qkv, &mut y);
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
        side_by_side::backward(&SHAPE, &qkv, &cot, &mut g);
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
        side_by_side::forward(&shape, &[100.0; 2 * 3 * 8], &mut y);
        assert!(y.iter().all(|y| (y - 100.0).abs() < 1e-4), "{y:?}");
    }

    /// With fewer queries than tokens, the outputs have the bits of the same queries among all, and the gradients are those of
    /// all queries where the other outputs' gradients are zero.
    #[test]
    fn queries_stand_for_themselves() {
        let (t, w) = (SHAPE.tokens, SHAPE.width);
        let qkv: Vec<f32> = ramp(SAMPLES * t * 3 * w, 0.7).iter().map(|v| *v as f32).collect();
        let mut whole = vec![0.0; qkv.len() / 3];
        side_by_side::forward(&SHAPE, &qkv, &mut whole);
        let first = |rows: &[f32], row: usize| -> Vec<f32> {
            rows.chunks_exact(t * row).flat_map(|sample| &sample[..2 * row]).copied().collect()
        };
        let queries = first(&qkv, 3 * w);
        let tokens = [(&queries[..], 0), (&qkv[..], 1), (&qkv[..], 2)]
            .map(|(data, part)| Tokens { data: &data[part * w..], row: 3 * w });
        let mut y = vec![0.0; SAMPLES * 2 * w];
        SHAPE.forward(SAMPLES, tokens, &mut y);
        assert_eq!(y, first(&whole, w));
        let mut gy = vec![0.0; whole.len()];
        gy.chunks_exact_mut(t * w)
            .for_each(|sample| sample[..2 * w].iter_mut().enumerate().for_each(|(i, g)| *g = (i as f32).cos()));
        let mut g_whole = vec![0.0; qkv.len()];
        side_by_side::backward(&SHAPE, &qkv, &gy, &mut g_whole);
        let (mut g_q, mut g_kv) = (vec![0.0; y.len()], vec![0.0; SAMPLES * t * 2 * w]);
        SHAPE.backward(SAMPLES, tokens, &first(&gy, w), &mut g_q, &mut g_kv);
        let close = |a: f32, b: f32| (a - b).abs() < 1e-5;
        for (i, g) in g_kv.iter().enumerate() {
            assert!(close(*g, g_whole[i / (2 * w) * 3 * w + w + i % (2 * w)]));
        }
        let expected = first(&g_whole, 3 * w);
        assert!(g_q.iter().enumerate().all(|(i, g)| close(*g, expected[i / w * 3 * w + i % w])));
    }
}

//! Contrastive logits as dfdx operations: the log of a row's sum of exp, and the columns that are a row's own.
//!
//! The matrix of logits is the largest that a loss touches. On the CPU each operation passes over it once, on all threads;
//! on a GPU it is never there as a whole.

pub mod cuda;

use dfdx::prelude::*;
use rayon::prelude::*;

use super::{
    Real,
    linear::{LinearKernel, linear},
    simd::vectorized,
    softmax::largest_and_rest,
    tensor::{Buffer, Matrix, Rows, Traced, TracedRows, to_vec, traced, with_elements},
};

/// A value per row.
pub type PerRow<E, D, T = NoneTape> = Tensor<(usize,), E, D, T>;

/// What a contrastive loss is made of, per anchor: log of the sum of exp over all logits [N], and the logits of its own
/// candidates [N, own].
pub type Logits<E, D> = (PerRow<E, D, OwnedTape<E, D>>, Traced<E, D>);

/// Which of the N own candidates are an anchor's own: those of row (anchor + shift) mod N, where each row has `own`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairs {
    pub own: usize,
    pub shift: usize,
    /// Whether anchors and candidates are the same rows, none of which is its own candidate.
    pub alone: bool,
}

impl Pairs {
    /// The candidates are those of anchor 1, then of anchor 2, ...
    pub fn grouped(own: usize) -> Self {
        Self { own, shift: 0, alone: false }
    }

    /// Anchors and candidates are both views of N images, one behind the other: the other view is an anchor's own.
    pub fn of_views(n: usize) -> Self {
        Self { own: 1, shift: n, alone: true }
    }
}

/// A logit that no other notices: a row is no candidate of itself.
const NEVER: f64 = -1e9;

/// The device's way of [`contrast`]; composed of dfdx's operations where it has no other.
pub trait ContrastKernel<E: Dtype>: LinearKernel<E> {
    fn contrast<R: Tape<E, Self>>(
        anchors: TracedRows<E, Self>,
        candidates: Rows<E, Self, R>,
        pairs: Pairs,
        tau: E,
    ) -> Result<Logits<E, Self>, Self::Err>
    where
        E: Real,
        OwnedTape<E, Self>: Merge<R>,
    {
        let mut s = linear(anchors, candidates)?.into_tensor();
        let (n, m) = *s.shape();
        if pairs.alone {
            let itself = (0..n * m).map(|i| if i % (m + 1) == 0 { E::of(NEVER) } else { E::zero() }).collect();
            let itself: Matrix<E, Self> = s.device().try_tensor_from_vec(itself, (n, m))?;
            s = s.try_add(itself)?;
        }
        let (s, tape) = s.split_tape();
        let all = Self::log_sum_exp(s.clone().put_tape(tape), tau)?;
        if pairs.shift == 0 {
            return Ok((all, Self::own_columns(traced(s), pairs.own, tau)?));
        }
        let columns = |i: usize| (i + pairs.shift) % n * pairs.own..((i + pairs.shift) % n + 1) * pairs.own;
        let columns: Tensor<(usize, usize), usize, Self> =
            s.device().try_tensor_from_vec((0..n).flat_map(columns).collect(), (n, pairs.own))?;
        Ok((all, traced(s).try_div(tau)?.try_gather(columns)?))
    }

    fn interleave(a: &Rows<E, Self>, b: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    fn scale_rows(rows: &Rows<E, Self>, factors: &Rows<E, Self>) -> Result<Rows<E, Self>, Self::Err>;

    /// ln sum_j exp(s_j / tau) of each row of s [n, m].
    #[allow(clippy::disallowed_methods, reason = "other devices do not use the C library")]
    fn log_sum_exp<T: Tape<E, Self>>(s: Matrix<E, Self, T>, tau: E) -> Result<PerRow<E, Self, T>, Self::Err> {
        s.try_div(tau)?.try_logsumexp::<(usize,), Axis<1>>()
    }

    /// Row i's columns i own .. (i + 1) own of s [n, n own], over tau: [n, own].
    fn own_columns<T: Tape<E, Self>>(
        s: Matrix<E, Self, T>,
        own: usize,
        tau: E,
    ) -> Result<Matrix<E, Self, T>, Self::Err> {
        let n = s.shape().0;
        let columns: Tensor<(usize, usize), usize, Self> =
            s.device().try_tensor_from_vec((0..n * own).collect(), (n, own))?;
        s.try_div(tau)?.try_gather(columns)
    }
}

/// Rows a_i, b_(i k) .. b_(i k + k - 1) for each i, of a [n, d] and b [n k, d]: [n (k + 1), d].
///
/// # Errors
/// The device's, when memory runs out.
pub fn interleave<E: Real, D: ContrastKernel<E>>(a: &Rows<E, D>, b: &Rows<E, D>) -> Result<Rows<E, D>, D::Err> {
    D::interleave(a, b)
}

/// Each row of `rows` [n, d] times its factor, of `factors` [n, 1].
///
/// # Errors
/// The device's, when memory runs out.
pub fn scale_rows<E: Real, D: ContrastKernel<E>>(
    rows: &Rows<E, D>,
    factors: &Rows<E, D>,
) -> Result<Rows<E, D>, D::Err> {
    D::scale_rows(rows, factors)
}

/// For each of N anchors: log of the sum of exp over all logits [N], and the logits of its own candidates [N, own]. Anchors
/// [N, D] and candidates [N own, D] have unit length; a logit is a cosine over tau.
///
/// # Errors
/// The device's, when memory runs out.
pub fn contrast<E: Real, D: ContrastKernel<E>, R: Tape<E, D>>(
    anchors: TracedRows<E, D>,
    candidates: Rows<E, D, R>,
    pairs: Pairs,
    tau: f64,
) -> Result<Logits<E, D>, D::Err>
where
    OwnedTape<E, D>: Merge<R>,
{
    D::contrast(anchors, candidates, pairs, E::of(tau))
}

impl<E: Real> ContrastKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    fn interleave(a: &Rows<E, Self>, b: &Rows<E, Self>) -> Result<Rows<E, Self>, CpuError> {
        let ((n, dim), rows) = (a.shape(), b.shape().0);
        let mut both = vec![E::zero(); (n + rows) * dim];
        with_elements(a.tensor(), |first| {
            with_elements(b.tensor(), |rest| {
                let k = rows / n;
                let groups = both.par_chunks_exact_mut((k + 1) * dim);
                groups.zip(first.par_chunks_exact(dim)).zip(rest.par_chunks_exact(k * dim)).for_each(
                    |((both, first), rest)| {
                        both[..dim].copy_from_slice(first);
                        both[dim..].copy_from_slice(rest);
                    },
                );
            });
        });
        Ok(Rows::new(a.device().try_tensor_from_vec(both, (n + rows, dim))?, ()))
    }

    fn scale_rows(rows: &Rows<E, Self>, factors: &Rows<E, Self>) -> Result<Rows<E, Self>, CpuError> {
        let (mut scaled, factors, dim) = (to_vec(rows.tensor()), to_vec(factors.tensor()), rows.shape().1);
        scaled.par_chunks_exact_mut(dim).zip(factors).for_each(|(row, factor)| {
            row.iter_mut().for_each(|v| *v *= factor);
        });
        Ok(Rows::new(rows.device().try_tensor_from_vec(scaled, rows.shape())?, ()))
    }

    fn log_sum_exp<T: Tape<E, Self>>(s: Matrix<E, Self, T>, tau: E) -> Result<PerRow<E, Self, T>, CpuError> {
        let (s, mut tape) = s.split_tape();
        let (n, m) = *s.shape();
        let scale = E::one() / tau;
        let mut y = vec![E::zero(); n];
        with_elements(&s, |s| {
            y.par_iter_mut().zip(s.par_chunks_exact(m)).for_each(|(y, s)| {
                vectorized(
                    #[inline(always)]
                    || {
                        let (largest, rest) = largest_and_rest(s, scale);
                        *y = largest * scale + rest;
                    },
                );
            });
        });
        let y = s.device().try_tensor_from_vec(y, (n,))?;
        let kept = y.clone();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&kept)?.clone();
            let (y, gs) = (to_vec(&kept), gradients.get_or_alloc_mut(&s)?);
            with_elements(&s, |s| {
                let rows = gs.par_chunks_exact_mut(m).zip(s.par_chunks_exact(m)).zip(y.par_iter().zip(gy.par_iter()));
                rows.for_each(|((gs, s), (y, gy))| {
                    let factor = *gy * scale;
                    vectorized(
                        #[inline(always)]
                        || {
                            for (gs, s) in gs.iter_mut().zip(s) {
                                *gs += factor * (*s * scale - *y).exp_inline();
                            }
                        },
                    );
                });
            });
            Ok(())
        });
        Ok(y.put_tape(tape))
    }

    fn own_columns<T: Tape<E, Self>>(
        s: Matrix<E, Self, T>,
        own: usize,
        tau: E,
    ) -> Result<Matrix<E, Self, T>, CpuError> {
        let (s, mut tape) = s.split_tape();
        let (n, m) = *s.shape();
        let y = with_elements(&s, |s| {
            (0..n).flat_map(|i| &s[i * (m + own)..][..own]).map(|s| *s / tau).collect::<Vec<_>>()
        });
        let y = s.device().try_tensor_from_vec(y, (n, own))?;
        let y_ghost = y.ghost();
        tape.add_backward_op(move |gradients| {
            let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
            let gs = gradients.get_or_alloc_mut(&s)?;
            for (i, gy) in gy.chunks_exact(own).enumerate() {
                for (gs, gy) in gs[i * (m + own)..].iter_mut().zip(gy) {
                    *gs += *gy / tau;
                }
            }
            Ok(())
        });
        Ok(y.put_tape(tape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both operations made of dfdx's, and the loss that follows from a cotangent of each.
    #[test]
    fn agree_with_compositions_of_dfdx() {
        let device = Cpu::default();
        let (n, own, tau) = (5, 3, 0.2);
        let values = |n: usize, step: f64| (0..n).map(|i| (i as f64 * step).sin()).collect::<Vec<_>>();
        let s: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * n * own, 0.7), (n, n * own));
        let cot: PerRow<f64, Cpu> = device.tensor_from_vec(values(n, 0.3), (n,));
        let own_cot: Matrix<f64, Cpu> = device.tensor_from_vec(values(n * own, 1.3), (n, own));

        let fused = Cpu::log_sum_exp(s.leaky_trace(), tau).unwrap();
        let fused_own = Cpu::own_columns(s.leaky_trace(), own, tau).unwrap();
        let columns = device.tensor_from_vec((0..n * own).collect(), (n, own));
        let composed = (s.leaky_trace() / tau).logsumexp::<(usize,), Axis<1>>();
        let composed_own: Matrix<f64, Cpu, _> = (s.leaky_trace() / tau).gather(columns);
        let close = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(fused.as_vec(), composed.as_vec()) && close(fused_own.as_vec(), composed_own.as_vec()));

        let gradient = |all: PerRow<f64, Cpu, OwnedTape<f64, Cpu>>, own: Matrix<f64, Cpu, OwnedTape<f64, Cpu>>| {
            let loss = (all * cot.clone()).sum::<Rank0, _>() + (own * own_cot.clone()).sum::<Rank0, _>();
            loss.backward().get(&s).as_vec()
        };
        assert!(close(gradient(fused, fused_own), gradient(composed, composed_own)));
    }
}

//! Logits of contrastive losses, and the sum over pairs of views that all methods share.

use dfdx::prelude::*;

use crate::ops::{
    Real,
    backend::Backend,
    contrast::{log_sum_exp, own_columns},
    linear::linear,
    seam::{Matrix, Traced, TracedScalar, traced},
};

/// What a contrastive loss is made of, per anchor: log of the sum of exp over all logits [N], and the logits of its own
/// candidates [N, own].
pub type Logits<E, D> = (Tensor<(usize,), E, D, OwnedTape<E, D>>, Traced<E, D>);

/// For each of N anchors at unit length: log of the sum of exp over all logits [N], and the logits of its own
/// candidates [N, own]. The candidates [N own, D], at unit length too, are those of anchor 1, then of anchor 2, ...;
/// a logit is a cosine over tau.
pub fn contrast<E: Real, D: Backend<E>, R: Tape<E, D>>(
    anchors: Traced<E, D>,
    candidates: Matrix<E, D, R>,
    own: usize,
    tau: f64,
) -> Result<Logits<E, D>, D::Err>
where
    OwnedTape<E, D>: Merge<R>,
{
    let (s, tape) = linear(anchors, candidates)?.split_tape();
    let all = log_sum_exp(s.clone().put_tape(tape), tau)?;
    Ok((all, own_columns(traced(s), own, tau)?))
}

/// Sum over both full views of the mean over all other crops of `loss(source, target)`: the source crop predicts the
/// target, 0 or 1. Crops 0 and 1 are the full views.
pub fn each_view_predicted<E: Real, D: Backend<E>>(
    crops: usize,
    mut loss: impl FnMut(usize, usize) -> Result<TracedScalar<E, D>, D::Err>,
) -> Result<TracedScalar<E, D>, D::Err> {
    let mut of_target = |target: usize| {
        let mut total = loss(1 - target, target)?;
        for source in 2..crops {
            total = total.try_add(loss(source, target)?)?;
        }
        total.try_div(E::of((crops - 1) as f64))
    };
    of_target(1)?.try_add(of_target(0)?)
}

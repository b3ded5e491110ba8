//! Sums a loss over pairs of views, for all contrastive methods.

use dfdx::prelude::*;

use crate::ops::{
    Real,
    tensor::{TensorDevice, TracedScalar},
};

/// Sum over both full views of the mean over all other crops of `loss(source, target)`: the source crop predicts the
/// target, 0 or 1. Crops 0 and 1 are the full views.
pub fn each_view_predicted<E: Real, D: TensorDevice<E>>(
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

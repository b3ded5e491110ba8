//! Contrastive logits of a batch that ranks share.

use dfdx::prelude::*;

use super::{Memory, RowsOf};
use crate::ops::{
    contrast::Pairs,
    tensor::{Logits, TensorDevice, TracedRows},
};

type Tensors<B> = <B as Memory>::Tensors;

/// Logits, or what the losses' device fails with.
pub type LogitsOf<B> = Result<Logits<<B as Memory>::Real, Tensors<B>>, <Tensors<B> as HasErr>::Err>;

/// The logits that a loss is made of, which are most of its work.
pub trait Contrasts: Memory {
    /// As [`TensorDevice::contrast`] of all anchors [N, D], with candidates that have no gradient.
    ///
    /// # Errors
    /// The device's.
    fn contrast(
        &self,
        anchors: TracedRows<Self::Real, Tensors<Self>>,
        candidates: RowsOf<Self>,
        pairs: Pairs,
        tau: f64,
    ) -> LogitsOf<Self> {
        Tensors::<Self>::contrast(anchors, candidates, pairs, tau)
    }
}

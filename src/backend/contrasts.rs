//! Contrastive logits of a batch that ranks may share.

use dfdx::prelude::*;

use super::{Memory, RowsOf};
use crate::ops::{
    contrast::Pairs,
    tensor::{Logits, TensorDevice, TracedRows},
};

type Tensors<B> = <B as Memory>::Tensors;

/// Logits, or the error of the losses' device.
pub type LogitsOf<B> = Result<Logits<<B as Memory>::Real, Tensors<B>>, <Tensors<B> as HasErr>::Err>;

/// Contrastive logits. They are most of a loss's work, so a backend may divide them among ranks.
pub trait Contrasts: Memory {
    /// [`TensorDevice::contrast`] of all anchors [N, D]. No gradient flows to the candidates.
    ///
    /// # Errors
    /// When the device fails.
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

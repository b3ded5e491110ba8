//! Contrastive logits on the host. Each rank computes the logits of its share of the anchors, and gathers those of the others.

use dfdx::prelude::*;

use super::Host;
use crate::{
    backend::Contrasts,
    ops::{
        Real,
        contrast::Pairs,
        tensor::{CpuTensors, Logits, Rows, TensorDevice, TracedRows, record, to_vec},
    },
    ranks::Ranks,
};

impl<E: Real> Contrasts for Host<E>
where
    Cpu: CpuTensors<E>,
{
    fn contrast(
        &self,
        anchors: TracedRows<E, Cpu>,
        candidates: Rows<E, Cpu>,
        pairs: Pairs,
        tau: f64,
    ) -> Result<Logits<E, Cpu>, CpuError> {
        let n = anchors.shape().0;
        if self.ranks.is_alone() {
            return Cpu::contrast(anchors, candidates, pairs, tau);
        }
        let first = self.ranks.share(n).start;
        let (all, own) = Cpu::contrast(share(&self.ranks, anchors)?, candidates, pairs.from(first), tau)?;
        Ok((gather(&self.ranks, all, (n,))?, gather(&self.ranks, own, (n, pairs.own))?))
    }
}

/// This rank's share of rows that every rank holds. In the backward pass, every rank gathers the gradient of all rows.
fn share<E: Real>(ranks: &Ranks, rows: TracedRows<E, Cpu>) -> Result<TracedRows<E, Cpu>, CpuError>
where
    Cpu: CpuTensors<E>,
{
    let ((n, columns), own) = (rows.shape(), ranks.share(rows.shape().0));
    let (x, tape) = rows.into_tensor().split_tape();
    let values = to_vec(&x)[own.start * columns..own.end * columns].to_vec();
    let ranks = ranks.clone();
    let y = record((x, tape), values, (n / ranks.size(), columns), move |_, _, gy, gx| {
        gx.iter_mut().zip(ranks.gather(gy)).for_each(|(gx, gy)| *gx += gy);
    })?;
    let (y, tape) = y.split_tape();
    Ok(Rows::new(y, ()).put_tape(tape))
}

/// The values of all anchors, gathered from each rank's share. In the backward pass, every rank holds the gradient of all values
/// and takes that of its share.
fn gather<E: Real, S: Shape>(
    ranks: &Ranks,
    own: Tensor<S, E, Cpu, OwnedTape<E, Cpu>>,
    shape: S,
) -> Result<Tensor<S, E, Cpu, OwnedTape<E, Cpu>>, CpuError>
where
    Cpu: CpuTensors<E>,
{
    let (x, tape) = own.split_tape();
    let values = ranks.gather(&to_vec(&x));
    let share = ranks.share(values.len());
    record((x, tape), values, shape, move |_, _, gy, gx| {
        gx.iter_mut().zip(&gy[share]).for_each(|(gx, gy)| *gx += *gy);
    })
}

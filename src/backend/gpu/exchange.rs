//! Exchange between ranks that each have a GPU: rows of a batch, statistics over it, and sums over its parts.

use std::sync::Arc;

use crate::{
    ops::{
        cuda::{Buffer, Gpu, GpuError, Kind, View, Wire},
        reductions::cuda::add_parts,
    },
    ranks::Ranks,
};

/// The most values that are summed at a time. It bounds the memory of a sum.
const AT_ONCE: usize = 1 << 24;

/// The ranks, and the wire between their GPUs.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    pub ranks: Ranks,
    /// None if this rank is alone.
    wire: Option<Arc<dyn Wire>>,
}

impl Exchange {
    /// An exchange between `ranks` through the memory of their hosts.
    pub fn through_hosts(ranks: Ranks) -> Self {
        let wire = (!ranks.is_alone()).then(|| Arc::new(ThroughHosts(ranks.clone())) as Arc<dyn Wire>);
        Self { ranks, wire }
    }

    /// An exchange between `ranks` by `wire`, which is used even if there is only one rank.
    pub fn by(ranks: Ranks, wire: Arc<dyn Wire>) -> Self {
        Self { ranks, wire: Some(wire) }
    }

    /// Whether there is nothing to exchange.
    pub fn is_alone(&self) -> bool {
        self.wire.is_none()
    }

    /// The concatenated values of all ranks, in the order of ranks. All ranks have the same number of values.
    pub fn gather(&self, gpu: &Gpu, own: Buffer) -> Result<Buffer, GpuError> {
        let Some(wire) = &self.wire else { return Ok(own) };
        let all = gpu.take(own.view().kind(), own.view().len() * self.ranks.size())?;
        wire.all_gather(gpu, own.view(), all.view())?;
        Ok(all)
    }

    /// An exchange between other ranks by the same wire.
    pub fn with_ranks(&self, ranks: Ranks) -> Self {
        Self { ranks, wire: self.wire.clone() }
    }

    /// The concatenated values of the ranks in this rank's group, in the order of ranks.
    pub fn gather_group(&self, gpu: &Gpu, own: Buffer) -> Result<Buffer, GpuError> {
        let (group, size) = (self.ranks.group(), self.ranks.size());
        // A group of one rank exchanges nothing, unless there is only one rank in all. Then the exchange tests the wire.
        if group.len() == 1 && size > 1 {
            return Ok(own);
        }
        let (each, all) = (own.view().len(), self.gather(gpu, own)?);
        if group.len() == size {
            return Ok(all);
        }
        let of_group = gpu.take(all.view().kind(), group.len() * each)?;
        gpu.copy(all.view().part(group.start * each..group.end * each), of_group.view())?;
        Ok(of_group)
    }

    /// This rank's share of `all`.
    pub fn share(&self, gpu: &Gpu, all: Buffer) -> Result<Buffer, GpuError> {
        if self.is_alone() {
            return Ok(all);
        }
        let range = self.ranks.share(all.view().len());
        let own = gpu.take(all.view().kind(), range.len())?;
        gpu.copy(all.view().part(range), own.view())?;
        Ok(own)
    }

    /// Replaces `values` (f32) on every rank by their sum over all ranks: the top of the binary tree over a batch's parts, whose
    /// branches are the ranks' values. Each rank adds up one piece of the values, then all ranks gather the pieces.
    pub fn sum(&self, gpu: &Gpu, values: View) -> Result<(), GpuError> {
        let Some(wire) = &self.wire else { return Ok(()) };
        let (size, len) = (self.ranks.size(), values.len());
        // Each rank adds up one piece of the part that divides evenly among ranks. Every rank adds up all of the rest.
        let (even, at_once) = (len / size * size, AT_ONCE / size * size);
        for first in (0..even).step_by(at_once) {
            let values = values.part(first..even.min(first + at_once));
            let [branches, sum] = [gpu.take(Kind::F32, values.len())?, gpu.zeros(Kind::F32, values.len() / size)?];
            wire.all_to_all(gpu, values, branches.view())?;
            add_parts(gpu, branches.view(), [size, 1], values.len() / size, sum.view())?;
            wire.all_gather(gpu, sum.view(), values)?;
        }
        if even < len {
            let (rest, own) = (values.part(even..len), gpu.take(Kind::F32, len - even)?);
            gpu.copy(rest, own.view())?;
            let (all, sum) = (self.gather(gpu, own)?, gpu.zeros(Kind::F32, len - even)?);
            add_parts(gpu, all.view(), [size, 1], len - even, sum.view())?;
            gpu.copy(sum.view(), rest)?;
        }
        Ok(())
    }
}

/// A wire over the ranks' own transport. It copies values to the host and back.
#[derive(Debug)]
struct ThroughHosts(Ranks);

impl Wire for ThroughHosts {
    fn all_gather(&self, gpu: &Gpu, own: View, all: View) -> Result<(), GpuError> {
        gpu.write_bytes(all, &self.0.gather(&gpu.read_bytes(own)?))
    }

    fn all_to_all(&self, gpu: &Gpu, send: View, receive: View) -> Result<(), GpuError> {
        gpu.write_bytes(receive, &self.0.exchange(&gpu.read_bytes(send)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ops::{
            cuda::testing::{one_gpu, read},
            parts,
        },
        ranks::threads,
    };

    /// Covers lengths that divide evenly among ranks, lengths that do not, and one that takes several rounds.
    #[test]
    fn sums_have_the_bits_of_the_tree_whatever_the_number_of_ranks() {
        if one_gpu().is_none() {
            return;
        }
        let value = |rank: usize, i: usize| ((rank * 31 + i) as f32 * 0.7).sin() * 1e3;
        for (len, size) in [(1, 2), (7, 4), (64, 4), (1001, 8), (AT_ONCE + 9, 2)] {
            let whole: Vec<f32> = (0..len).map(|i| parts::tree(size, |rank| value(rank, i), |a, b| a + b)).collect();
            let sums = threads::run(size, |ranks| {
                let gpu = one_gpu().expect("there is one");
                let own: Vec<f32> = (0..len).map(|i| value(ranks.rank(), i)).collect();
                let values = gpu.upload(&own).unwrap();
                Exchange::through_hosts(ranks).sum(&gpu, values.view()).unwrap();
                read(&values)
            });
            assert!(sums.iter().all(|sum| *sum == whole), "{size} ranks, {len} values");
        }
    }
}

//! Residual networks (He et al. 2016) as in torchvision: basic blocks for 18 and 34 layers, bottlenecks with the stride
//! on the 3x3 convolution for 50 and 101.

mod backward;
mod block;
mod cost;
mod forward;

#[cfg(test)]
mod tests;

pub use forward::Saved;

use super::{ResnetConfig, Stem};
use crate::{
    backend::layers::ConvNorm,
    ops::{
        Real,
        arena::Layout,
        matmul::MatmulPrecision,
        random::{Normals, Purpose, stream},
    },
    rule::Broken,
};
use block::{Block, Builder};

/// The numbers in which residual networks differ.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks per stage.
    pub depths: [usize; 4],
    /// Whether blocks are bottlenecks.
    pub bottleneck: bool,
}

/// Structure of a residual network.
#[derive(Clone, Debug)]
pub struct ResNet {
    pub(super) params: Layout,
    pub(super) buffers: Layout,
    pub(super) feature_dim: usize,
    stem: ConvNorm,
    max_pool: bool,
    blocks: Vec<Block>,
}

impl ResNet {
    /// A network of `shape` with the settings of `config`.
    pub fn new(Shape { depths, bottleneck }: Shape, config: &ResnetConfig) -> Result<Self, Broken> {
        let width = ResnetConfig::channels(config.width_multiplier)?;
        let mut builder = Builder::default();
        let (kernel, stride) = match config.stem {
            Stem::Imagenet => (7, 2),
            Stem::Cifar => (3, 1),
        };
        let stem = builder.conv_norm("conv1", "bn1", [3, width], kernel, stride);
        let mut blocks = Vec::new();
        let mut channels = width;
        for (stage, depth) in depths.into_iter().enumerate() {
            for index in 0..depth {
                let name = format!("layer{}.{index}", stage + 1);
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let block = builder.block(&name, channels, width << stage, stride, bottleneck);
                channels = block.output();
                blocks.push(block);
            }
        }
        let (params, buffers) = builder.finish();
        let max_pool = config.stem == Stem::Imagenet;
        Ok(Self { params, buffers, feature_dim: channels, stem, max_pool, blocks })
    }

    /// Sets the precision in which all convolutions read the factors of their products.
    pub fn set_matmul_precision(&mut self, matmul: MatmulPrecision) {
        let units = self.blocks.iter_mut().flat_map(|block| block.convs.iter_mut().chain(&mut block.shortcut));
        for unit in [&mut self.stem].into_iter().chain(units) {
            unit.conv.matmul = matmul;
        }
    }

    /// Initial parameters and buffers: convolutions from N(0, 2 / fan-out), batch norm at the identity (torchvision's defaults).
    pub fn init<E: Real>(&self, seed: u64) -> (Vec<E>, Vec<E>) {
        let mut params = vec![E::zero(); self.params.len()];
        for (i, entry) in self.params.entries.iter().enumerate() {
            match entry.shape[..] {
                [out, _, kernel, _] => {
                    let std = (2.0 / (out * kernel * kernel) as f64).sqrt();
                    let mut normals = Normals::of(stream(seed, Purpose::Init, i as u64, 0, 0));
                    params[entry.range()].fill_with(|| E::of(normals.draw() * std));
                }
                _ if entry.name.ends_with(".weight") => params[entry.range()].fill(E::one()),
                _ => {}
            }
        }
        let mut buffers = vec![E::zero(); self.buffers.len()];
        for entry in self.buffers.entries.iter().filter(|e| e.name.ends_with(".running_var")) {
            buffers[entry.range()].fill(E::one());
        }
        (params, buffers)
    }
}

//! The trained model: encoder, projector, predictor and the method's own parameters, in flat buffers.

use std::ops::Range;

use super::PretrainConfig;
use crate::{
    backend::Backend,
    encoder::Encoder,
    method::{Method, Mlp},
    ops::{Number, arena::Layout},
};

/// The parts of the model, and the places of their tensors.
pub struct Model<B: Backend> {
    pub encoder: Encoder,
    pub projector: Mlp,
    /// None if predictions are the projections themselves.
    pub predictor: Option<Mlp>,
    pub method: Method<B>,
    /// Trainable tensors: `encoder.*`, `projector.*`, `predictor.*`, then the method's.
    pub params: Layout,
    /// Running statistics, in the same order.
    pub buffers: Layout,
    /// Number of entries of `params` and of `buffers` that the momentum branch shares: those of encoder and projector.
    shared: (usize, usize),
    /// Number of entries of `params` before the method's own.
    networks: usize,
}

/// Values of one branch on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct BranchValues<E> {
    pub params: Vec<E>,
    pub buffers: Vec<E>,
}

impl<B: Backend> Model<B> {
    /// The model of `config`.
    ///
    /// # Errors
    /// When the encoder's configuration names no network, or memory runs out.
    pub fn new(on: &B, config: &PretrainConfig) -> anyhow::Result<Self> {
        let matmul = config.precision.matmul();
        let encoder = Encoder::new(config.encoder, config.augmentations.size as usize)?.with_matmul_precision(matmul);
        let (mut params, mut buffers) = (Layout::default(), Layout::default());
        params.extend("encoder.", encoder.params());
        buffers.extend("encoder.", encoder.buffers());
        let features = encoder.feature_dim();
        let projector = Mlp::new("projector.", features, config.projector, &mut params, &mut buffers);
        let shared = (params.entries.len(), buffers.entries.len());
        let dim = config.projector.output;
        let predictor = config.predictor.map(|config| Mlp::new("predictor.", dim, config, &mut params, &mut buffers));
        let networks = params.entries.len();
        let method = Method::new(on, config.method, dim, config.seed, matmul, &mut params)?;
        Ok(Self { encoder, projector, predictor, method, params, buffers, shared, networks })
    }

    /// Initial values of the online branch. Those of the encoder equal [`Encoder::init`] of the same seed.
    pub fn init(&self, seed: u64) -> BranchValues<B::Real> {
        let (mut params, mut buffers) = self.encoder.init::<B::Real>(seed);
        params.resize(self.params.len(), B::Real::of(0.0));
        buffers.resize(self.buffers.len(), B::Real::of(0.0));
        for mlp in [Some(&self.projector), self.predictor.as_ref()].into_iter().flatten() {
            mlp.init(seed, &self.params, &mut params, &mut buffers);
        }
        self.method.init(seed, &self.params, &mut params);
        BranchValues { params, buffers }
    }

    /// Initial values of the momentum branch: a copy of the online one.
    pub fn momentum_values(&self, online: &BranchValues<B::Real>) -> BranchValues<B::Real> {
        let (params, buffers) = self.shared;
        BranchValues {
            params: online.params[..end(&self.params, params)].to_vec(),
            buffers: online.buffers[..end(&self.buffers, buffers)].to_vec(),
        }
    }

    /// Whether the optimiser updates an entry of `params` in this epoch.
    pub fn trains(&self, entry: usize, epoch: f64) -> bool {
        match entry < self.encoder.params().entries.len() {
            true => self.encoder.trains(entry),
            false => self.method.trains(entry, epoch),
        }
    }

    /// The ranges of biases and norms of projector and predictor in the parameters.
    pub fn head_vectors(&self) -> impl Iterator<Item = Range<usize>> {
        let first = self.encoder.params().entries.len();
        let heads = &self.params.entries[first..self.networks];
        heads.iter().filter(|entry| entry.shape.len() == 1).map(|entry| entry.range())
    }

    /// The entries of `params` that are the method's own.
    pub fn method_entries(&self) -> Range<usize> {
        self.networks..self.params.entries.len()
    }

    /// Number of elements in the parameters and in the buffers of the encoder, which come first.
    pub fn encoder_len(&self) -> (usize, usize) {
        (self.encoder.params().len(), self.encoder.buffers().len())
    }
}

/// Number of elements in the first `entries` tensors.
fn end(layout: &Layout, entries: usize) -> usize {
    layout.entries[..entries].last().map_or(0, |entry| entry.range().end)
}

//! Everything that is trained, in flat buffers: encoder, projector, predictor and the method's own parameters.

use std::{ops::Range, sync::Arc};

use super::PretrainConfig;
use crate::{
    encoder::{Encoder, EncoderError},
    method::{Method, Mlp},
    ops::{Real, arena::Layout},
};

/// The parts and where their tensors lie.
#[derive(Debug)]
pub struct Model<E> {
    pub encoder: Encoder,
    pub projector: Mlp,
    /// None where predictions are the projections themselves.
    pub predictor: Option<Mlp>,
    pub method: Method<E>,
    /// Trainable tensors: `encoder.*`, `projector.*`, `predictor.*`, then the method's.
    pub params: Layout,
    /// Running statistics, in the same order.
    pub buffers: Layout,
    /// Entries of `params` and of `buffers` that the momentum branch has too: those of encoder and projector.
    shared: (usize, usize),
}

/// Values of one branch.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch<E> {
    /// Shared with the heads' weights while a step is under way.
    pub params: Arc<Vec<E>>,
    pub buffers: Vec<E>,
}

impl<E: Real> Model<E> {
    /// The model of `config`.
    ///
    /// # Errors
    /// When the encoder's configuration names no network.
    pub fn new(config: &PretrainConfig) -> Result<Self, EncoderError> {
        let products = config.precision.products();
        let encoder = Encoder::new(config.encoder, config.augmentations.size as usize)?.with_products(products);
        let (mut params, mut buffers) = (Layout::default(), Layout::default());
        params.extend("encoder.", encoder.params());
        buffers.extend("encoder.", encoder.buffers());
        let features = encoder.feature_dim();
        let projector = Mlp::new("projector.", features, config.projector, &mut params, &mut buffers);
        let shared = (params.entries.len(), buffers.entries.len());
        let dim = config.projector.output;
        let predictor = config.predictor.map(|config| Mlp::new("predictor.", dim, config, &mut params, &mut buffers));
        let mut method = Method::new(config.method, dim, config.seed, &mut params);
        method.set_products(products);
        Ok(Self { encoder, projector, predictor, method, params, buffers, shared })
    }

    /// Initial values of the online branch. The encoder's equal [`Encoder::init`] of the same seed.
    pub fn init(&self, seed: u64) -> Branch<E> {
        let (mut params, mut buffers) = self.encoder.init::<E>(seed);
        params.resize(self.params.len(), E::zero());
        buffers.resize(self.buffers.len(), E::zero());
        for mlp in [Some(&self.projector), self.predictor.as_ref()].into_iter().flatten() {
            mlp.init(seed, (&self.params, &self.buffers), &mut params, &mut buffers);
        }
        self.method.init(seed, &self.params, &mut params);
        Branch { params: Arc::new(params), buffers }
    }

    /// The momentum branch that starts as a copy of the online one.
    pub fn momentum_branch(&self, online: &Branch<E>) -> Branch<E> {
        let (params, buffers) = self.shared;
        Branch {
            params: Arc::new(online.params[..end(&self.params, params)].to_vec()),
            buffers: online.buffers[..end(&self.buffers, buffers)].to_vec(),
        }
    }

    /// Whether the optimiser moves an entry of `params` at this time.
    pub fn trains(&self, entry: usize, epoch: f64) -> bool {
        match entry < self.encoder.params().entries.len() {
            true => self.encoder.trains(entry),
            false => self.method.trains(entry, epoch),
        }
    }

    /// Entries of `params` behind the encoder's: heads and the method's own.
    pub fn head_entries(&self) -> Range<usize> {
        self.encoder.params().entries.len()..self.params.entries.len()
    }

    /// Entries of `params` that the momentum branch has behind the encoder's: the projector's.
    pub fn momentum_head_entries(&self) -> Range<usize> {
        self.encoder.params().entries.len()..self.shared.0
    }

    /// Elements of the encoder's parameters and of its buffers; they come first.
    pub fn encoder_len(&self) -> (usize, usize) {
        (self.encoder.params().len(), self.encoder.buffers().len())
    }
}

/// Elements of the first `entries` tensors.
fn end(layout: &Layout, entries: usize) -> usize {
    layout.entries[..entries].last().map_or(0, |entry| entry.range().end)
}

//! Counts what a training step computes and moves.

use super::{Model, PretrainConfig};
use crate::{
    backend::{
        Backend,
        cost::{Operation, Pass},
    },
    method::Mlp,
    ops::conv2d::Size,
};

/// The part of a step that an operation belongs to. Each has its own arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// In the precision of the training.
    Encoder,
    /// Projector and predictor: in f32, on a GPU with factors in tf32 unless the training is in f32.
    Heads,
    /// The search of the queue, in f32.
    Queue,
    /// Optimiser and moving average, in f32.
    Optimizer,
}

impl<B: Backend> Model<B> {
    /// Floating-point operations of a step of `config` per image. A multiply-add of encoder and heads counts as two. Each crop
    /// takes one forward pass and a backward pass of twice that; each full view takes one more forward pass in the momentum
    /// branch, if there is one. The loss (searches, logits, prototypes), norms and optimiser do not count.
    pub fn flops_per_image(&self, config: &PretrainConfig) -> u64 {
        let (size, local) = (config.augmentations.size as usize, config.augmentations.local_crops);
        let projected = |size| self.encoder.multiply_adds(size) + self.projector.multiply_adds();
        let predicted = self.predictor.as_ref().map_or(0, Mlp::multiply_adds);
        let mut total = 2 * 3 * (projected(size) + predicted);
        if let Some(local) = local {
            total += 3 * u64::from(local.count) * (projected(local.size as usize) + predicted);
        }
        if config.method.momentum().is_some() {
            total += 2 * projected(size);
        }
        2 * total
    }

    /// The operations of a step of `config` without small crops, except the loss on the projections.
    pub fn operations(&self, config: &PretrainConfig) -> Vec<(Part, Operation)> {
        const VIEWS: usize = 2;
        let (n, size) = (config.batch_size, config.augmentations.size as usize);
        let mut all = Vec::new();
        let mut add = |part, operations: &[Operation], momentum: bool| {
            for _ in 0..VIEWS {
                let passes = operations.iter().filter(|operation| !momentum || operation.pass == Pass::Forward);
                all.extend(passes.map(|operation| (part, operation.clone())));
            }
        };
        let (encoder, projector) =
            (self.encoder.operations(Size { n, h: size, w: size }), self.projector.operations(n));
        add(Part::Encoder, &encoder, false);
        add(Part::Heads, &projector, false);
        if let Some(predictor) = &self.predictor {
            add(Part::Heads, &predictor.operations(n), false);
        }
        if config.method.momentum().is_some() {
            add(Part::Encoder, &encoder, true);
            add(Part::Heads, &projector, true);
        }
        for queue in self.method.queues() {
            let [rows, dim] = queue.shape();
            let (layer, multiply_adds) = (format!("search of {rows} rows, width {dim}"), (n * rows * dim) as u64);
            let search = Operation { layer, pass: Pass::Forward, multiply_adds, elements: ((n + rows) * dim) as u64 };
            add(Part::Queue, &[search], false);
        }
        // Parameters, gradient and momentum of the optimiser are read, and two of them written; the average is read and written.
        let elements = 7 * self.params.len() as u64;
        all.push((
            Part::Optimizer,
            Operation { layer: "optimiser and average".into(), pass: Pass::Backward, multiply_adds: 0, elements },
        ));
        all
    }
}

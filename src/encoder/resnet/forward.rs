//! Forward passes: for training, for the momentum branch, for evaluation.

use super::{
    ResNet,
    block::{Block, ConvBatchNorm},
};
use crate::ops::{
    Real,
    batch_norm::{Affine, Moments, Residual, TileMoments, apply},
    buffers::Buffers,
    conv2d::{Size, Source},
    pool,
};

/// What the backward pass needs of a forward pass.
#[derive(Debug)]
pub struct Saved<E> {
    pub(super) size: Size,
    pub(super) stem: Unit<E>,
    pub(super) stem_output: Vec<E>,
    /// Winning taps and output of the max-pooling.
    pub(super) pooled: Option<(Vec<u8>, Vec<E>)>,
    pub(super) blocks: Vec<SavedBlock<E>>,
}

/// A convolution's output before its batch norm, and that batch's statistics.
#[derive(Debug)]
pub struct Unit<E> {
    pub raw: Vec<E>,
    pub moments: Moments<E>,
}

/// One block's intermediate results, and its output.
#[derive(Debug)]
pub struct SavedBlock<E> {
    pub units: Vec<Unit<E>>,
    pub shortcut: Option<Unit<E>>,
    pub output: Vec<E>,
}

/// Where batch norm's statistics come from.
pub(super) enum Statistics<'a, E> {
    /// From the batch; running statistics move.
    Batch(&'a mut [E]),
    /// From the running statistics.
    Running(&'a [E]),
}

/// A convolution's output, its batch norm as an affine map and, where they are used, the batch's statistics.
type Convolved<E> = (Vec<E>, Affine<E>, Option<Moments<E>>);

/// One forward pass under way.
pub(super) struct Pass<'a, E> {
    pub(super) params: &'a [E],
    pub(super) statistics: Statistics<'a, E>,
    pub(super) memory: &'a mut Buffers<E>,
    /// Whether the backward pass will need what is computed.
    pub(super) keep: bool,
}

impl ResNet {
    pub fn forward_train<E: Real>(
        &self,
        params: &[E],
        buffers: &mut [E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
    ) -> (Vec<E>, Saved<E>) {
        let mut pass = Pass { params, statistics: Statistics::Batch(buffers), memory, keep: true };
        let (features, saved) = pass.run(self, images, size);
        (features, saved.expect("kept"))
    }

    pub fn forward_momentum<E: Real>(
        &self,
        params: &[E],
        buffers: &mut [E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
    ) -> Vec<E> {
        let mut pass = Pass { params, statistics: Statistics::Batch(buffers), memory, keep: false };
        pass.run(self, images, size).0
    }

    pub fn forward_eval<E: Real>(
        &self,
        params: &[E],
        buffers: &[E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
    ) -> Vec<E> {
        let mut pass = Pass { params, statistics: Statistics::Running(buffers), memory, keep: false };
        pass.run(self, images, size).0
    }
}

impl<E: Real> Pass<'_, E> {
    /// Features [n, feature_dim] of images [n, h, w, 3].
    fn run(&mut self, net: &ResNet, images: &[E], size: Size) -> (Vec<E>, Option<Saved<E>>) {
        let (raw, affine, moments) = self.conv(&net.stem, Source::plain(images), size);
        let mut at = net.stem.conv.output_size(size);
        let mut x = self.memory.take(raw.len());
        apply(&raw, &affine, Residual::None, true, &mut x);
        let mut saved = self.keep_unit(raw, moments).map(|stem| Saved {
            size,
            stem,
            stem_output: Vec::new(),
            pooled: None,
            blocks: Vec::new(),
        });
        let channels = net.stem.conv.output;
        if net.max_pool {
            let out = pool::pooled(at);
            let mut y = self.memory.take(out.pixels() * channels);
            let mut taps = vec![0; y.len()];
            pool::max_pool(&x, at, channels, &mut y, &mut taps);
            match &mut saved {
                Some(saved) => {
                    saved.stem_output = std::mem::replace(&mut x, y);
                    saved.pooled = Some((taps, Vec::new()));
                }
                None => self.memory.give(std::mem::replace(&mut x, y)),
            }
            at = out;
        }
        // The input of the first block is the max-pooling's output or, without one, the stem's.
        for (i, block) in net.blocks.iter().enumerate() {
            let (output, kept) = self.block(block, &x, &mut at);
            let input = std::mem::replace(&mut x, output);
            let Some(saved) = &mut saved else {
                self.memory.give(input);
                continue;
            };
            match (i, &mut saved.pooled) {
                (0, Some((_, pooled))) => *pooled = input,
                (0, None) => saved.stem_output = input,
                _ => saved.blocks[i - 1].output = input,
            }
            saved.blocks.push(kept.expect("kept"));
        }
        let features = pool::average_pool(&x, at, net.feature_dim);
        match &mut saved {
            Some(saved) => saved.blocks.last_mut().expect("a network has blocks").output = x,
            None => self.memory.give(x),
        }
        (features, saved)
    }

    /// A block's output; what is kept of it lacks that output. `size` becomes the output's.
    pub(super) fn block(&mut self, block: &Block, x: &[E], size: &mut Size) -> (Vec<E>, Option<SavedBlock<E>>) {
        let shortcut = block.shortcut.as_ref().map(|unit| self.conv(unit, Source::plain(x), *size));
        let mut kept = SavedBlock { units: Vec::new(), shortcut: None, output: Vec::new() };
        // All but the first convolution read what the one before left, normalised and rectified on the way in.
        let mut last: Option<Convolved<E>> = None;
        for unit in &block.convs {
            let source = last
                .as_ref()
                .map_or(Source::plain(x), |(raw, affine, _)| Source { images: raw, relu_of: Some(affine) });
            let next = self.conv(unit, source, *size);
            *size = unit.conv.output_size(*size);
            if let Some((raw, _, moments)) = last.replace(next) {
                kept.units.extend(self.keep_unit(raw, moments));
            }
        }
        let (raw, affine, moments) = last.expect("a block has convolutions");
        let residual = match &shortcut {
            None => Residual::Plain(x),
            Some((raw, affine, _)) => Residual::Normalised(raw, affine),
        };
        let mut y = self.memory.take(raw.len());
        apply(&raw, &affine, residual, true, &mut y);
        kept.units.extend(self.keep_unit(raw, moments));
        kept.shortcut = shortcut.and_then(|(raw, _, moments)| self.keep_unit(raw, moments));
        (y, self.keep.then_some(kept))
    }

    fn conv(&mut self, unit: &ConvBatchNorm, x: Source<E>, size: Size) -> Convolved<E> {
        let kernel = &self.params[unit.kernel.clone()];
        let weight_bias = Some((&self.params[unit.weight.clone()], &self.params[unit.bias.clone()]));
        let mut raw = self.memory.take(unit.conv.output_size(size).pixels() * unit.conv.output);
        match &mut self.statistics {
            Statistics::Batch(buffers) => {
                let mut tiles = TileMoments::new();
                unit.conv.forward(x, size, kernel, E::zero(), &mut raw, Some(&mut tiles));
                let moments = tiles.combine();
                let [mean, var] = buffers
                    .get_disjoint_mut([unit.running_mean.clone(), unit.running_var.clone()])
                    .expect("buffers do not overlap");
                moments.update_running(mean, var);
                let affine = Affine::new(&moments.mean, &moments.inv_std, weight_bias);
                (raw, affine, Some(moments))
            }
            Statistics::Running(buffers) => {
                unit.conv.forward(x, size, kernel, E::zero(), &mut raw, None);
                let (mean, var) = (&buffers[unit.running_mean.clone()], &buffers[unit.running_var.clone()]);
                (raw, Affine::eval(mean, var, weight_bias), None)
            }
        }
    }

    fn keep_unit(&mut self, raw: Vec<E>, moments: Option<Moments<E>>) -> Option<Unit<E>> {
        if self.keep {
            return moments.map(|moments| Unit { raw, moments });
        }
        self.memory.give(raw);
        None
    }
}

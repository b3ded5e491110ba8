//! Forward pass. There are no batch statistics: training, momentum branch and evaluation compute the same.

use rayon::prelude::*;

use super::{Block, Vit, positions};
use crate::ops::{
    Real,
    buffers::Buffers,
    conv2d::{Size, Source},
    gelu::gelu,
    layer_norm::{self, Statistics},
};

/// What the backward pass needs of a forward pass.
#[derive(Debug)]
pub struct Saved<E> {
    pub(super) size: Size,
    pub(super) blocks: Vec<SavedBlock<E>>,
    /// Class tokens [n, width] before the last norm.
    pub(super) cls: Vec<E>,
    pub(super) statistics: Statistics<E>,
}

/// One block's intermediate results; rows are tokens. Outputs of norms and of the GELU are computed again when needed.
#[derive(Debug)]
pub struct SavedBlock<E> {
    pub input: Vec<E>,
    pub statistics1: Statistics<E>,
    pub qkv: Vec<E>,
    /// The attention's output, before `proj`.
    pub attended: Vec<E>,
    /// Input of the perceptron's half.
    pub middle: Vec<E>,
    pub statistics2: Statistics<E>,
    /// Output of `fc1`, before the GELU.
    pub hidden: Vec<E>,
}

impl<E: Real> SavedBlock<E> {
    /// Hands all buffers back.
    pub fn give_to(self, memory: &mut Buffers<E>) {
        for buffer in [self.input, self.qkv, self.attended, self.middle, self.hidden] {
            memory.give(buffer);
        }
    }
}

impl Vit {
    /// Features [n, width] of images [n, h, w, 3] and what the backward pass needs.
    pub fn forward_train<E: Real>(
        &self,
        params: &[E],
        buffers: &[E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
    ) -> (Vec<E>, Saved<E>) {
        let mut kept = Vec::new();
        let (features, cls, statistics) = self.forward(params, buffers, images, size, memory, |block, _| {
            kept.push(block);
        });
        (features, Saved { size, blocks: kept, cls, statistics })
    }

    /// Features alone.
    pub fn forward_eval<E: Real>(
        &self,
        params: &[E],
        buffers: &[E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
    ) -> Vec<E> {
        self.forward(params, buffers, images, size, memory, SavedBlock::give_to).0
    }

    /// Features, class tokens before the last norm and that norm's statistics. `keep` gets what each block leaves behind.
    fn forward<E: Real>(
        &self,
        params: &[E],
        buffers: &[E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
        mut keep: impl FnMut(SavedBlock<E>, &mut Buffers<E>),
    ) -> (Vec<E>, Vec<E>, Statistics<E>) {
        let width = self.shape.width;
        let mut x = self.embed(params, buffers, images, size, memory);
        let tokens = x.len() / (size.n * width);
        for block in &self.blocks {
            let (output, saved) = self.block(block, params, x, size.n, memory);
            keep(saved, memory);
            x = output;
        }
        let cls: Vec<E> = x.chunks_exact(tokens * width).flat_map(|sample| &sample[..width]).copied().collect();
        memory.give(x);
        let statistics = layer_norm::statistics(&cls, width);
        let mut features = vec![E::zero(); cls.len()];
        layer_norm::apply(&cls, &statistics, self.norm.affine(params), &mut features);
        (features, cls, statistics)
    }

    /// Tokens [n, 1 + patches, width]: the class token and the embedded patches, positions added.
    fn embed<E: Real>(&self, params: &[E], buffers: &[E], images: &[E], size: Size, memory: &mut Buffers<E>) -> Vec<E> {
        let (width, patch) = (self.shape.width, self.patches.kernel);
        assert!(
            size.h.is_multiple_of(patch) && size.w.is_multiple_of(patch),
            "patches of {patch} do not tile {size:?}"
        );
        let grid = self.patches.output_size(size);
        let mut embedded = memory.take(grid.pixels() * width);
        let weight = &params[self.patch_embed.weight.clone()];
        self.patches.forward(Source::plain(images), size, weight, E::zero(), &mut embedded, None);

        // What is added to every sample: the class token or the bias, and the position.
        let mut offset = match (grid.h, grid.w) == (self.grid, self.grid) {
            true => buffers.to_vec(),
            false => positions::interpolate(buffers, self.grid, [grid.h, grid.w], width),
        };
        let (cls, bias) = (&params[self.cls_token.clone()], &params[self.patch_embed.bias.clone()]);
        for (i, row) in offset.chunks_exact_mut(width).enumerate() {
            let more = if i == 0 { cls } else { bias };
            row.iter_mut().zip(more).for_each(|(o, m)| *o += *m);
        }

        let mut x = memory.take(size.n * offset.len());
        let patches = grid.h * grid.w * width;
        x.par_chunks_mut(offset.len()).zip(embedded.par_chunks(patches)).for_each(|(x, embedded)| {
            let (cls, rest) = x.split_at_mut(width);
            cls.copy_from_slice(&offset[..width]);
            for ((x, e), o) in rest.iter_mut().zip(embedded).zip(&offset[width..]) {
                *x = *e + *o;
            }
        });
        memory.give(embedded);
        x
    }

    /// A block's output and its intermediate results.
    fn block<E: Real>(
        &self,
        block: &Block,
        params: &[E],
        input: Vec<E>,
        images: usize,
        memory: &mut Buffers<E>,
    ) -> (Vec<E>, SavedBlock<E>) {
        let width = self.shape.width;
        let rows = input.len() / width;
        let tokens = rows / images;

        let statistics1 = layer_norm::statistics(&input, width);
        let mut normed = memory.take(input.len());
        layer_norm::apply(&input, &statistics1, block.norm1.affine(params), &mut normed);
        let mut qkv = memory.take(rows * block.qkv.output);
        block.qkv.forward(params, &normed, images, &mut qkv);
        let mut attended = memory.take(input.len());
        self.attention(tokens).forward(&qkv, &mut attended);
        let mut middle = memory.take(input.len());
        middle.copy_from_slice(&input);
        block.proj.add_forward(params, &attended, images, &mut middle);

        let statistics2 = layer_norm::statistics(&middle, width);
        layer_norm::apply(&middle, &statistics2, block.norm2.affine(params), &mut normed);
        let mut hidden = memory.take(rows * block.fc1.output);
        block.fc1.forward(params, &normed, images, &mut hidden);
        let mut active = memory.take(hidden.len());
        gelu(&hidden, &mut active);
        // The norm's output is not needed any more: its buffer becomes the block's output.
        let mut output = normed;
        output.copy_from_slice(&middle);
        block.fc2.add_forward(params, &active, images, &mut output);
        memory.give(active);
        (output, SavedBlock { input, statistics1, qkv, attended, middle, statistics2, hidden })
    }
}

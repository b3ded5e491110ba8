//! Forward pass. There are no batch statistics: training, momentum branch and evaluation compute the same.

use rayon::prelude::*;

use super::{
    Block, Vit,
    block::{self, Shape},
    positions,
};
use crate::ops::{
    Real,
    buffers::Buffers,
    conv2d::{Size, Source},
    layer_norm,
    product::Products,
};

/// What the backward pass needs of a forward pass.
#[derive(Debug)]
pub struct Saved<E> {
    pub(super) size: Size,
    pub(super) blocks: Vec<SavedBlock<E>>,
    /// Class tokens [n, width] before the last norm.
    pub(super) cls: Vec<E>,
}

/// One block's input and intermediate results, which are those of [`Shape::kept`]. Outputs of norms and of the GELU are computed
/// again when needed.
#[derive(Debug)]
pub struct SavedBlock<E> {
    pub input: Vec<E>,
    pub kept: [Vec<E>; 5],
}

impl<E: Real> SavedBlock<E> {
    /// Hands all buffers back.
    pub fn give_to(self, memory: &mut Buffers<E>) {
        memory.give(self.input);
        self.kept.into_iter().for_each(|buffer| memory.give(buffer));
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
        let mut blocks = Vec::new();
        let (features, cls) = self.forward(params, buffers, images, size, memory, Some(&mut blocks));
        (features, Saved { size, blocks, cls })
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
        self.forward(params, buffers, images, size, memory, None).0
    }

    /// Features, and class tokens before the last norm. `keep` gets what each block leaves behind.
    fn forward<E: Real>(
        &self,
        params: &[E],
        buffers: &[E],
        images: &[E],
        size: Size,
        memory: &mut Buffers<E>,
        mut keep: Option<&mut Vec<SavedBlock<E>>>,
    ) -> (Vec<E>, Vec<E>) {
        let mut x = self.embed(params, buffers, images, size, memory);
        let tokens = x.len() / (size.n * self.shape.width);
        for (i, block) in self.blocks.iter().enumerate() {
            let shape = self.block_shape(i, [size.n, tokens]);
            let mut output = memory.take(shape.output());
            let mut kept = keep.as_ref().map(|_| shape.kept().map(|len| memory.take(len)));
            let pass = block::Forward {
                block,
                params,
                shape,
                input: &x,
                output: &mut output,
                keep: kept.as_mut().map(|kept| kept.each_mut().map(Vec::as_mut_slice)),
            };
            self.products(block).run(pass);
            let input = std::mem::replace(&mut x, output);
            match (&mut keep, kept) {
                (Some(blocks), Some(kept)) => blocks.push(SavedBlock { input, kept }),
                _ => memory.give(input),
            }
        }
        // The last block's output are the class tokens.
        let mut features = vec![E::zero(); x.len()];
        layer_norm::forward(&x, self.norm.affine(params), &mut features);
        (features, x)
    }

    /// What block `i` works on; only class tokens are read of the last one's output.
    pub(super) fn block_shape(&self, i: usize, [images, tokens]: [usize; 2]) -> Shape {
        let read = if i + 1 == self.blocks.len() { 1 } else { tokens };
        Shape { images, attention: self.attention(tokens), read }
    }

    /// How the factors of a block's products are read.
    pub(super) fn products(&self, block: &Block) -> Products {
        block.fc1.products
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
}

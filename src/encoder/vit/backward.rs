//! Backward pass: from the features' gradient to the parameters'.

use rayon::prelude::*;

use super::{
    Vit, block,
    forward::{Saved, SavedBlock},
};
use crate::ops::{
    Real,
    buffers::Buffers,
    columns::add_column_sums,
    conv2d::{Size, Source},
    gemm::Threads,
    layer_norm,
    parts::{Work, add, leaf_rows, parts, write_tree_of},
};

impl Vit {
    /// Adds to `gradients` those of one forward pass of `images`; a frozen patch embedding's are left alone.
    pub fn backward<E: Real>(
        &self,
        params: &[E],
        images: &[E],
        saved: Saved<E>,
        g_features: &[E],
        gradients: &mut [E],
        memory: &mut Buffers<E>,
    ) {
        let width = self.shape.width;
        let Saved { size, blocks, cls } = saved;
        let count = parts(size.n);
        let mut g_cls = vec![E::zero(); cls.len()];
        let (own, weight) = (self.norm.weight.start..self.norm.bias.end, self.norm.affine(params).weight);
        let mut of_norm = vec![E::zero(); own.len()];
        let rows = g_cls.chunks_mut(cls.len() / count).enumerate().collect();
        write_tree_of(rows, &mut of_norm, Work::Leaves, &|(part, gx): (usize, &mut [E]), sums: &mut [E]| {
            let rows = leaf_rows(cls.len(), count, 1, part);
            let (g_weight, g_bias) = sums.split_at_mut(width);
            layer_norm::backward(&cls[rows.clone()], weight, &g_features[rows], gx, [g_weight, g_bias]);
        });
        add(&mut gradients[own], &of_norm, Threads::One);

        // Only the class tokens lead to the features.
        let grid = self.patches.output_size(size);
        let tokens = 1 + grid.h * grid.w;
        let mut g = memory.take(size.n * tokens * width);
        g.par_chunks_mut(tokens * width).zip(g_cls.par_chunks(width)).for_each(|(g, g_cls)| {
            g[..width].copy_from_slice(g_cls);
            g[width..].fill(E::zero());
        });
        for (i, (block, saved)) in self.blocks.iter().zip(blocks).enumerate().rev() {
            let SavedBlock { input, kept } = &saved;
            let (shape, kept) = (self.block_shape(i, [size.n, tokens]), kept.each_ref().map(Vec::as_slice));
            let g = &mut g;
            self.products(block).run(block::Backward { block, params, shape, input, kept, g, gradients });
            saved.give_to(memory);
        }
        self.embed_backward(images, size, &g, gradients, memory);
        memory.give(g);
    }

    /// Gradients of class token and patch embedding, from that of the tokens.
    fn embed_backward<E: Real>(&self, images: &[E], size: Size, g: &[E], gradients: &mut [E], memory: &mut Buffers<E>) {
        let width = self.shape.width;
        let sample = g.len() / size.n;
        let g_cls: Vec<E> = g.chunks_exact(sample).flat_map(|g| &g[..width]).copied().collect();
        add_column_sums(&g_cls, parts(size.n), &mut gradients[self.cls_token.clone()]);
        if self.stop_grad_patch_embed {
            return;
        }
        let mut g_patches = memory.take(g.len() - size.n * width);
        g_patches
            .par_chunks_mut(sample - width)
            .zip(g.par_chunks(sample))
            .for_each(|(patches, g)| patches.copy_from_slice(&g[width..]));
        add_column_sums(&g_patches, parts(size.n), &mut gradients[self.patch_embed.bias.clone()]);
        self.patches.backward_weight(
            Source::plain(images),
            size,
            &g_patches,
            &mut gradients[self.patch_embed.weight.clone()],
        );
        memory.give(g_patches);
    }
}

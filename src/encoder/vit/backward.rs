//! Backward pass: from the features' gradient to the parameters'.

use rayon::prelude::*;

use super::{
    Block, Vit,
    forward::{Saved, SavedBlock},
};
use crate::ops::{
    Real,
    buffers::Buffers,
    columns::add_column_sums,
    conv2d::{Size, Source},
    gelu::{gelu, gelu_backward},
    layer_norm,
    parts::parts,
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
        let Saved { size, blocks, cls, statistics } = saved;
        let mut g_cls = vec![E::zero(); cls.len()];
        let norm = self.norm.gradients(gradients);
        layer_norm::backward(
            &cls,
            &statistics,
            self.norm.affine(params).weight,
            g_features,
            &mut g_cls,
            norm,
            parts(size.n),
        );

        // Only the class tokens lead to the features.
        let grid = self.patches.output_size(size);
        let sample = (1 + grid.h * grid.w) * width;
        let mut g = memory.take(size.n * sample);
        g.par_chunks_mut(sample).zip(g_cls.par_chunks(width)).for_each(|(g, g_cls)| {
            g[..width].copy_from_slice(g_cls);
            g[width..].fill(E::zero());
        });
        for (block, kept) in self.blocks.iter().zip(blocks).rev() {
            self.block_backward(block, params, [size.n, sample / width], kept, &mut g, gradients, memory);
        }
        self.embed_backward(images, size, &g, gradients, memory);
        memory.give(g);
    }

    /// `g` goes from the gradient of the block's output to that of its input.
    #[allow(clippy::too_many_arguments)]
    fn block_backward<E: Real>(
        &self,
        block: &Block,
        params: &[E],
        [images, tokens]: [usize; 2],
        kept: SavedBlock<E>,
        g: &mut [E],
        gradients: &mut [E],
        memory: &mut Buffers<E>,
    ) {
        // The residual connection passes g on as it is; each half adds its own part.
        let (mut normed, mut g_normed) = (memory.take(g.len()), memory.take(g.len()));

        let (mut active, mut g_hidden) = (memory.take(kept.hidden.len()), memory.take(kept.hidden.len()));
        gelu(&kept.hidden, &mut active);
        block.fc2.backward(params, &active, g, images, &mut g_hidden, gradients);
        gelu_backward(&kept.hidden, &mut g_hidden);
        let affine = block.norm2.affine(params);
        layer_norm::apply(&kept.middle, &kept.statistics2, affine, &mut normed);
        block.fc1.backward(params, &normed, &g_hidden, images, &mut g_normed, gradients);
        let norm = block.norm2.gradients(gradients);
        layer_norm::backward(&kept.middle, &kept.statistics2, affine.weight, &g_normed, g, norm, parts(images));
        memory.give(active);
        memory.give(g_hidden);

        let mut g_qkv = memory.take(kept.qkv.len());
        let g_attended = &mut g_normed;
        block.proj.backward(params, &kept.attended, g, images, g_attended, gradients);
        self.attention(tokens).backward(&kept.qkv, g_attended, &mut g_qkv);
        let affine = block.norm1.affine(params);
        layer_norm::apply(&kept.input, &kept.statistics1, affine, &mut normed);
        block.qkv.backward(params, &normed, &g_qkv, images, &mut g_normed, gradients);
        let norm = block.norm1.gradients(gradients);
        layer_norm::backward(&kept.input, &kept.statistics1, affine.weight, &g_normed, g, norm, parts(images));
        for buffer in [normed, g_normed, g_qkv] {
            memory.give(buffer);
        }
        kept.give_to(memory);
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

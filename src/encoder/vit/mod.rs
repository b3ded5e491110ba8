//! Vision transformers (Dosovitskiy et al. 2021) as in timm's `vit_*_patch16_224`: class token, pre-norm blocks, exact GELU.
//!
//! The features are the class token after the last norm. Positions are fixed as in MoCo-v3: a buffer, not a parameter.

mod builder;
mod cost;
mod init;
mod passes;

#[cfg(test)]
mod tests;

pub use passes::Saved;

use super::VitConfig;
use crate::{
    backend::layers::{Block, Embedding, LayerNorm},
    ops::{arena::Layout, conv2d::Conv2d, matmul::MatmulPrecision},
    rule::Broken,
};
use builder::Builder;

/// Hidden width of the perceptrons, as a multiple of the tokens' width.
const MLP_RATIO: usize = 4;

/// The sizes in which vision transformers differ.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Elements of a token.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads per block.
    pub heads: usize,
}

/// Structure of a vision transformer.
#[derive(Clone, Debug)]
pub struct Vit {
    pub(super) params: Layout,
    pub(super) buffers: Layout,
    shape: Shape,
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Vit {
    /// A network of `shape` with the settings of `config`. If `config` has heads or an image size, these replace the heads of
    /// `shape` and `size` (in pixels).
    ///
    /// # Errors
    /// When the heads do not divide the width or the patches do not divide the image.
    pub fn new(shape: Shape, config: &VitConfig, size: usize) -> Result<Self, Broken> {
        let shape = Shape { heads: config.heads.unwrap_or(shape.heads), ..shape };
        let (key, size) = config.image_size.map_or(("augmentations.size", size), |size| ("encoder.image_size", size));
        let patch = config.patch_size;
        let Shape { width, depth, heads } = shape;
        VitConfig::fit_heads(heads, width)?;
        VitConfig::fit_patches(patch, key, size)?;
        let grid = size / patch;
        let mut builder = Builder::default();
        let cls_token = builder.param("cls_token", &[1, 1, width]);
        let positions = builder.buffer("pos_embed", &[1, 1 + grid * grid, width]);
        let embedding = Embedding {
            patches: Conv2d {
                kernel: patch,
                stride: patch,
                padding: 0,
                input: 3,
                output: width,
                matmul: MatmulPrecision::Full,
            },
            weight: builder.param("patch_embed.proj.weight", &[width, 3, patch, patch]),
            bias: builder.param("patch_embed.proj.bias", &[width]),
            cls_token,
            positions,
            grid,
            frozen: config.stop_grad_patch_embed,
        };
        let mut blocks: Vec<Block> =
            (0..depth).map(|i| builder.block(&format!("blocks.{i}"), width, MLP_RATIO * width, heads)).collect();
        blocks.iter_mut().last().expect("a network has blocks").last = true;
        let norm = builder.norm("norm", width);
        let (params, buffers) = builder.finish();
        Ok(Self { params, buffers, shape, embedding, blocks, norm })
    }

    /// Sets the precision in which all linear layers read the factors of their products. That of attention does not change.
    pub fn set_matmul_precision(&mut self, matmul: MatmulPrecision) {
        self.embedding.patches.matmul = matmul;
        for block in &mut self.blocks {
            for layer in [&mut block.qkv, &mut block.proj, &mut block.fc1, &mut block.fc2] {
                layer.matmul = matmul;
            }
        }
    }

    /// Width of the features.
    pub fn feature_dim(&self) -> usize {
        self.shape.width
    }

    /// Whether training updates tensor `entry` of the parameters.
    pub fn trains(&self, entry: usize) -> bool {
        !(self.embedding.frozen && self.params.entries[entry].name.starts_with("patch_embed."))
    }
}

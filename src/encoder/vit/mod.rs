//! Vision transformers (Dosovitskiy et al. 2021) as in timm's `vit_*_patch16_224`: class token, pre-norm blocks, exact GELU.
//!
//! The features are the class token behind the last norm. Positions are fixed (MoCo-v3): a buffer, not a parameter.

mod backward;
mod block;
mod cost;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod forward;
mod init;
mod layers;
mod positions;
#[cfg(any(test, feature = "cuda"))]
mod tokens;

#[cfg(test)]
mod gpu_tests;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "cuda"))]
pub use cuda::SavedGpu;
pub use forward::Saved;

use super::{EncoderError, VitConfig};
use crate::ops::{arena::Layout, attention::Attention, conv2d::Conv2d, product::Products};
use layers::{Block, Builder, Linear, Norm};

/// Hidden width of the perceptrons, as a multiple of the tokens' width.
const MLP_RATIO: usize = 4;

/// Numbers that tell vision transformers apart.
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
    /// Patches per row and column of the images that the positions are laid out for.
    grid: usize,
    /// Whether the patch embedding stays as it is.
    stop_grad_patch_embed: bool,
    patches: Conv2d,
    patch_embed: Linear,
    cls_token: std::ops::Range<usize>,
    blocks: Vec<Block>,
    norm: Norm,
}

impl Vit {
    /// A network of `shape` with the settings of `config` (whose `heads` count), for images of `size` pixels unless
    /// `config` says another size.
    ///
    /// # Errors
    /// When the heads do not divide the width or the patches do not divide the image.
    pub fn new(shape: Shape, config: &VitConfig, size: usize) -> Result<Self, EncoderError> {
        let shape = Shape { heads: config.heads.unwrap_or(shape.heads), ..shape };
        let (size, patch) = (config.image_size.unwrap_or(size), config.patch_size);
        let Shape { width, depth, heads } = shape;
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(EncoderError::Heads { heads, width });
        }
        if patch == 0 || size == 0 || !size.is_multiple_of(patch) {
            return Err(EncoderError::Patch { patch, size });
        }
        let grid = size / patch;
        let mut builder = Builder::default();
        let cls_token = builder.param("cls_token", &[1, 1, width]);
        builder.buffer("pos_embed", &[1, 1 + grid * grid, width]);
        let patches =
            Conv2d { kernel: patch, stride: patch, padding: 0, input: 3, output: width, products: Products::Full };
        let patch_embed = Linear {
            weight: builder.param("patch_embed.proj.weight", &[width, 3, patch, patch]),
            bias: builder.param("patch_embed.proj.bias", &[width]),
            input: patches.patch(),
            output: width,
            products: Products::Full,
        };
        let blocks = (0..depth).map(|i| builder.block(&format!("blocks.{i}"), width, MLP_RATIO * width)).collect();
        let norm = builder.norm("norm", width);
        let (params, buffers) = builder.finish();
        let stop_grad_patch_embed = config.stop_grad_patch_embed;
        Ok(Self { params, buffers, shape, grid, stop_grad_patch_embed, patches, patch_embed, cls_token, blocks, norm })
    }

    /// Reads the factors of the products of all linear layers as `products` says; those of attention stay as they are.
    pub fn set_products(&mut self, products: Products) {
        self.patches.products = products;
        for block in &mut self.blocks {
            for layer in [&mut block.qkv, &mut block.proj, &mut block.fc1, &mut block.fc2] {
                layer.products = products;
            }
        }
    }

    /// Width of the features.
    pub fn feature_dim(&self) -> usize {
        self.shape.width
    }

    /// Whether training moves tensor `entry` of the parameters.
    pub fn trains(&self, entry: usize) -> bool {
        !(self.stop_grad_patch_embed && self.params.entries[entry].name.starts_with("patch_embed."))
    }

    fn attention(&self, tokens: usize) -> Attention {
        Attention { tokens, heads: self.shape.heads, width: self.shape.width }
    }
}

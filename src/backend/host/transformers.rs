//! Transformers on the host. Each group of images passes through a whole block on one thread, so the block's intermediate results
//! stay in that core's cache.

use std::{convert::Infallible, marker::PhantomData, ops::Range};

use dfdx::prelude::*;
use rayon::prelude::*;

use super::Host;
use crate::{
    backend::{
        Learned, Transformers,
        layers::{Block, Embedding, LayerNorm, Linear},
        transformers::block::{self, Kept, Layer, Norm, Operations, Types},
    },
    ops::{
        Real,
        attention::{Attention, Tokens},
        buffers::{Buffer, Buffers},
        conv2d::{Size, Source},
        gelu::{gelu, gelu_backward},
        layer_norm::{self, Affine},
        matmul::{Left, Operand, Panels, Start, WithOperand, multiply},
        matrix::Matrix,
        parts::{self, Threads, Work, leaf_rows, leaves, parts, write_tree_of},
        reductions::{add_column_sums, column_sums},
        tensor::CpuTensors,
        tokens::positions,
    },
};

/// A part of the batch is divided into several groups only if each has at least this many tokens, because the gradient of each
/// group costs a pass over the weights.
const GROUP_TOKENS: usize = 256;

/// Divides `n` images of `tokens` tokens into groups. A group is a part of the batch, or a piece of a part.
fn groups([n, tokens]: [usize; 2]) -> Vec<Range<usize>> {
    let count = parts(n);
    let part = n / count;
    let within = leaves(part * tokens, GROUP_TOKENS).min(leaves(part, 1));
    (0..count * within).map(|group| leaf_rows(n, count, within, group)).collect()
}

/// A norm's weight and bias.
fn affine<'a, E>(layer: &LayerNorm, params: &'a [E]) -> Affine<'a, E> {
    Affine { weight: &params[layer.weight.clone()], bias: &params[layer.bias.clone()] }
}

impl<E: Real> Transformers for Host<E>
where
    Cpu: CpuTensors<E>,
{
    /// The tokens of each group.
    type Tokens = Vec<Buffer<E>>;
    type KeptBlock = Vec<Kept<OnHost<E>>>;
    type KeptNorm = Buffer<E>;

    fn embed(
        &self,
        layer: &Embedding,
        params: &Vec<E>,
        buffers: &Buffer<E>,
        images: &Buffer<E>,
        size: Size,
    ) -> Result<Vec<Buffer<E>>, Infallible> {
        let (width, grid) = (layer.width(), layer.grid_of(size));
        let mut embedded = self.pool.take(grid.pixels() * width);
        let weight = &params[layer.weight.clone()];
        layer.patches.forward(Source::plain(images), size, weight, E::zero(), &mut embedded, None);

        // The same values are added to every image: the class token (first row) or the bias, and the position.
        let own = &buffers[layer.positions.clone()];
        let mut offset = match (grid.h, grid.w) == (layer.grid, layer.grid) {
            true => own.to_vec(),
            false => positions::interpolate(own, layer.grid, [grid.h, grid.w], width),
        };
        let (cls, bias) = (&params[layer.cls_token.clone()], &params[layer.bias.clone()]);
        for (i, row) in offset.chunks_exact_mut(width).enumerate() {
            let more = if i == 0 { cls } else { bias };
            row.iter_mut().zip(more).for_each(|(o, m)| *o += *m);
        }

        let (image, patches) = (offset.len(), offset.len() - width);
        let groups = groups([size.n, image / width]);
        let group = |images: Range<usize>| {
            let mut x = self.pool.take(images.len() * image);
            let embedded = &embedded[images.start * patches..images.end * patches];
            for (x, embedded) in x.chunks_exact_mut(image).zip(embedded.chunks_exact(patches)) {
                let (cls, rest) = x.split_at_mut(width);
                cls.copy_from_slice(&offset[..width]);
                for ((x, e), o) in rest.iter_mut().zip(embedded).zip(&offset[width..]) {
                    *x = *e + *o;
                }
            }
            x
        };
        Ok(groups.into_par_iter().map(group).collect())
    }

    fn embed_backward(
        &self,
        layer: &Embedding,
        learned: &mut Learned<Self>,
        images: &Buffer<E>,
        size: Size,
        g: Vec<Buffer<E>>,
    ) -> Result<(), Infallible> {
        let (width, image) = (layer.width(), layer.tokens(size) * layer.width());
        let each = || g.iter().flat_map(|g| g.chunks_exact(image));
        let g_cls: Vec<E> = each().flat_map(|g| &g[..width]).copied().collect();
        add_column_sums(&g_cls, parts(size.n), &mut learned.gradients[layer.cls_token.clone()]);
        if layer.frozen {
            return Ok(());
        }
        let mut g_patches = self.pool.take(size.n * (image - width));
        let places = g_patches.par_chunks_mut(image - width).zip(each().collect::<Vec<_>>());
        places.for_each(|(patches, g)| patches.copy_from_slice(&g[width..]));
        add_column_sums(&g_patches, parts(size.n), &mut learned.gradients[layer.bias.clone()]);
        let gradient = &mut learned.gradients[layer.weight.clone()];
        layer.patches.backward_weight(Source::plain(images), size, &g_patches, gradient);
        Ok(())
    }

    fn block(
        &self,
        layer: &Block,
        params: &Vec<E>,
        shape: [usize; 2],
        x: Vec<Buffer<E>>,
        keep: bool,
    ) -> Result<(Vec<Buffer<E>>, Option<Vec<Kept<OnHost<E>>>>), Infallible> {
        let keep = keep.then_some(&self.pool);
        Ok(layer.fc1.matmul.run(ForwardPass { layer, params, shape, x, pool: &self.pool, keep }))
    }

    fn block_backward(
        &self,
        layer: &Block,
        learned: &mut Learned<Self>,
        shape: [usize; 2],
        kept: Vec<Kept<OnHost<E>>>,
        g: Vec<Buffer<E>>,
    ) -> Result<Vec<Buffer<E>>, Infallible> {
        let (params, gradients) = (learned.params.as_slice(), &mut learned.gradients[layer.params()]);
        Ok(layer.fc1.matmul.run(BackwardPass { layer, params, gradients, shape, kept, g, pool: &self.pool }))
    }

    /// Concatenates the groups. On the host, the last block's output has class tokens only.
    fn class_tokens(&self, _: [usize; 2], x: Vec<Buffer<E>>) -> Result<Buffer<E>, Infallible> {
        Ok(x.iter().flat_map(|x| x.iter()).copied().collect::<Vec<_>>().into())
    }

    fn class_tokens_backward(&self, shape: [usize; 2], g: Buffer<E>) -> Result<Vec<Buffer<E>>, Infallible> {
        let width = g.len() / shape[0];
        Ok(groups(shape)
            .into_iter()
            .map(|images| g[images.start * width..images.end * width].to_vec().into())
            .collect())
    }

    fn layer_norm(
        &self,
        layer: &LayerNorm,
        params: &Vec<E>,
        x: Buffer<E>,
    ) -> Result<(Buffer<E>, Buffer<E>), Infallible> {
        let mut y = self.pool.take(x.len());
        layer_norm::forward(&x, affine(layer, params), &mut y);
        Ok((y, x))
    }

    fn layer_norm_backward(
        &self,
        layer: &LayerNorm,
        learned: &mut Learned<Self>,
        n: usize,
        x: Buffer<E>,
        g: &Buffer<E>,
    ) -> Result<Buffer<E>, Infallible> {
        let (count, weight) = (parts(n), affine(layer, learned.params).weight);
        let mut gx = Buffer::zeros(x.len());
        let own = layer.weight.start..layer.bias.end;
        let mut sums = vec![E::zero(); own.len()];
        let rows = gx.chunks_mut(x.len() / count).enumerate().collect();
        write_tree_of(rows, &mut sums, Work::Leaves, &|(part, gx): (usize, &mut [E]), sums: &mut [E]| {
            let rows = leaf_rows(x.len(), count, 1, part);
            layer_norm::backward(&x[rows.clone()], weight, &g[rows], gx, halves(sums));
        });
        parts::add(&mut learned.gradients[own], &sums, Threads::One);
        Ok(gx)
    }
}

/// The types of a block's rows on the host.
pub struct OnHost<E>(PhantomData<E>);

impl<E: Real> Types for OnHost<E> {
    type Rows = Buffer<E>;
    /// The rows without statistics, which the backward pass recomputes.
    type Normed = Buffer<E>;
    /// Queries [.., width], keys and values side by side [.., 2 width].
    type Qkv = [Buffer<E>; 2];
    type Weights = ();
}

/// The linear layers of a block: the part of `qkv` for queries, the part for keys and values, `proj`, `fc1` and `fc2`.
fn layers(block: &Block) -> [Linear; 5] {
    let (Block { qkv, proj, fc1, fc2, .. }, width) = (block, block.width());
    let part = |rows: Range<usize>| Linear {
        weight: qkv.weight.start + rows.start * width..qkv.weight.start + rows.end * width,
        bias: qkv.bias.start + rows.start..qkv.bias.start + rows.end,
        output: rows.len(),
        ..qkv.clone()
    };
    [part(0..width), part(width..3 * width), proj.clone(), fc1.clone(), fc2.clone()]
}

/// Packs the weights of all layers for the products of the forward pass (transposed) or of the backward pass, and calls `work`
/// with the packed weights.
fn with_factors<E: Real, P: Operand<E>, R>(
    layers: &[Linear; 5],
    params: &[E],
    forward: bool,
    work: impl FnOnce([Panels<E>; 5]) -> R,
) -> R {
    let factors = layers.each_ref().map(|layer| {
        let weight = Matrix::new(&params[layer.weight.clone()], layer.output, layer.input);
        if forward { weight.t() } else { weight }
    });
    let lengths = factors.map(|factor| Panels::<E>::len::<P>([factor.rows, factor.columns]));
    E::with_scratch(lengths.iter().sum(), |mut memory| {
        let panels = std::array::from_fn(|i| {
            let memory = memory.split_off_mut(..lengths[i]).expect("memory for each");
            Panels::pack::<P>(factors[i], memory, Threads::All)
        });
        work(panels)
    })
}

/// The forward pass of all groups through a block.
struct ForwardPass<'a, E: Real> {
    layer: &'a Block,
    params: &'a [E],
    shape: [usize; 2],
    x: Vec<Buffer<E>>,
    pool: &'a Buffers<E>,
    /// The pool for the memory of intermediate results that are kept; None if none are.
    keep: Option<&'a Buffers<E>>,
}

impl<E: Real> WithOperand<E> for ForwardPass<'_, E> {
    type Output = (Vec<Buffer<E>>, Option<Vec<Kept<OnHost<E>>>>);

    fn with<P: Operand<E>>(self) -> Self::Output {
        let Self { layer, params, shape, x, pool, keep } = self;
        let layers = layers(layer);
        let passed: (Vec<_>, Vec<_>) = with_factors::<E, P, _>(&layers, params, true, |factors| {
            let block = BlockOnHost { layer, layers: &layers, params, factors, tokens: shape[1], pool, keep };
            let through = |x: Buffer<E>| {
                let images = x.len() / (shape[1] * layer.width());
                let Ok((y, kept)) = block::forward(&Group::<E, P>::new(&block, images, &mut []), x);
                (y, keep.map(|_| kept))
            };
            x.into_par_iter().map(through).unzip()
        });
        (passed.0, passed.1.into_iter().collect())
    }
}

/// The backward pass of all groups through a block.
struct BackwardPass<'a, E: Real> {
    layer: &'a Block,
    params: &'a [E],
    /// The gradients of the block's parameters.
    gradients: &'a mut [E],
    shape: [usize; 2],
    kept: Vec<Kept<OnHost<E>>>,
    g: Vec<Buffer<E>>,
    pool: &'a Buffers<E>,
}

impl<E: Real> WithOperand<E> for BackwardPass<'_, E> {
    type Output = Vec<Buffer<E>>;

    fn with<P: Operand<E>>(self) -> Vec<Buffer<E>> {
        let Self { layer, params, gradients, shape, kept, g, pool } = self;
        let layers = layers(layer);
        let read = if layer.last { 1 } else { shape[1] };
        let mut gx: Vec<Option<Buffer<E>>> = g.iter().map(|_| None).collect();
        let work: Vec<_> = kept.into_iter().zip(g).zip(&mut gx).collect();
        with_factors::<E, P, _>(&layers, params, false, |factors| {
            let block = BlockOnHost { layer, layers: &layers, params, factors, tokens: shape[1], pool, keep: None };
            E::with_scratch(gradients.len(), |total| {
                write_tree_of(
                    work,
                    total,
                    Work::Leaves,
                    &|((kept, g), gx): ((_, Buffer<E>), &mut Option<_>), sums: &mut [E]| {
                        let images = g.len() / (read * layer.width());
                        let Ok(g) = block::backward(&mut Group::<E, P>::new(&block, images, sums), kept, g);
                        *gx = Some(g);
                    },
                );
                parts::add(gradients, total, Threads::All);
            });
        });
        gx.into_iter().map(|gx| gx.expect("every group went through")).collect()
    }
}

/// The block with the values that all groups share.
struct BlockOnHost<'a, E> {
    layer: &'a Block,
    layers: &'a [Linear; 5],
    params: &'a [E],
    factors: [Panels<'a, E>; 5],
    /// Tokens of an image.
    tokens: usize,
    pool: &'a Buffers<E>,
    keep: Option<&'a Buffers<E>>,
}

/// A group of images that passes through a block. In the last block, only the first norm and the keys and values are computed for
/// all tokens; the rest is computed for the class tokens alone.
struct Group<'a, E, P> {
    block: &'a BlockOnHost<'a, E>,
    images: usize,
    /// The gradient of the block's parameters from this group, in a backward pass.
    sums: &'a mut [E],
    operand: PhantomData<P>,
}

/// Indices into [`layers`].
const QUERIES: usize = 0;
const KEYS_VALUES: usize = 1;
const OUTPUT: usize = 4;

impl Layer {
    fn index(self) -> usize {
        match self {
            Layer::Proj => 2,
            Layer::Fc1 => 3,
            Layer::Fc2 => OUTPUT,
        }
    }
}

impl<'a, E: Real, P: Operand<E>> Group<'a, E, P> {
    fn new(block: &'a BlockOnHost<'a, E>, images: usize, sums: &'a mut [E]) -> Self {
        Self { block, images, sums, operand: PhantomData }
    }

    fn width(&self) -> usize {
        self.block.layer.width()
    }

    /// Elements of an image in the block's output: those of the class token in the last block, else of all tokens.
    fn read(&self) -> usize {
        self.width() * if self.block.layer.last { 1 } else { self.block.tokens }
    }

    /// Elements of all tokens of an image.
    fn image(&self) -> usize {
        self.width() * self.block.tokens
    }

    fn attend(&self) -> Attention {
        self.block.layer.attention(self.block.tokens)
    }

    /// Memory for a result that the backward pass needs: from the pool if results are kept, else working memory of this thread.
    fn take_kept(&self, len: usize) -> Buffer<E> {
        self.block.keep.map_or_else(|| Buffer::of_thread(len), |pool| pool.take(len))
    }

    /// Copies the class tokens out of `x` in the last block; None in other blocks, which use all rows.
    fn gather(&self, x: &[E]) -> Option<Buffer<E>> {
        let (read, image) = (self.read(), self.image());
        (read < image).then(|| {
            let mut rows = Buffer::of_thread(self.images * read);
            let images = rows.chunks_exact_mut(read).zip(x.chunks_exact(image));
            images.for_each(|(to, x)| to.copy_from_slice(&x[..read]));
            rows
        })
    }

    fn norm(&self, norm: Norm) -> &'a LayerNorm {
        match norm {
            Norm::First => &self.block.layer.norm1,
            Norm::Second => &self.block.layer.norm2,
        }
    }

    /// y = start + x times the packed weights of a layer, for rows x of `input` elements.
    fn multiply(&self, layer: usize, x: &[E], input: usize, start: Start<E>, y: &mut [E]) {
        Left::with_rows::<P>(x, input, |x| multiply::<E, P>(x, self.block.factors[layer], y, start));
    }

    /// y = x w^T + bias, plus the rows `residual` if given.
    fn forward(&self, layer: usize, x: &[E], residual: Option<&[E]>) -> Buffer<E> {
        let layer_of = &self.block.layers[layer];
        let len = x.len() / layer_of.input * layer_of.output;
        // The block's output outlives this thread's working memory.
        let mut y = if layer == OUTPUT { self.block.pool.take(len) } else { self.take_kept(len) };
        let bias = &self.block.params[layer_of.bias.clone()];
        let start = residual.map_or(Start::Bias(bias), |rows| Start::Rows(rows, bias));
        self.multiply(layer, x, layer_of.input, start, &mut y);
        y
    }

    /// gx = g w.
    fn backward(&self, layer: usize, g: &[E]) -> Buffer<E> {
        let layer_of = &self.block.layers[layer];
        let mut gx = Buffer::of_thread(g.len() / layer_of.output * layer_of.input);
        self.multiply(layer, g, layer_of.output, Start::Zero, &mut gx);
        gx
    }

    /// Writes the gradients of a layer's bias (the column sums of g) and weight (g^T x). Both sum over the rows in order.
    fn write_gradient(&mut self, layer: usize, x: &[E], g: &[E]) {
        let layer = &self.block.layers[layer];
        let (rows, first) = (g.len() / layer.output, self.block.layer.params().start);
        let at = |range: &Range<usize>| range.start - first..range.end - first;
        column_sums(g, &mut self.sums[at(&layer.bias)]);
        let sum = &mut self.sums[at(&layer.weight)];
        E::with_scratch(Panels::<E>::len::<P>([rows, layer.input]), |memory| {
            let x = Panels::pack::<P>(Matrix::new(x, rows, layer.input), memory, Threads::One);
            Left::with_transposed::<P>(Matrix::new(g, rows, layer.output), Threads::One, |g| {
                multiply::<E, P>(g, x, sum, Start::Zero);
            });
        });
    }
}

impl<E: Real, P: Operand<E>> Operations for Group<'_, E, P> {
    type Types = OnHost<E>;
    type Error = Infallible;

    fn layer_norm(&self, norm: Norm, x: Buffer<E>) -> Result<(Buffer<E>, Buffer<E>), Infallible> {
        let normed = self.normed(norm, &x)?;
        Ok((normed, x))
    }

    fn normed(&self, norm: Norm, x: &Buffer<E>) -> Result<Buffer<E>, Infallible> {
        let mut y = Buffer::of_thread(x.len());
        layer_norm::forward(x, affine(self.norm(norm), self.block.params), &mut y);
        Ok(y)
    }

    fn norm_backward(
        &mut self,
        norm: Norm,
        x: Buffer<E>,
        g_normed: Buffer<E>,
        mut g: Buffer<E>,
    ) -> Result<Buffer<E>, Infallible> {
        if g.len() < x.len() {
            // In the last block, g covers the class tokens only. The gradient of the other rows starts at zero.
            let (read, image) = (self.read(), self.image());
            let mut all = self.block.pool.take(x.len());
            for (all, g) in all.chunks_exact_mut(image).zip(g.chunks_exact(read)) {
                all[..read].copy_from_slice(g);
                all[read..].fill(E::zero());
            }
            g = all;
        }
        let (layer, first) = (self.norm(norm), self.block.layer.params().start);
        let own = &mut self.sums[layer.weight.start - first..layer.bias.end - first];
        layer_norm::backward(&x, affine(layer, self.block.params).weight, &g_normed, &mut g, halves(own));
        Ok(g)
    }

    fn linear(&self, layer: Layer, x: &Buffer<E>, residual: Option<&Buffer<E>>) -> Result<Buffer<E>, Infallible> {
        let gathered =
            residual.filter(|rows| rows.len() > self.images * self.read()).and_then(|rows| self.gather(rows));
        let residual = gathered.as_deref().or(residual.map(|rows| &**rows));
        Ok(self.forward(layer.index(), x, residual))
    }

    fn linear_backward(&self, layer: Layer, g: &Buffer<E>) -> Result<Buffer<E>, Infallible> {
        Ok(self.backward(layer.index(), g))
    }

    fn add_gradient(&mut self, layer: Layer, x: &Buffer<E>, g: &Buffer<E>) -> Result<(), Infallible> {
        self.write_gradient(layer.index(), x, g);
        Ok(())
    }

    fn qkv(&self, x: &Buffer<E>) -> Result<[Buffer<E>; 2], Infallible> {
        let read = self.gather(x);
        let q = self.forward(QUERIES, read.as_deref().unwrap_or(x), None);
        Ok([q, self.forward(KEYS_VALUES, x, None)])
    }

    fn qkv_backward(&mut self, x: Buffer<E>, [g_q, g_kv]: [Buffer<E>; 2]) -> Result<Buffer<E>, Infallible> {
        let gathered = self.gather(&x);
        self.write_gradient(QUERIES, gathered.as_deref().unwrap_or(&x), &g_q);
        self.write_gradient(KEYS_VALUES, &x, &g_kv);
        let (mut gx, of_q) = (self.backward(KEYS_VALUES, &g_kv), self.backward(QUERIES, &g_q));
        let (read, image) = (self.read(), self.image());
        for (gx, of_q) in gx.chunks_exact_mut(image).zip(of_q.chunks_exact(read)) {
            parts::add(&mut gx[..read], of_q, Threads::One);
        }
        Ok(gx)
    }

    fn attention(&self, [q, kv]: &[Buffer<E>; 2]) -> Result<(Buffer<E>, ()), Infallible> {
        let mut y = self.take_kept(q.len());
        self.attend().forward(self.images, tokens(q, kv, self.width()), &mut y);
        Ok((y, ()))
    }

    fn attention_backward(
        &self,
        [q, kv]: [Buffer<E>; 2],
        _: (Buffer<E>, ()),
        g: Buffer<E>,
    ) -> Result<[Buffer<E>; 2], Infallible> {
        let (mut g_q, mut g_kv) = (Buffer::of_thread(q.len()), Buffer::of_thread(kv.len()));
        self.attend().backward(self.images, tokens(&q, &kv, self.width()), &g, &mut g_q, &mut g_kv);
        Ok([g_q, g_kv])
    }

    fn gelu(&self, x: &Buffer<E>) -> Result<Buffer<E>, Infallible> {
        let mut y = Buffer::of_thread(x.len());
        gelu(x, &mut y);
        Ok(y)
    }

    fn gelu_backward(&self, x: Buffer<E>, g: &mut Buffer<E>) -> Result<Buffer<E>, Infallible> {
        let mut y = Buffer::of_thread(x.len());
        gelu_backward(&x, g, &mut y);
        Ok(y)
    }
}

/// Queries, and keys and values side by side.
fn tokens<'a, E>(q: &'a [E], kv: &'a [E], width: usize) -> [Tokens<'a, E>; 3] {
    [Tokens { data: q, row: width }, Tokens { data: kv, row: 2 * width }, Tokens { data: &kv[width..], row: 2 * width }]
}

/// Splits the gradients of a norm's parameters into those of its weight and of its bias, which follow the weight's.
fn halves<E>(values: &mut [E]) -> [&mut [E]; 2] {
    let (first, second) = values.split_at_mut(values.len() / 2);
    [first, second]
}

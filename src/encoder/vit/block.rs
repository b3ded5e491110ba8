//! A block's passes on the host: images are taken in groups, each of which goes through the whole block on one thread, so that
//! what the block computes in between stays in that core's cache.

use std::ops::Range;

use rayon::prelude::*;

use super::layers::{Block, Linear};
use crate::ops::{
    Real,
    attention::{Attention, Tokens},
    columns::column_sums,
    gelu::{gelu, gelu_backward},
    gemm::{Matrix, Threads},
    layer_norm,
    parts::{self, Work, leaf_rows, leaves, parts},
    product::{Left, Operand, Panels, Start, WithOperand, multiply},
};

/// Tokens of a group, at least: every group's gradient costs a pass over the weights.
const GROUP_TOKENS: usize = 256;

/// What a block works on.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub images: usize,
    /// Tokens, their width, and heads.
    pub attention: Attention,
    /// How many of an image's tokens, from the first on, are read of the output.
    pub read: usize,
}

impl Shape {
    /// Elements of all tokens.
    pub fn tokens(&self) -> usize {
        self.images * self.attention.tokens * self.attention.width
    }

    /// Elements of the tokens that are read on.
    pub fn output(&self) -> usize {
        self.images * self.read * self.attention.width
    }

    /// Elements of each of a pass's intermediate results: queries, keys and values, the attention's output, the perceptron's
    /// input, its hidden layer.
    pub fn kept(&self) -> [usize; 5] {
        [self.output(), 2 * self.tokens(), self.output(), self.output(), 4 * self.output()]
    }

    /// The images of each group: those of a part of the batch, or a piece of one.
    fn groups(&self) -> Vec<Range<usize>> {
        let count = parts(self.images);
        let part = self.images / count;
        let within = leaves(part * self.attention.tokens, GROUP_TOKENS).min(leaves(part, 1));
        (0..count * within).map(|group| leaf_rows(self.images, count, within, group)).collect()
    }

    fn of(self, images: &Range<usize>) -> Self {
        Self { images: images.len(), ..self }
    }

    /// The rows that are read on, of rows [tokens, width], copied to `to` unless they are all.
    fn gather<'a, E: Real>(&self, rows: &'a [E], to: &'a mut [E]) -> &'a [E] {
        let Attention { tokens, width, .. } = self.attention;
        if self.read == tokens {
            return rows;
        }
        for (to, image) in to.chunks_exact_mut(self.read * width).zip(rows.chunks_exact(tokens * width)) {
            to.copy_from_slice(&image[..self.read * width]);
        }
        to
    }
}

/// Cuts a buffer into those of the groups: `elements` of each image.
fn split<'a, E>(mut values: &'a mut [E], elements: usize, groups: &[Range<usize>]) -> Vec<&'a mut [E]> {
    groups.iter().map(|group| values.split_off_mut(..group.len() * elements).expect("room for all images")).collect()
}

/// Cuts working memory into buffers of these lengths.
fn buffers<E, const N: usize>(mut memory: &mut [E], lengths: [usize; N]) -> [&mut [E]; N] {
    lengths.map(|len| memory.split_off_mut(..len).expect("memory for all buffers"))
}

/// The layers of a block: the queries' part of `qkv`, that of keys and values, and the others.
fn layers(block: &Block, width: usize) -> [Linear; 5] {
    let Block { qkv, proj, fc1, fc2, .. } = block;
    let part = |rows: Range<usize>| Linear {
        weight: qkv.weight.start + rows.start * width..qkv.weight.start + rows.end * width,
        bias: qkv.bias.start + rows.start..qkv.bias.start + rows.end,
        output: rows.len(),
        ..qkv.clone()
    };
    [part(0..width), part(width..3 * width), proj.clone(), fc1.clone(), fc2.clone()]
}

/// Packs the weights of all layers, as the forward pass multiplies by them or as the backward pass does, and calls `work` with
/// them.
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
    E::with_scratch(lengths.iter().sum(), |memory| {
        let mut memory = buffers(memory, lengths).into_iter();
        work(factors.map(|factor| Panels::pack::<P>(factor, memory.next().expect("memory for each"), Threads::All)))
    })
}

/// y = start + x w, for rows x of `input` elements.
fn linear<E: Real, P: Operand<E>>(x: &[E], input: usize, w: Panels<E>, start: Start<E>, y: &mut [E]) {
    Left::with_rows::<P>(x, input, |x| multiply::<E, P>(x, w, y, start));
}

/// The pass forward: `output` [images, read, width] from `input` [images, tokens, width].
pub struct Forward<'a, E> {
    pub block: &'a Block,
    pub params: &'a [E],
    pub shape: Shape,
    pub input: &'a [E],
    pub output: &'a mut [E],
    /// Where intermediate results go (see [`Shape::kept`]), if the backward pass will need them.
    pub keep: Option<[&'a mut [E]; 5]>,
}

impl<E: Real> WithOperand<E> for Forward<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { block, params, shape, input, output, keep } = self;
        let (groups, per_image) = (shape.groups(), Shape { images: 1, ..shape });
        let input = groups.iter().map(|group| &input[group.start * per_image.tokens()..group.end * per_image.tokens()]);
        let mut keep = keep.map(|buffers| {
            let mut lengths = per_image.kept().into_iter();
            buffers.map(|buffer| split(buffer, lengths.next().expect("one each"), &groups).into_iter())
        });
        let mut next = || keep.as_mut().map(|buffers| buffers.each_mut().map(|of| of.next().expect("one each")));
        let output = split(output, per_image.output(), &groups);
        let work: Vec<_> = groups
            .iter()
            .zip(input)
            .zip(output)
            .map(|((group, input), output)| (group, input, output, next()))
            .collect();
        let layers = layers(block, shape.attention.width);
        with_factors::<E, P, _>(&layers, params, true, |factors| {
            let pass = Pass { block, layers: &layers, params, factors };
            work.into_par_iter().for_each(|(group, input, output, keep)| {
                let shape = shape.of(group);
                match keep {
                    Some(keep) => pass.forward::<P>(shape, input, output, keep),
                    None => E::with_scratch(shape.kept().iter().sum(), |memory| {
                        pass.forward::<P>(shape, input, output, buffers(memory, shape.kept()));
                    }),
                }
            });
        });
    }
}

/// What all groups share.
struct Pass<'a, E> {
    block: &'a Block,
    layers: &'a [Linear; 5],
    params: &'a [E],
    factors: [Panels<'a, E>; 5],
}

impl<E: Real> Pass<'_, E> {
    fn forward<P: Operand<E>>(
        &self,
        shape: Shape,
        input: &[E],
        output: &mut [E],
        [q, kv, attended, middle, hidden]: [&mut [E]; 5],
    ) {
        let (Self { block, params, .. }, Attention { width, .. }) = (self, shape.attention);
        let [w_q, w_kv, w_proj, w_fc1, w_fc2] = self.factors;
        let [b_q, b_kv, b_proj, b_fc1, b_fc2] = self.layers.each_ref().map(|layer| &params[layer.bias.clone()]);
        E::with_scratch(input.len() + 2 * output.len() + hidden.len(), |memory| {
            let [normed, read, residual, active] =
                buffers(memory, [input.len(), output.len(), output.len(), hidden.len()]);
            layer_norm::forward(input, block.norm1.affine(params), normed);
            linear::<E, P>(shape.gather(normed, read), width, w_q, Start::Bias(b_q), q);
            linear::<E, P>(normed, width, w_kv, Start::Bias(b_kv), kv);
            shape.attention.forward(shape.images, tokens(q, kv, width), attended);
            linear::<E, P>(attended, width, w_proj, Start::Rows(shape.gather(input, residual), b_proj), middle);
            let normed = &mut normed[..output.len()];
            layer_norm::forward(middle, block.norm2.affine(params), normed);
            linear::<E, P>(normed, width, w_fc1, Start::Bias(b_fc1), hidden);
            gelu(hidden, active);
            linear::<E, P>(active, 4 * width, w_fc2, Start::Rows(middle, b_fc2), output);
        });
    }

    /// `g` goes from the gradient of the output, in the tokens that are read of it, to that of the input; `sums` becomes the
    /// gradient of the block's parameters, which begin with `first`.
    fn backward<P: Operand<E>>(
        &self,
        shape: Shape,
        [input, q, kv, attended, middle, hidden]: [&[E]; 6],
        g: &mut [E],
        sums: &mut [E],
        first: usize,
    ) {
        let (Self { block, params, .. }, Attention { tokens: count, width, .. }) = (self, shape.attention);
        let [w_q, w_kv, w_proj, w_fc1, w_fc2] = self.factors;
        let [l_q, l_kv, l_proj, l_fc1, l_fc2] = self.layers;
        let (all, some, wide) = (g.len(), attended.len(), hidden.len());
        // Writes the gradient of a layer.
        let write = |layer: &Linear, x: &[E], gy: &[E], sums: &mut [E]| {
            let at = |range: &Range<usize>| range.start - first..range.end - first;
            column_sums(gy, &mut sums[at(&layer.bias)]);
            weight_gradient::<E, P>(layer, x, gy, &mut sums[at(&layer.weight)]);
        };
        E::with_scratch(4 * all + 5 * some + 2 * wide + 4 * width, |memory| {
            let [normed, g_normed, g_kv, g_read, g_some, g_q, read, of_q, active, g_hidden, norm1, norm2] =
                buffers(memory, [all, all, 2 * all, some, some, some, some, some, wide, wide, 2 * width, 2 * width]);
            // The residual connections pass g on as it is; each half of the block adds its own part.
            let rows = shape.read * width;
            g_read
                .chunks_exact_mut(rows)
                .zip(g.chunks_exact(count * width))
                .for_each(|(to, g)| to.copy_from_slice(&g[..rows]));
            linear::<E, P>(g_read, width, w_fc2, Start::Zero, g_hidden);
            gelu_backward(hidden, g_hidden, active);
            write(l_fc2, active, g_read, sums);
            let affine = block.norm2.affine(params);
            layer_norm::forward(middle, affine, &mut normed[..some]);
            write(l_fc1, &normed[..some], g_hidden, sums);
            linear::<E, P>(g_hidden, 4 * width, w_fc1, Start::Zero, g_some);
            layer_norm::backward(middle, affine.weight, g_some, g_read, halves(norm2));

            write(l_proj, attended, g_read, sums);
            linear::<E, P>(g_read, width, w_proj, Start::Zero, g_some);
            shape.attention.backward(shape.images, tokens(q, kv, width), g_some, g_q, g_kv);
            let affine = block.norm1.affine(params);
            layer_norm::forward(input, affine, normed);
            write(l_q, shape.gather(normed, read), g_q, sums);
            write(l_kv, normed, g_kv, sums);
            linear::<E, P>(g_kv, 2 * width, w_kv, Start::Zero, g_normed);
            linear::<E, P>(g_q, width, w_q, Start::Zero, of_q);
            let images = g_normed.chunks_exact_mut(count * width).zip(g.chunks_exact_mut(count * width));
            for ((g_normed, g), (of_q, g_read)) in images.zip(of_q.chunks_exact(rows).zip(g_read.chunks_exact(rows))) {
                parts::add(&mut g_normed[..rows], of_q, Threads::One);
                g[..rows].copy_from_slice(g_read);
            }
            layer_norm::backward(input, affine.weight, g_normed, g, halves(norm1));
            for (norm, values) in [(&block.norm1, norm1), (&block.norm2, norm2)] {
                let [weight, bias] = halves(values);
                sums[norm.weight.start - first..][..width].copy_from_slice(weight);
                sums[norm.bias.start - first..][..width].copy_from_slice(bias);
            }
        });
    }
}

/// The gradient of a layer's weight, gy^T x, over the rows in order.
fn weight_gradient<E: Real, P: Operand<E>>(layer: &Linear, x: &[E], gy: &[E], sum: &mut [E]) {
    let rows = gy.len() / layer.output;
    E::with_scratch(Panels::<E>::len::<P>([rows, layer.input]), |memory| {
        let x = Panels::pack::<P>(Matrix::new(x, rows, layer.input), memory, Threads::One);
        Left::with_transposed::<P>(Matrix::new(gy, rows, layer.output), Threads::One, |gy| {
            multiply::<E, P>(gy, x, sum, Start::Zero);
        });
    });
}

/// Queries [.., width], keys and values side by side [.., 2 width].
fn tokens<'a, E>(q: &'a [E], kv: &'a [E], width: usize) -> [Tokens<'a, E>; 3] {
    [Tokens { data: q, row: width }, Tokens { data: kv, row: 2 * width }, Tokens { data: &kv[width..], row: 2 * width }]
}

fn halves<E>(values: &mut [E]) -> [&mut [E]; 2] {
    let (first, second) = values.split_at_mut(values.len() / 2);
    [first, second]
}

/// The pass backward: `g` [images, tokens, width] goes from the gradient of the output, in the tokens that are read of it, to that
/// of the input; adds to `gradients` those of the block's parameters.
pub struct Backward<'a, E> {
    pub block: &'a Block,
    pub params: &'a [E],
    pub shape: Shape,
    /// The input, and what the pass forward kept.
    pub input: &'a [E],
    pub kept: [&'a [E]; 5],
    pub g: &'a mut [E],
    pub gradients: &'a mut [E],
}

impl<E: Real> WithOperand<E> for Backward<'_, E> {
    type Output = ();

    fn with<P: Operand<E>>(self) {
        let Self { block, params, shape, input, kept, g, gradients } = self;
        let (groups, per_image) = (shape.groups(), Shape { images: 1, ..shape });
        let g = split(g, per_image.tokens(), &groups);
        let work: Vec<_> = groups
            .iter()
            .zip(g)
            .map(|(group, g)| {
                let mut lengths = per_image.kept().into_iter();
                let kept = kept.map(|values| {
                    let len = lengths.next().expect("one each");
                    &values[group.start * len..group.end * len]
                });
                (group, &input[group.start * per_image.tokens()..group.end * per_image.tokens()], kept, g)
            })
            .collect();
        let (layers, own) = (layers(block, shape.attention.width), block.params());
        with_factors::<E, P, _>(&layers, params, false, |factors| {
            let pass = Pass { block, layers: &layers, params, factors };
            E::with_scratch(own.len(), |total| {
                parts::write_tree_of(
                    work,
                    total,
                    Work::Leaves,
                    &|(group, input, [q, kv, attended, middle, hidden], g), sums: &mut [E]| {
                        pass.backward::<P>(
                            shape.of(group),
                            [input, q, kv, attended, middle, hidden],
                            g,
                            sums,
                            own.start,
                        );
                    },
                );
                parts::add(&mut gradients[own.clone()], total, Threads::All);
            });
        });
    }
}

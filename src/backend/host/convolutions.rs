//! Convolutions on the host. The next convolution of a block applies batch norm and ReLU while it reads its input, so their
//! results take no memory.

use std::convert::Infallible;

use dfdx::prelude::*;

use super::Host;
use crate::{
    backend::{
        Branch, Convolutions, Learned, Residual, Source, Statistics,
        layers::{BatchNorm, ConvNorm},
    },
    ops::{
        Real,
        batch_norm::{self, Affine, Moments, TileMoments, apply, backward_input, backward_sums_with},
        buffers::Buffer,
        conv2d::{self, Size},
        parts::{Threads, add},
        pool,
        tensor::CpuTensors,
    },
    ranks::Ranks,
};

/// A convolution's output, the batch norm after it as an affine map, and the batch's statistics; None in eval mode.
pub struct Normed<E: Real> {
    raw: Buffer<E>,
    affine: Affine<E>,
    moments: Option<Moments<E>>,
}

impl<'a, E: Real> Source<'a, Host<E>>
where
    Host<E>: Convolutions<Buffer = Buffer<E>, Inner = Normed<E>>,
{
    fn read(&self) -> conv2d::Source<'a, E> {
        match *self {
            Source::Plain(images) => conv2d::Source::plain(images),
            Source::Inner(Normed { raw, affine, .. }) => conv2d::Source { images: raw, relu_of: Some(affine) },
        }
    }
}

/// A norm's weight and bias.
pub(super) fn affine_of<'a, E>(layer: &BatchNorm, params: &'a [E]) -> Option<(&'a [E], &'a [E])> {
    layer.affine.as_ref().map(|[weight, bias]| (&params[weight.clone()], &params[bias.clone()]))
}

/// Updates a norm's running statistics.
pub(super) fn update_running<E: Real>(layer: &BatchNorm, moments: &Moments<E>, statistics: &mut [E]) {
    let [mean, var] = statistics.get_disjoint_mut(layer.running.clone()).expect("statistics do not overlap");
    moments.update_running(mean, var);
}

/// Backward pass of a batch norm and of the ReLU after it, if there is one. Replaces `raw`, the norm's input, by its gradient,
/// and adds to the gradients of the norm's parameters. `g` is the gradient of the norm's output or, with a ReLU, of the ReLU's.
/// With [`batch_norm::Relu::Output`], `g` becomes the gradient of the ReLU's input.
///
/// If several `ranks` of a group share the rows, the sums are over all of them, and only the first of them adds to the gradients.
pub(super) fn norm_backward<E: Real>(
    ranks: &Ranks,
    layer: &BatchNorm,
    params: &[E],
    gradients: &mut [E],
    (raw, moments): (&mut [E], &Moments<E>),
    relu: batch_norm::Relu<E>,
    g: &mut [E],
) {
    let sums = backward_sums_with(raw, moments, g, relu, |own, add| ranks.join(own, add));
    if let Some([weight, bias]) = layer.affine.as_ref().filter(|_| ranks.is_first_of_group()) {
        add(&mut gradients[weight.clone()], &sums.g_normalised, Threads::One);
        add(&mut gradients[bias.clone()], &sums.g, Threads::One);
    }
    let weight = affine_of(layer, params).map(|(weight, _)| weight);
    backward_input(raw, moments, weight, &sums, g, relu);
}

/// The message of the panic when a backward pass lacks the batch's statistics.
const OF_A_BATCH: &str = "only what was normalised by the batch's statistics has a backward pass";

impl<E: Real> Convolutions for Host<E>
where
    Cpu: CpuTensors<E>,
{
    type Normed = Normed<E>;
    type Inner = Normed<E>;
    type Argmax = Vec<u8>;

    fn conv_norm(
        &self,
        layer: &ConvNorm,
        branch: &mut Branch<Self>,
        x: Source<Self>,
        size: Size,
    ) -> Result<Normed<E>, Infallible> {
        let ConvNorm { conv, kernel, norm } = layer;
        let (kernel, weight_bias) = (&branch.params[kernel.clone()], affine_of(norm, branch.params));
        let mut raw = self.pool.take(conv.output_size(size).pixels() * conv.output);
        Ok(match &mut branch.statistics {
            Statistics::Batch(statistics) => {
                let mut tiles = TileMoments::new();
                conv.forward(x.read(), size, kernel, E::zero(), &mut raw, Some(&mut tiles));
                let moments = tiles.combine_with(|own, add| self.ranks.join(own, add));
                update_running(norm, &moments, statistics);
                let affine = Affine::new(&moments.mean, &moments.inv_std, weight_bias);
                Normed { raw, affine, moments: Some(moments) }
            }
            Statistics::Running(statistics) => {
                conv.forward(x.read(), size, kernel, E::zero(), &mut raw, None);
                let [mean, var] = norm.running.clone().map(|range| &statistics[range]);
                Normed { raw, affine: Affine::eval(mean, var, weight_bias), moments: None }
            }
        })
    }

    fn inner(&self, x: Normed<E>, _: bool) -> Result<Normed<E>, Infallible> {
        Ok(x)
    }

    fn output(&self, x: &Normed<E>, residual: Residual<Self>) -> Result<Buffer<E>, Infallible> {
        let residual = match residual {
            Residual::None => batch_norm::Residual::None,
            Residual::Plain(x) => batch_norm::Residual::Plain(x),
            Residual::Normed(Normed { raw, affine, .. }) => batch_norm::Residual::Normalised(raw, affine),
        };
        let mut y = self.pool.take(x.raw.len());
        apply(&x.raw, &x.affine, residual, true, &mut y);
        Ok(y)
    }

    fn norm_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Normed<E>,
        output: Option<&Buffer<E>>,
        mut g: Buffer<E>,
    ) -> Result<Buffer<E>, Infallible> {
        let relu = output.map_or(batch_norm::Relu::None, |output| batch_norm::Relu::Output(output));
        let (mut raw, moments) = (x.raw, x.moments.expect(OF_A_BATCH));
        norm_backward(&self.ranks, layer, learned.params, learned.gradients, (&mut raw, &moments), relu, &mut g);
        Ok(raw)
    }

    fn output_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Normed<E>,
        output: Buffer<E>,
        mut g: Buffer<E>,
    ) -> Result<[Buffer<E>; 2], Infallible> {
        let (mut raw, moments) = (x.raw, x.moments.expect(OF_A_BATCH));
        let relu = batch_norm::Relu::Output(&output);
        norm_backward(&self.ranks, layer, learned.params, learned.gradients, (&mut raw, &moments), relu, &mut g);
        Ok([raw, g])
    }

    fn inner_backward(
        &self,
        layer: &BatchNorm,
        learned: &mut Learned<Self>,
        x: Normed<E>,
        mut g: Buffer<E>,
    ) -> Result<Buffer<E>, Infallible> {
        let (mut raw, moments) = (x.raw, x.moments.expect(OF_A_BATCH));
        let relu = batch_norm::Relu::Of(&x.affine);
        norm_backward(&self.ranks, layer, learned.params, learned.gradients, (&mut raw, &moments), relu, &mut g);
        Ok(raw)
    }

    fn conv_backward(
        &self,
        layer: &ConvNorm,
        learned: &mut Learned<Self>,
        x: Source<Self>,
        size: Size,
        g: &Buffer<E>,
        onto: Option<Buffer<E>>,
    ) -> Result<Buffer<E>, Infallible> {
        let ConvNorm { conv, kernel, .. } = layer;
        let (beta, mut gx) = match onto {
            Some(gx) => (E::one(), gx),
            None => (E::zero(), self.pool.take(size.pixels() * conv.input)),
        };
        conv.backward_weight(x.read(), size, g, &mut learned.gradients[kernel.clone()]);
        conv.backward_data(g, size, &learned.params[kernel.clone()], beta, &mut gx);
        Ok(gx)
    }

    fn conv_backward_weight(
        &self,
        layer: &ConvNorm,
        learned: &mut Learned<Self>,
        x: &Buffer<E>,
        size: Size,
        g: &Buffer<E>,
    ) -> Result<(), Infallible> {
        let gradient = &mut learned.gradients[layer.kernel.clone()];
        layer.conv.backward_weight(conv2d::Source::plain(x), size, g, gradient);
        Ok(())
    }

    fn max_pool(&self, x: &Buffer<E>, size: Size, channels: usize) -> Result<(Buffer<E>, Vec<u8>), Infallible> {
        let mut y = self.pool.take(pool::pooled(size).pixels() * channels);
        let mut argmax = vec![0; y.len()];
        pool::max_pool(x, size, channels, &mut y, &mut argmax);
        Ok((y, argmax))
    }

    fn max_pool_backward(
        &self,
        g: &Buffer<E>,
        argmax: &Vec<u8>,
        size: Size,
        channels: usize,
    ) -> Result<Buffer<E>, Infallible> {
        let mut gx = self.pool.take(size.pixels() * channels);
        pool::max_pool_backward(g, argmax, size, channels, &mut gx);
        Ok(gx)
    }

    fn average_pool(&self, x: &Buffer<E>, size: Size, channels: usize) -> Result<Buffer<E>, Infallible> {
        Ok(pool::average_pool(x, size, channels).into())
    }

    fn average_pool_backward(&self, g: &Buffer<E>, size: Size, channels: usize) -> Result<Buffer<E>, Infallible> {
        let mut gx = self.pool.take(size.pixels() * channels);
        pool::average_pool_backward(g, size, channels, &mut gx);
        Ok(gx)
    }
}

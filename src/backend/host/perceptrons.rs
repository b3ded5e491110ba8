//! Linear layers of projectors and predictors on the host. Sums over the batch follow the tree over its [`parts`].

use std::convert::Infallible;

use dfdx::prelude::*;

use super::{
    Host,
    convolutions::{affine_of, norm_backward, update_running},
};
use crate::{
    backend::{Branch, Learned, Passed, Perceptrons, Statistics, layers::Dense},
    ops::{
        Real,
        batch_norm::{Affine, Moments, Relu, Residual, apply, relu_backward},
        buffers::Buffer,
        linear,
        parts::parts,
        reductions::add_column_sums,
        tensor::CpuTensors,
    },
    ranks::Ranks,
};

/// A norm's input, and the batch's statistics; None for a layer without a norm.
type KeptNorm<E> = Option<(Buffer<E>, Moments<E>)>;

impl<E: Real> Perceptrons for Host<E>
where
    Cpu: CpuTensors<E>,
{
    type KeptDense = KeptNorm<E>;

    fn dense(
        &self,
        layer: &Dense,
        branch: &mut Branch<Self>,
        x: &Buffer<E>,
    ) -> Result<(Buffer<E>, KeptNorm<E>), Infallible> {
        let params = branch.params;
        let mut y = linear::forward(x, &params[layer.weight.clone()], (layer.output, layer.input));
        if let Some(bias) = &layer.bias {
            let bias = &params[bias.clone()];
            y.chunks_exact_mut(layer.output).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += *b));
        }
        let Some(norm) = &layer.norm else {
            if layer.relu {
                y.iter_mut().for_each(|y| *y = if *y > E::zero() { *y } else { E::zero() });
            }
            return Ok((y.into(), None));
        };
        let Statistics::Batch(statistics) = &mut branch.statistics else {
            unreachable!("heads are only trained");
        };
        let moments = Moments::of(&y, layer.output, parts(y.len() / layer.output));
        update_running(norm, &moments, statistics);
        let affine = Affine::new(&moments.mean, &moments.inv_std, affine_of(norm, params));
        let raw: Buffer<E> = y.into();
        let mut y = self.pool.take(raw.len());
        apply(&raw, &affine, Residual::None, layer.relu, &mut y);
        Ok((y, Some((raw, moments))))
    }

    fn dense_backward(
        &self,
        layer: &Dense,
        learned: &mut Learned<Self>,
        passed: Passed<Self>,
        mut g: Buffer<E>,
        onto: Option<Buffer<E>>,
    ) -> Result<Buffer<E>, Infallible> {
        let Passed { x, kept, output } = passed;
        let (params, gradients) = (learned.params, &mut *learned.gradients);
        match (&layer.norm, kept) {
            (Some(norm), Some((mut raw, moments))) => {
                let relu = output.map_or(Relu::None, |output| Relu::Output(output));
                // Every rank has all rows of the batch, so the norm exchanges nothing.
                norm_backward(&Ranks::default(), norm, params, gradients, (&mut raw, &moments), relu, &mut g);
                g = raw;
            }
            _ => {
                if let Some(output) = output {
                    relu_backward(output, &mut g);
                }
            }
        }
        if let Some(bias) = &layer.bias {
            add_column_sums(&g, parts(g.len() / layer.output), &mut gradients[bias.clone()]);
        }
        let shape = (layer.output, layer.input);
        let mut gx = match onto {
            Some(gx) => gx,
            None => {
                let mut gx = self.pool.take(x.len());
                gx.fill(E::zero());
                gx
            }
        };
        linear::backward_x(&params[layer.weight.clone()], shape, &mut gx, &g);
        linear::backward_w(x, shape, &mut gradients[layer.weight.clone()], &g);
        Ok(gx)
    }
}

//! Batch normalisation in training mode as a dfdx operation on [rows, channels].

use std::ops::Range;

use dfdx::prelude::*;

use super::{Affine, Moments, Relu, Residual, apply, backward_input, backward_sums};
use crate::ops::{
    Real,
    gemm::Threads,
    parts::{add, parts},
    seam::{Buffer, Matrix, to_vec},
};

/// Running statistics of a layer, which a forward pass in training mode moves.
pub struct Running<'a, E: Dtype, D: BatchNormKernel<E>> {
    /// All layers', where the device keeps them.
    pub all: &'a mut D::Running,
    /// This layer's elements.
    pub mean: Range<usize>,
    pub var: Range<usize>,
}

/// Learned weight and bias per channel.
pub type WeightBias<E, D> = (Tensor<(usize,), E, D>, Tensor<(usize,), E, D>);

/// The output, and what the backward pass needs of the batch's statistics.
pub type Normalised<E, D> = (Matrix<E, D>, <D as BatchNormKernel<E>>::Moments);

/// The device's part of [`batch_norm`].
pub trait BatchNormKernel<E: Dtype>: Device<E> {
    /// A flat buffer of running statistics, and a batch's statistics, where the device keeps them.
    type Running;
    type Moments: 'static;

    /// The normalised batch; running statistics move.
    fn batch_norm_forward(
        &self,
        x: &Matrix<E, Self>,
        weight_bias: Option<&WeightBias<E, Self>>,
        running: Running<E, Self>,
    ) -> Result<Normalised<E, Self>, Self::Err>;

    /// Adds to the gradients of x and, where there are any, of weight and bias.
    fn batch_norm_backward(
        &self,
        x: &Matrix<E, Self>,
        moments: &Self::Moments,
        weight_bias: Option<&WeightBias<E, Self>>,
        gy: &Buffer<E, Self>,
        gradients: &mut Gradients<E, Self>,
    ) -> Result<(), Self::Err>;
}

/// y = batch norm of x in training mode. Gradients flow to x and to `weight_bias` (which must be on no tape of its own).
///
/// # Errors
/// The device's, when memory runs out.
pub fn batch_norm<E: Dtype, D: BatchNormKernel<E>, T: Tape<E, D>>(
    x: Matrix<E, D, T>,
    weight_bias: Option<WeightBias<E, D>>,
    running: Running<E, D>,
) -> Result<Matrix<E, D, T>, D::Err> {
    let (x, mut tape) = x.split_tape();
    let (y, moments) = x.device().batch_norm_forward(&x, weight_bias.as_ref(), running)?;
    let y_ghost = y.ghost();
    tape.add_backward_op(move |gradients| {
        let gy = gradients.get_or_alloc_mut(&y_ghost)?.clone();
        x.device().clone().batch_norm_backward(&x, &moments, weight_bias.as_ref(), &gy, gradients)
    });
    Ok(y.put_tape(tape))
}

impl<E: Real> BatchNormKernel<E> for Cpu
where
    Cpu: Device<E, Err = CpuError>,
    Buffer<E, Cpu>: std::ops::DerefMut<Target = Vec<E>>,
{
    type Running = Vec<E>;
    type Moments = Moments<E>;

    fn batch_norm_forward(
        &self,
        x: &Matrix<E, Self>,
        weight_bias: Option<&WeightBias<E, Self>>,
        running: Running<E, Self>,
    ) -> Result<Normalised<E, Self>, CpuError> {
        let values = to_vec(x);
        let moments = Moments::of(&values, x.shape().1, parts(x.shape().0));
        let [mean, var] = running.all.get_disjoint_mut([running.mean, running.var]).expect("they do not overlap");
        moments.update_running(mean, var);
        let weight_bias = weight_bias.map(|(w, b)| (to_vec(w), to_vec(b)));
        let affine = Affine::new(
            &moments.mean,
            &moments.inv_std,
            weight_bias.as_ref().map(|(w, b)| (w.as_slice(), b.as_slice())),
        );
        let mut y = vec![E::zero(); values.len()];
        apply(&values, &affine, Residual::None, false, &mut y);
        Ok((self.try_tensor_from_vec(y, *x.shape())?, moments))
    }

    fn batch_norm_backward(
        &self,
        x: &Matrix<E, Self>,
        moments: &Moments<E>,
        weight_bias: Option<&WeightBias<E, Self>>,
        gy: &Buffer<E, Self>,
        gradients: &mut Gradients<E, Self>,
    ) -> Result<(), CpuError> {
        let mut values = to_vec(x);
        let mut g = gy.to_vec();
        let sums = backward_sums(&values, moments, &mut g, Relu::None);
        let weight = weight_bias.map(|(w, _)| to_vec(w));
        backward_input(&mut values, moments, weight.as_deref(), &sums, &g, Relu::None);
        add(gradients.get_or_alloc_mut(x)?, &values, Threads::One);
        if let Some((weight, bias)) = weight_bias {
            add(gradients.get_or_alloc_mut(weight)?, &sums.g_normalised, Threads::One);
            add(gradients.get_or_alloc_mut(bias)?, &sums.g, Threads::One);
        }
        Ok(())
    }
}

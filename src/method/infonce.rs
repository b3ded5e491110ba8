//! InfoNCE: each view's prediction must pick the other view of its image out of the batch.
//!
//! With a momentum branch, this is the loss of MoCo-v3 (Chen et al., ICCV 2021). Without one, and with every other projection
//! as a candidate, it is the loss of SimCLR (Chen et al., ICML 2020).
//!
//! Notation: z = q(y) is the online prediction (in SimCLR the projection), k the momentum projection, N the batch size.

use anyhow::Context;
use dfdx::prelude::*;

use super::{
    InfonceConfig, Loss, Positives, SimclrConfig, StepInput, StepOutput, TensorError, device_error,
    views::each_view_predicted,
};
use crate::{
    backend::{Backend, RowsOf},
    ops::{
        Number, Real,
        contrast::Pairs,
        pending::Pending,
        tensor::{Rows, TensorDevice, Traced, TracedScalar, normalize},
    },
};

/// One training step of InfoNCE. The loss is symmetrised: each full view predicts the other. Small crops predict both.
///
/// # Errors
/// When the device fails.
pub fn step<B: Backend>(on: &B, config: &InfonceConfig, input: &StepInput<B>) -> anyhow::Result<StepOutput<B>> {
    let momentum = input.momentum.as_ref().context("InfoNCE needs a momentum branch")?;
    let unit = |k: &RowsOf<B>| normalize(k.clone()).map_err(device_error);
    let targets = [unit(&momentum[0])?, unit(&momentum[1])?];
    let loss = each_view_predicted(input.z.len(), |source, target| {
        direction(on, config, input.z[source].clone(), targets[target].clone())
    });
    let positives = Pending::now(Positives::own_view(input.samples.len()));
    Ok(StepOutput { loss: loss.map_err(device_error)?, positives })
}

/// The loss of one direction, times `loss_scale`:
///
/// L = -(1/N) sum_n log( exp(z_n . k_n / tau) / sum_m exp(z_n . k_m / tau) ).
///
/// `z` [N, D] is normalised here; `k` [N, D] has unit length.
fn direction<B: Backend>(
    on: &B,
    config: &InfonceConfig,
    z: RowsOf<B>,
    k: RowsOf<B>,
) -> Result<Loss<B>, TensorError<B>> {
    let (all, own) = on.contrast(normalize(z.traced())?, k, Pairs::grouped(1), config.tau)?;
    let n = all.shape().0;
    let own = own.try_reshape_like(&(n,))?;
    B::Tensors::batch_mean(all.try_sub(own)?)?.try_mul(B::Real::of(config.loss_scale))
}

/// One training step of SimCLR.
///
/// # Errors
/// When the device fails.
pub fn simclr_step<B: Backend>(config: &SimclrConfig, input: &StepInput<B>) -> anyhow::Result<StepOutput<B>> {
    let loss = simclr_loss(config, input.z[0].clone(), input.z[1].clone()).map_err(device_error)?;
    Ok(StepOutput { loss, positives: Pending::now(Positives::own_view(input.samples.len())) })
}

/// L = -(1/2N) sum_i log( exp(z_i . z_j / tau) / sum_(m != i) exp(z_i . z_m / tau) ) over all 2N projections at unit length; j is
/// the other view of the image of i.
fn simclr_loss<E: Real, D: TensorDevice<E>>(
    config: &SimclrConfig,
    z1: Rows<E, D>,
    z2: Rows<E, D>,
) -> Result<TracedScalar<E, D>, D::Err> {
    let (n, dim) = z1.shape();
    let rows = 2 * n;
    let both = (z1.traced().into_tensor(), z2.traced().into_tensor()).try_concat_along(Axis::<0>)?;
    let (both, tape) = both.try_reshape_like(&(rows, dim))?.split_tape();
    let (both, tape) = normalize(Rows::of(both)?.put_tape(tape))?.split_tape();
    let (all, own) = D::contrast(both.clone().put_tape(tape), both.traced(), Pairs::of_views(n), config.tau)?;
    let own = own.try_reshape_like(&(rows,))?;
    // Adds the two views of each image first, so that each part of the batch consists of whole images.
    let both: Traced<E, D> = all.try_sub(own)?.try_reshape_like(&(2, n))?;
    D::batch_mean(both.try_sum::<(usize,), Axis<0>>()?)?.try_div(E::of(2.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::Host,
        ops::golden::{Golden, assert_close},
    };

    fn rows(golden: &Golden, name: &str) -> Rows<f64, Cpu> {
        Rows::of(Cpu::default().tensor_from_vec(golden.get(name), (6, 8))).unwrap()
    }

    #[test]
    fn infonce_agrees_with_the_reference() {
        for (case, tau) in [("loss_infonce_tau01", 0.1), ("loss_infonce_tau02", 0.2)] {
            let golden = Golden::load(case);
            let config = InfonceConfig { tau, loss_scale: 1.0, momentum: 0.99 };
            let z = rows(&golden, "in.z1");
            let k = normalize(rows(&golden, "in.y2")).unwrap();
            let loss = direction(&Host::default(), &config, z.clone(), k).unwrap();
            assert!((loss.array() - golden.scalar("out.loss")).abs() < 1e-12);
            assert_close("grad.z1", &loss.backward().get(z.tensor()).as_vec(), &golden.get("grad.z1"), 1e-12);
        }
    }

    #[test]
    fn simclr_agrees_with_the_reference() {
        let golden = Golden::load("loss_simclr");
        let z = ["in.z1", "in.z2"].map(|name| rows(&golden, name));
        let loss = simclr_loss(&SimclrConfig { tau: 0.2 }, z[0].clone(), z[1].clone()).unwrap();
        assert!((loss.array() - golden.scalar("out.loss")).abs() < 1e-12);
        let gradients = loss.backward();
        for (z, name) in z.iter().zip(["grad.z1", "grad.z2"]) {
            assert_close(name, &gradients.get(z.tensor()).as_vec(), &golden.get(name), 1e-12);
        }
    }

    #[test]
    fn a_small_crop_predicts_both_full_views_and_counts_as_much_as_they_do() {
        let config = InfonceConfig { tau: 0.2, loss_scale: 1.0, momentum: 0.99 };
        let golden = Golden::load("loss_simclr");
        let [z1, z2] = ["in.z1", "in.z2"].map(|name| rows(&golden, name));
        let small = Golden::load("loss_infonce_tau01");
        let (z3, momentum) = (rows(&small, "in.z1"), [rows(&small, "in.y2"), rows(&golden, "in.z1")]);
        let loss = |z: &[&Rows<f64, Cpu>]| {
            let input = StepInput::<Host<f64>> {
                step: 0,
                epoch: 0.0,
                y: Vec::new(),
                z: z.iter().map(|z| (*z).clone()).collect(),
                momentum: Some(momentum.clone()),
                samples: &[0; 6],
                labels: &[-1; 6],
                diagnose: false,
            };
            step(&Host::default(), &config, &input).unwrap().loss.array()
        };
        // With the small crop in place of both views, the loss has its predictions of view 1 and of view 2.
        let expected = (loss(&[&z1, &z2]) + loss(&[&z3, &z3])) / 2.0;
        assert!((loss(&[&z1, &z2, &z3]) - expected).abs() < 1e-12);
    }
}

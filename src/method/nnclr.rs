//! NNCLR: With a Little Help from My Friends, Nearest-Neighbor Contrastive Learning (Dwibedi et al., ICCV 2021).
//!
//! Notation of the paper: z_i is the projection of a view, nn_i = NN(z_i, Q) its nearest row in the queue Q, and p_i = q(z) the
//! prediction of the other view. N is the batch size, D the width. No gradient flows to nn.

use anyhow::Context;
use dfdx::prelude::*;

use super::{
    Anchor, LookUp, Loss, NnclrConfig, Positives, Rows, StepInput, StepOutput, TensorError, device_error,
    queue::{Origin, Queue},
    views::each_view_predicted,
};
use crate::{
    backend::Backend,
    ops::{
        Number,
        contrast::Pairs,
        pending::Pending,
        tensor::{TensorDevice, normalize},
    },
};

/// The method's settings and its queue Q.
pub struct Nnclr<B: Backend> {
    pub config: NnclrConfig,
    pub queue: Queue<B>,
}

impl<B: Backend> Nnclr<B> {
    /// One training step. It looks up the neighbours of both views, enqueues one view, and computes the symmetrised loss. Small
    /// crops predict the neighbours of both full views.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step(&mut self, on: &B, input: &StepInput<B>) -> anyhow::Result<StepOutput<B>> {
        let (queries, enqueued) = match self.config.look_up {
            LookUp::Online => ([input.y[0].clone(), input.y[1].clone()], 0),
            LookUp::Momentum => (input.momentum.clone().context("the look-up needs a momentum branch")?, 1),
        };
        let exclude = self.config.exclude_self.then_some(input.samples);
        let nearest =
            |queries: &Rows<B>| self.queue.search(on, &normalize(queries.clone()).map_err(device_error)?, 1, exclude);
        let near = [nearest(&queries[0])?, nearest(&queries[1])?];
        let origin = Origin { samples: input.samples, labels: input.labels, step: input.step };
        self.queue.enqueue(on, &queries[enqueued], origin, self.config.queue_overflow)?;

        let loss = each_view_predicted(input.z.len(), |source, target| {
            self.direction(on, near[target].vectors.clone(), input.z[source].clone())
        });
        let (n, step) = (input.samples.len(), input.step);
        let [near1, near2] = near.map(|near| near.origins);
        let positives = Pending::new(move || {
            Ok(Positives::from_queue(
                B::Real::of(0.0),
                vec![B::Real::of(1.0); 2 * n],
                [near2.wait()?, near1.wait()?],
                step,
            ))
        });
        Ok(StepOutput { loss: loss.map_err(device_error)?, positives })
    }

    /// The loss of one direction, times `loss_scale`:
    ///
    /// L = -(1/N) sum_i log( exp(nn_i . p_i / tau) / sum_j exp(nn_i . p_j / tau) ).
    ///
    /// With [`Anchor::Prediction`], the denominator is sum_j exp(p_i . nn_j / tau) instead.
    ///
    /// `p` [N, D] is normalised here; `nn` [N, D] has unit length.
    fn direction(&self, on: &B, nn: Rows<B>, p: Rows<B>) -> Result<Loss<B>, TensorError<B>> {
        let p = normalize(p.traced())?;
        let own = Pairs::grouped(1);
        let (all, own) = match self.config.anchor {
            Anchor::Neighbour => B::Tensors::contrast(nn.traced(), p, own, self.config.tau)?,
            Anchor::Prediction => on.contrast(p, nn, own, self.config.tau)?,
        };
        let n = all.shape().0;
        let own = own.try_reshape_like(&(n,))?;
        B::Tensors::batch_mean(all.try_sub(own)?)?.try_mul(B::Real::of(self.config.loss_scale))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::Host,
        method::Overflow,
        ops::{
            golden::{Golden, assert_close},
            matmul::MatmulPrecision,
            normalize::normalize_rows,
            tensor::Rows as Of,
        },
    };

    fn rows(values: Vec<f64>, n: usize) -> Of<f64, Cpu> {
        Of::of(Cpu::default().tensor_from_vec(values, (n, 8))).unwrap()
    }

    fn method(anchor: Anchor, look_up: LookUp, bank: &[f64]) -> Nnclr<Host<f64>> {
        let config = NnclrConfig {
            queue_length: 32,
            tau: 0.1,
            anchor,
            look_up,
            queue_overflow: Overflow::Wrap,
            exclude_self: false,
            loss_scale: 1.0,
            momentum: 0.99,
        };
        let on = Host::default();
        let Ok(queue) = Queue::new(&on, "queue", [32, 8], 0, MatmulPrecision::Full);
        let mut method = Nnclr { config, queue };
        let origin = Origin { samples: &[-1; 32], labels: &[-1; 32], step: 0 };
        let bank = rows(bank.to_vec(), 32);
        method.queue.enqueue(&on, &bank, origin, Overflow::Wrap).unwrap();
        method
    }

    #[test]
    fn both_layouts_of_the_loss_agree_with_the_reference() {
        for (case, anchor) in [("loss_nnclr_anchor_nn", Anchor::Neighbour), ("loss_nnclr_anchor_z", Anchor::Prediction)]
        {
            let golden = Golden::load(case);
            let method = method(anchor, LookUp::Momentum, &golden.get("in.queue"));
            let y2 = rows(golden.get("in.y2"), 6);
            let near = method.queue.search(&Host::default(), &normalize(y2).unwrap(), 1, None).unwrap();
            let mut expected = golden.get::<f64>("out.nn");
            normalize_rows(&mut expected, 8);
            assert_close("nn", &near.vectors.tensor().as_vec(), &expected, 1e-12);
            let z = rows(golden.get("in.z1"), 6);
            let loss = method.direction(&Host::default(), near.vectors, z.clone()).unwrap();
            assert!((loss.array() - golden.scalar("out.loss")).abs() < 1e-12);
            assert_close("grad.z1", &loss.backward().get(z.tensor()).as_vec(), &golden.get("grad.z1"), 1e-12);
        }
    }

    #[test]
    fn the_online_branch_looks_up_before_view_1_enters_the_queue() {
        let golden = Golden::load("loss_nnclr_anchor_nn");
        let mut method = method(Anchor::Neighbour, LookUp::Online, &golden.get("in.queue"));
        let before = self::method(Anchor::Neighbour, LookUp::Online, &golden.get("in.queue")).queue;
        let matrix = |name: &str| rows(golden.get(name), 6);
        let y = vec![matrix("in.y2"), matrix("in.z1")];
        let input = StepInput {
            step: 3,
            epoch: 0.0,
            z: vec![matrix("in.z1"), matrix("in.y2")],
            y,
            momentum: None,
            samples: &[0, 1, 2, 3, 4, 5],
            labels: &[9; 6],
            diagnose: true,
        };
        let output = method.step(&Host::default(), &input).unwrap();
        let queries = |i: usize| {
            let queries = normalize(input.y[i].clone()).unwrap();
            before.search(&Host::default(), &queries, 1, None).unwrap().vectors
        };
        let directions = [(queries(1), 0), (queries(0), 1)];
        let expected: f64 = directions
            .iter()
            .map(|(nn, z)| method.direction(&Host::default(), nn.clone(), input.z[*z].clone()).unwrap().array())
            .sum();
        assert!((output.loss.array() - expected).abs() < 1e-12);
        let mut view1 = input.y[0].tensor().as_vec();
        normalize_rows(&mut view1, 8);
        assert_eq!(method.queue.all(&Host::default()).unwrap().tensor().as_vec()[..6 * 8], view1);
        let positives = output.positives.wait().unwrap();
        assert_eq!((positives.own[0], positives.k), (0.0, 1));
    }
}

//! One training step, top to bottom, and the state that it moves.

use std::sync::Arc;

use dfdx::prelude::*;

use super::{
    Branch, Model, PretrainConfig,
    ema::ema,
    health::Health,
    neighbours::Neighbour,
    optimizer::Optimizer,
    positiveness::Positiveness,
    recorder::{Projections, Recorder},
    schedule::{Due, Timetable},
};
use crate::{
    encoder::Saved,
    method::{StepInput, StepOutput},
    ops::{
        Real,
        backend::Backend,
        buffers::Buffers,
        conv2d::Size,
        leaves::Leaves,
        named::{NamedTensor, Values},
        seam::Matrix,
        weight::{FlatWeight, Totals},
    },
};

/// Why a queue's state can be read and written.
const HOST: &str = "on the CPU queues lie on the host";

/// The crops of a batch.
#[derive(Clone, Debug)]
pub struct Batch<E> {
    /// Index of each sample in the data set.
    pub samples: Vec<i64>,
    /// Label of each sample, -1 where there is none.
    pub labels: Vec<i64>,
    /// Both full views, then the small crops.
    pub crops: Vec<Crop<E>>,
}

/// One crop of every image of a batch.
#[derive(Clone, Debug)]
pub struct Crop<E> {
    /// Normalised images [n, size, size, 3].
    pub images: Vec<E>,
    /// Height and width in pixels.
    pub size: usize,
}

/// What a step leaves behind for the metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRow {
    pub step: u64,
    /// Epochs before the step, with fraction.
    pub epoch: f64,
    pub loss: f64,
    pub learning_rate: f64,
    /// EMA momentum; NaN without a momentum branch.
    pub momentum: f64,
    /// Every `health.every` steps.
    pub diagnosis: Option<(Health, Positiveness)>,
    /// Top-1 of a kNN classifier after the step, where somebody measured it.
    pub knn_top1: Option<f64>,
    /// Those of the watched images in the batch.
    pub neighbours: Vec<Neighbour>,
}

/// A model in training.
pub struct Trainer<E: Real> {
    device: Cpu,
    model: Model<E>,
    online: Branch<E>,
    /// The momentum branch, where the method has one.
    momentum: Option<Branch<E>>,
    gradients: Totals<E>,
    optimizer: Optimizer<E>,
    memory: Buffers<E>,
    recorder: Recorder,
    timetable: Timetable,
    /// Steps taken.
    step: u64,
}

/// What the online branch makes of a crop.
struct Online<E: Real> {
    /// Features f(x), and what their backward pass needs.
    h: Matrix<E, Cpu>,
    saved: Saved<E>,
    /// Projections g(h) and predictions q(y); the tape leads from z to h.
    y: Matrix<E, Cpu>,
    z: Matrix<E, Cpu>,
    tape: OwnedTape<E, Cpu>,
}

impl<E: Real> Trainer<E>
where
    Cpu: Backend<E, Err = CpuError, Running = Vec<E>, Weight = FlatWeight<E>>,
{
    /// A fresh trainer. An epoch has `steps_per_epoch` steps over `images` images.
    ///
    /// # Errors
    /// When the encoder's configuration names no network.
    pub fn new(config: &PretrainConfig, steps_per_epoch: u64, images: usize) -> anyhow::Result<Self> {
        let model = Model::new(config)?;
        let online = model.init(config.seed);
        Ok(Self {
            device: Cpu::default(),
            momentum: config.method.momentum().map(|_| model.momentum_branch(&online)),
            gradients: Totals::zeros(online.params.len()),
            optimizer: Optimizer::new(config.optimizer, online.params.len()),
            memory: Buffers::default(),
            recorder: Recorder::new(images, config.seed),
            timetable: Timetable::new(config, steps_per_epoch),
            step: 0,
            model,
            online,
        })
    }

    /// Puts other values in the encoder's place, in both branches: those that training starts from.
    pub fn start_encoder_from(&mut self, [params, buffers]: [&[E]; 2]) {
        for branch in [&mut self.online].into_iter().chain(&mut self.momentum) {
            Arc::make_mut(&mut branch.params)[..params.len()].copy_from_slice(params);
            branch.buffers[..buffers.len()].copy_from_slice(buffers);
        }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The model's structure.
    pub fn model(&self) -> &Model<E> {
        &self.model
    }

    /// The online branch's values.
    pub fn online(&self) -> &Branch<E> {
        &self.online
    }

    /// The momentum branch's values, where there is one.
    pub fn momentum(&self) -> Option<&Branch<E>> {
        self.momentum.as_ref()
    }

    /// Whether the optimiser has taken every gradient: only then is [`Trainer::state`] complete.
    pub fn between_updates(&self) -> bool {
        self.timetable.is_between_updates(self.step)
    }

    /// What is due in the next step.
    pub(super) fn due(&self) -> Due {
        self.timetable.at(self.step)
    }

    /// Trains on one batch as the timetable says.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or memory runs out.
    pub fn step(&mut self, batch: &Batch<E>) -> anyhow::Result<StepRow> {
        let due = self.due();
        // On one of rayon's own threads: from outside, every parallel loop would have to wake one and wait for it.
        rayon::scope(|_| self.step_at(batch, due))
    }

    pub(super) fn step_at(&mut self, batch: &Batch<E>, due: Due) -> anyhow::Result<StepRow> {
        let Self { device, model, online, memory, .. } = self;
        let (n, dim) = (batch.samples.len(), model.encoder.feature_dim());
        let (encoder_params, encoder_buffers) = model.encoder_len();
        let size = |crop: &Crop<E>| Size { n, h: crop.size, w: crop.size };
        if due.begins {
            let params = Arc::make_mut(&mut online.params);
            model.method.before_step(&model.params, params);
            self.gradients.lock().fill(E::zero());
        }

        // Online branch: features h = f(x), projections y = g(h), predictions z = q(y), each crop with its own statistics.
        let leaves = Leaves::new(device, &model.params, &online.params, &self.gradients, model.head_entries())?;
        let mut crops = Vec::with_capacity(batch.crops.len());
        for crop in &batch.crops {
            let (params, buffers) = (&online.params[..encoder_params], &mut online.buffers[..encoder_buffers]);
            let (h, saved) = model.encoder.forward_train(params, buffers, &crop.images, size(crop), memory);
            let h: Matrix<E, Cpu> = device.try_tensor_from_vec(h, (n, dim))?;
            let y = model.projector.forward(h.leaky_trace(), &leaves, &model.buffers, &mut online.buffers)?;
            let (y, tape) = y.split_tape();
            let z = y.clone().put_tape(tape);
            let (z, tape) = match &model.predictor {
                Some(predictor) => predictor.forward(z, &leaves, &model.buffers, &mut online.buffers)?,
                None => z,
            }
            .split_tape();
            crops.push(Online { h, saved, y, z, tape });
        }

        // Momentum branch: moved towards the online one first, then k = g'(f'(x)) of both full views.
        let mut keys = None;
        if let Some(target) = &mut self.momentum {
            let shared = target.params.len();
            if due.begins {
                let params = Arc::make_mut(&mut target.params);
                ema(params, &online.params[..shared], due.momentum);
            }
            let (nothing, entries) = (Totals::default(), model.momentum_head_entries());
            let leaves = Leaves::new(device, &model.params, &target.params, &nothing, entries)?;
            let mut project = |crop: &Crop<E>| {
                let (params, buffers) = (&target.params[..encoder_params], &mut target.buffers[..encoder_buffers]);
                let h = model.encoder.forward_momentum(params, buffers, &crop.images, size(crop), memory);
                let h: Matrix<E, Cpu> = device.try_tensor_from_vec(h, (n, dim))?;
                let k = model.projector.forward(h, &leaves, &model.buffers, &mut target.buffers)?;
                Ok::<_, CpuError>(k)
            };
            keys = Some([project(&batch.crops[0])?, project(&batch.crops[1])?]);
        }

        // Loss and its gradient with respect to features and head parameters.
        let input = StepInput {
            step: due.step,
            epoch: due.epoch,
            y: crops.iter().map(|crop| crop.y.clone()).collect(),
            z: crops.iter().map(|crop| crop.z.clone()).collect(),
            momentum: keys,
            samples: &batch.samples,
            labels: &batch.labels,
            diagnose: due.diagnosis,
        };
        let StepOutput { loss, positives } = model.method.step(&input, &leaves)?;
        let (positives, loss_value) = (positives.wait()?, loss.array().as_f64());
        let (loss, mut tape) = loss.split_tape();
        for crop in &mut crops {
            tape = tape.merge(std::mem::take(&mut crop.tape));
        }
        let mut gradients = loss.put_tape(tape).try_backward()?;

        // Encoder backward, then the optimiser.
        leaves.add_gradients(&model.params, &mut gradients, &self.gradients)?;
        drop(leaves); // or the optimiser would have to move a copy of the parameters
        let mut totals = self.gradients.lock();
        for (crop, images) in crops.into_iter().zip(&batch.crops).rev() {
            let g_features = gradients.get(&crop.h).as_vec();
            let (params, totals) = (&online.params[..encoder_params], &mut totals[..encoder_params]);
            model.encoder.backward(params, &images.images, crop.saved, &g_features, totals, memory);
        }
        self.step += 1;
        if due.ends {
            let accumulation = self.timetable.accumulation();
            if accumulation > 1 {
                let share = E::of(1.0 / accumulation as f64);
                totals.iter_mut().for_each(|g| *g *= share);
            }
            let trains = |entry| model.trains(entry, due.epoch);
            let params = Arc::make_mut(&mut online.params);
            self.optimizer.step(&model.params, params, &totals, due.learning_rate, trains);
        }

        let projections = due
            .diagnosis
            .then(|| Projections { y: [input.y[0].as_vec(), input.y[1].as_vec()], dim: input.y[0].shape().1 });
        Ok(self.recorder.row(due, loss_value, &positives, [&batch.samples, &batch.labels], projections))
    }

    /// Everything that training depends on from here on, [between updates](Trainer::between_updates).
    pub fn state(&self) -> Vec<NamedTensor<E>> {
        let flat = |name: &str, values: &[E]| NamedTensor::real(name, &[values.len()], values.to_vec());
        let mut state = vec![
            NamedTensor::integer("step", &[1], vec![self.step as i64]),
            flat("online.params", &self.online.params),
            flat("online.buffers", &self.online.buffers),
        ];
        if let Some(momentum) = &self.momentum {
            state.push(flat("momentum.params", &momentum.params));
            state.push(flat("momentum.buffers", &momentum.buffers));
        }
        state.extend(self.optimizer.state());
        state.extend(self.model.method.state().expect(HOST));
        state.extend(self.recorder.state());
        state
    }

    /// Goes on from what [`Trainer::state`] gave.
    pub fn restore(&mut self, state: &[NamedTensor<E>]) {
        for tensor in state {
            match (tensor.name.as_str(), &tensor.values) {
                ("step", Values::Integer(step)) => self.step = step[0] as u64,
                ("online.params", Values::Real(values)) => self.online.params = Arc::new(values.clone()),
                ("online.buffers", Values::Real(values)) => self.online.buffers.clone_from(values),
                _ => {}
            }
        }
        if let Some(momentum) = &mut self.momentum {
            for tensor in state {
                match (tensor.name.as_str(), &tensor.values) {
                    ("momentum.params", Values::Real(values)) => momentum.params = Arc::new(values.clone()),
                    ("momentum.buffers", Values::Real(values)) => momentum.buffers.clone_from(values),
                    _ => {}
                }
            }
        }
        self.optimizer.restore(state);
        self.model.method.restore(state).expect(HOST);
        self.recorder.restore(state);
    }
}

//! One training step, top to bottom, and the state that it moves.

use dfdx::prelude::*;

use super::{
    Branch, Model, PretrainConfig,
    ema::ema,
    health::Health,
    optimizer::Optimizer,
    schedule::{LrSchedule, learning_rates, momentum_at},
};
use crate::{
    method::{StepInput, StepOutput},
    ops::{
        Real,
        backend::Backend,
        buffers::Buffers,
        conv2d::Size,
        leaves::Leaves,
        named::{NamedTensor, Values},
        normalize::normalize_rows,
        seam::Matrix,
    },
};

/// Both views of a batch.
#[derive(Clone, Debug)]
pub struct Batch<E> {
    /// Index of each sample in the data set.
    pub samples: Vec<i64>,
    /// Label of each sample, -1 where there is none.
    pub labels: Vec<i64>,
    /// Normalised images [n, size, size, 3] of each view.
    pub views: [Vec<E>; 2],
    /// Height and width in pixels.
    pub size: usize,
}

/// What a step leaves behind for the metrics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRow {
    pub step: u64,
    /// Epochs before the step, with fraction.
    pub epoch: f64,
    pub loss: f64,
    pub learning_rate: f64,
    /// EMA momentum.
    pub momentum: f64,
    /// Every `health.every` steps.
    pub health: Option<Health>,
}

/// A model in training.
pub struct Trainer<E: Real> {
    device: Cpu,
    model: Model<E>,
    online: Branch<E>,
    momentum: Branch<E>,
    gradients: Vec<E>,
    optimizer: Optimizer<E>,
    memory: Buffers<E>,
    lr: LrSchedule,
    momentum_start: f64,
    health_every: u64,
    steps_per_epoch: u64,
    /// Steps taken.
    step: u64,
}

impl<E: Real> Trainer<E>
where
    Cpu: Backend<E, Err = CpuError>,
{
    /// A fresh trainer. An epoch has `steps_per_epoch` steps.
    ///
    /// # Errors
    /// When the encoder's configuration names no network.
    pub fn new(config: &PretrainConfig, steps_per_epoch: u64) -> anyhow::Result<Self> {
        let model = Model::new(config)?;
        let online = model.init(config.seed);
        Ok(Self::with(config, steps_per_epoch, model, online))
    }

    fn with(config: &PretrainConfig, steps_per_epoch: u64, model: Model<E>, online: Branch<E>) -> Self {
        let (_, peak) = learning_rates(config.optimizer, config.batch_size);
        Self {
            device: Cpu::default(),
            momentum: model.momentum_branch(&online),
            gradients: vec![E::zero(); online.params.len()],
            optimizer: Optimizer::new(config.optimizer, online.params.len()),
            memory: Buffers::default(),
            lr: LrSchedule { peak, warmup_epochs: config.schedule.warmup_epochs, epochs: config.epochs as f64 },
            momentum_start: config.method.momentum(),
            health_every: config.health.every as u64,
            steps_per_epoch,
            step: 0,
            model,
            online,
        }
    }

    /// Puts other values in the encoder's place, in both branches: those that training starts from.
    pub fn start_encoder_from(&mut self, [params, buffers]: [&[E]; 2]) {
        for branch in [&mut self.online, &mut self.momentum] {
            branch.params[..params.len()].copy_from_slice(params);
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

    /// The momentum branch's values.
    pub fn momentum(&self) -> &Branch<E> {
        &self.momentum
    }

    /// Trains on one batch at the schedules' learning rate and momentum.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or memory runs out.
    pub fn step(&mut self, batch: &Batch<E>) -> anyhow::Result<StepRow> {
        let epoch = self.step as f64 / self.steps_per_epoch as f64;
        let momentum = momentum_at(epoch, self.momentum_start, self.lr.epochs);
        let with_health = self.step.is_multiple_of(self.health_every);
        self.step_at(batch, epoch, self.lr.at(epoch), momentum, with_health)
    }

    pub(super) fn step_at(
        &mut self,
        batch: &Batch<E>,
        epoch: f64,
        learning_rate: f64,
        momentum: f64,
        with_health: bool,
    ) -> anyhow::Result<StepRow> {
        let Self { device, model, online, memory, .. } = self;
        let (n, dim) = (batch.samples.len(), model.encoder.feature_dim());
        let size = Size { n, h: batch.size, w: batch.size };
        let (encoder_params, encoder_buffers) = model.encoder_len();
        let [x1, x2] = &batch.views;

        // Online branch: features h = f(x), projections y = g(h), predictions z = q(y), each view with its own statistics.
        let leaves = Leaves::new(device, &model.params, &online.params, model.head_entries())?;
        let mut forward = |x: &[E]| {
            let (params, buffers) = (&online.params[..encoder_params], &mut online.buffers[..encoder_buffers]);
            model.encoder.forward_train(params, buffers, x, size, memory)
        };
        let ((h1, saved1), (h2, saved2)) = (forward(x1), forward(x2));
        let h1: Matrix<E, Cpu> = device.try_tensor_from_vec(h1, (n, dim))?;
        let h2: Matrix<E, Cpu> = device.try_tensor_from_vec(h2, (n, dim))?;
        let mut project = |h: &Matrix<E, Cpu>| {
            let y = model.projector.forward(h.leaky_trace(), &leaves, &model.buffers, &mut online.buffers)?;
            Ok::<_, CpuError>(y.split_tape())
        };
        let ((y1, tape1), (y2, tape2)) = (project(&h1)?, project(&h2)?);
        let mut predict = |y: &Matrix<E, Cpu>, tape| {
            model.predictor.forward(y.clone().put_tape(tape), &leaves, &model.buffers, &mut online.buffers)
        };
        let (z1, z2) = (predict(&y1, tape1)?, predict(&y2, tape2)?);

        // Momentum branch: moved towards the online one first, then k = g'(f'(x)).
        let target = &mut self.momentum;
        let shared = target.params.len();
        ema(&mut target.params, &online.params[..shared], momentum);
        let target_leaves = Leaves::new(device, &model.params, &target.params, model.momentum_head_entries())?;
        let mut momentum_projection = |x: &[E]| {
            let (params, buffers) = (&target.params[..encoder_params], &mut target.buffers[..encoder_buffers]);
            let h = model.encoder.forward_momentum(params, buffers, x, size, memory);
            let h: Matrix<E, Cpu> = device.try_tensor_from_vec(h, (n, dim))?;
            let k = model.projector.forward(h, &target_leaves, &model.buffers, &mut target.buffers)?;
            Ok::<_, CpuError>(k.as_vec())
        };
        let (k1, k2) = (momentum_projection(x1)?, momentum_projection(x2)?);

        // Loss and its gradient with respect to features and head parameters.
        let input = StepInput {
            y: [y1.clone(), y2.clone()],
            z: [z1, z2],
            momentum: [k1, k2],
            samples: &batch.samples,
            labels: &batch.labels,
        };
        let StepOutput { loss, positives } = model.method.step(input, &leaves)?;
        let loss_value = loss.array().as_f64();
        let mut gradients = loss.try_backward()?;

        // Encoder backward, then the optimiser.
        self.gradients.fill(E::zero());
        leaves.add_gradients(&model.params, &mut gradients, &mut self.gradients)?;
        for (x, h, saved) in [(x2, &h2, saved2), (x1, &h1, saved1)] {
            let g_features = gradients.get(h).as_vec();
            let (params, totals) = (&online.params[..encoder_params], &mut self.gradients[..encoder_params]);
            model.encoder.backward(params, x, saved, &g_features, totals, memory);
        }
        self.optimizer.step(&model.params, &mut online.params, &self.gradients, learning_rate);

        let health = with_health.then(|| {
            let unit = |y: &Matrix<E, Cpu>| {
                let mut y = y.as_vec();
                normalize_rows(&mut y, y1.shape().1);
                y
            };
            Health::of(&unit(&y1), &unit(&y2), y1.shape().1, &positives, &batch.labels)
        });
        let row = StepRow { step: self.step, epoch, loss: loss_value, learning_rate, momentum, health };
        self.step += 1;
        Ok(row)
    }

    /// Everything that training depends on from here on.
    pub fn state(&self) -> Vec<NamedTensor<E>> {
        let flat = |name: &str, values: &[E]| NamedTensor::real(name, &[values.len()], values.to_vec());
        let mut state = vec![
            NamedTensor::integer("step", &[1], vec![self.step as i64]),
            flat("online.params", &self.online.params),
            flat("online.buffers", &self.online.buffers),
            flat("momentum.params", &self.momentum.params),
            flat("momentum.buffers", &self.momentum.buffers),
        ];
        state.extend(self.optimizer.state());
        state.extend(self.model.method.state());
        state
    }

    /// Goes on from what [`Trainer::state`] gave.
    pub fn restore(&mut self, state: &[NamedTensor<E>]) {
        for tensor in state {
            match (tensor.name.as_str(), &tensor.values) {
                ("step", Values::Integer(step)) => self.step = step[0] as u64,
                ("online.params", Values::Real(values)) => self.online.params.clone_from(values),
                ("online.buffers", Values::Real(values)) => self.online.buffers.clone_from(values),
                ("momentum.params", Values::Real(values)) => self.momentum.params.clone_from(values),
                ("momentum.buffers", Values::Real(values)) => self.momentum.buffers.clone_from(values),
                _ => {}
            }
        }
        self.optimizer.restore(state);
        self.model.method.restore(state);
    }
}

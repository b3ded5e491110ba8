//! The training step, from top to bottom, and the state that it updates.

use dfdx::prelude::*;

use super::{
    BranchValues, Loaded, Model, PretrainConfig,
    groups::Groups,
    health::Health,
    in_flight::InFlight,
    neighbours::Neighbour,
    optimizer::{Average, Optimize, Scaling, Update},
    positiveness::Positiveness,
    recorder::Recorder,
    schedule::{Schedules, StepPlan},
};
use crate::{
    backend::{Backend, Branch, Learned, Statistics},
    encoder::Saved,
    method::{OwnParams, Rows, SavedMlp, StepInput, StepOutput},
    ops::{
        conv2d::Size,
        named::{NamedTensor, Values},
        tensor::{Matrix, TensorDevice, device_error},
    },
};

/// The metrics of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRow {
    pub step: u64,
    /// Epochs before the step, with fraction.
    pub epoch: f64,
    pub loss: f64,
    pub learning_rate: f64,
    /// EMA momentum; NaN without a momentum branch.
    pub momentum: f64,
    /// Health and positives, every `health.every` steps.
    pub diagnosis: Option<(Health, Positiveness)>,
    /// Top-1 accuracy of kNN after the step, if it was measured.
    pub knn_top1: Option<f64>,
    /// Neighbours of the watched images in the batch.
    pub neighbours: Vec<Neighbour>,
}

/// A model in training on a device.
pub struct Trainer<B: Optimize> {
    on: B,
    model: Model<B>,
    online: Weights<B>,
    /// The momentum branch, if the method has one.
    momentum: Option<Weights<B>>,
    gradients: B::Buffer,
    /// Gradients of the encoder from one crop and this rank's share of the batch; None if there are no other ranks.
    branch: Option<B::Buffer>,
    /// Number of images that share batch norm's statistics; None for the whole batch.
    group: Option<usize>,
    optimizer: B::Optimizer,
    /// The update that is due but not applied yet. The next step applies it and updates the average in one pass;
    /// [`Trainer::settle`] applies it at once.
    update: Option<StepPlan>,
    /// The last step, while its metrics may not have arrived on the host.
    in_flight: Option<InFlight<B::Real>>,
    recorder: Recorder,
    schedules: Schedules,
    /// Number of steps so far.
    step: u64,
}

/// The values of a branch, on the device.
struct Weights<B: Backend> {
    params: B::Params,
    /// Running statistics and fixed positions.
    buffers: B::Buffer,
}

impl<B: Backend> Weights<B> {
    fn new(on: &B, values: BranchValues<B::Real>, encoder: usize) -> Result<Self, B::Error> {
        Ok(Self { params: on.params(values.params, encoder)?, buffers: on.buffer(values.buffers)? })
    }

    /// The values in the form that layers read in training.
    fn in_training(&mut self) -> Branch<'_, B> {
        Branch { params: &self.params, statistics: Statistics::Batch(&mut self.buffers) }
    }

    fn read(&self, on: &B) -> Result<BranchValues<B::Real>, B::Error> {
        Ok(BranchValues { params: on.read_params(&self.params)?, buffers: on.read(&self.buffers)? })
    }
}

/// The outputs of the online branch for a crop, and the results that the backward passes need for each group of images.
struct Online<B: Backend> {
    encoder: Vec<Saved<B>>,
    projector: Vec<SavedMlp<B>>,
    predictor: Option<Vec<SavedMlp<B>>>,
    /// Projections g(h) and predictions q(y).
    y: Rows<B>,
    z: Rows<B>,
}

impl<B: Optimize> Trainer<B> {
    /// A fresh trainer. An epoch has `steps_per_epoch` steps over `images` images.
    ///
    /// # Errors
    /// When the configuration describes no model, or memory runs out.
    pub fn new(on: B, config: &PretrainConfig, steps_per_epoch: u64, images: usize) -> anyhow::Result<Self> {
        let model = Model::new(&on, config)?;
        let (start, (encoder, _)) = (model.init(config.seed), model.encoder_len());
        let averaged = config.method.momentum().map(|_| model.momentum_values(&start));
        Ok(Self {
            gradients: on.zeros(model.params.len())?,
            branch: if on.is_alone() { None } else { Some(on.zeros(encoder)?) },
            group: config.batch_norm.group,
            optimizer: on.optimizer(config.optimizer, &model.params, encoder)?,
            online: Weights::new(&on, start, encoder)?,
            momentum: averaged.map(|values| Weights::new(&on, values, encoder)).transpose()?,
            update: None,
            in_flight: None,
            recorder: Recorder::new(images, config.seed),
            schedules: Schedules::new(config, steps_per_epoch),
            step: 0,
            model,
            on,
        })
    }

    /// Replaces the initial weights of the encoder, in both branches.
    ///
    /// # Errors
    /// When the device fails.
    pub fn start_encoder_from(&mut self, [params, buffers]: [&[B::Real]; 2]) -> Result<(), B::Error> {
        for branch in [&mut self.online].into_iter().chain(&mut self.momentum) {
            self.on.write_params(&mut branch.params, params)?;
            self.on.write(&mut branch.buffers, buffers)?;
        }
        Ok(())
    }

    /// The device.
    pub fn on(&self) -> &B {
        &self.on
    }

    /// Number of steps so far.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The structure of the model.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// The values of the online branch. Must be [settled](Trainer::settle). Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn online(&self) -> Result<BranchValues<B::Real>, B::Error> {
        self.assert_settled();
        self.online.read(&self.on)
    }

    /// The values of the momentum branch, if there is one. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn momentum(&self) -> Result<Option<BranchValues<B::Real>>, B::Error> {
        self.momentum.as_ref().map(|branch| branch.read(&self.on)).transpose()
    }

    /// Features [n, dim] of normalised images [n, size, size, 3] by the online encoder in eval mode. Must be
    /// [settled](Trainer::settle).
    ///
    /// # Errors
    /// When the device fails.
    pub fn features(&self, images: Vec<B::Real>, n: usize, size: usize) -> Result<Vec<B::Real>, B::Error> {
        self.assert_settled();
        let statistics = Statistics::Running(&self.online.buffers);
        let mut branch = Branch { params: &self.online.params, statistics };
        let (images, size) = (self.on.images(images)?, Size { n, h: size, w: size });
        let (features, _) = self.model.encoder.forward(&self.on, &mut branch, &images, size, false)?;
        self.on.read(&features)
    }

    /// Statistics of loss scaling; None without it. Must be [settled](Trainer::settle). Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scaling(&self) -> Result<Option<Scaling>, B::Error> {
        self.assert_settled();
        self.on.scaling(&self.optimizer)
    }

    /// Whether no gradients are accumulated. Only then is [`Trainer::state`] complete.
    pub fn between_updates(&self) -> bool {
        self.schedules.is_between_updates(self.step)
    }

    /// The scheduled values of the next step.
    pub(super) fn due(&self) -> StepPlan {
        self.schedules.at(self.step)
    }

    /// Trains on one batch. Returns the row of this step or, on an asynchronous device, that of the previous step, if it was not
    /// returned before; [`Trainer::settle`] then returns the row of the last step.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step(&mut self, batch: &Loaded<B>) -> anyhow::Result<Option<StepRow>> {
        let due = self.due();
        B::step(self, batch, due)
    }

    /// [`Trainer::step`] on this thread, with the scheduled values `due`.
    ///
    /// # Errors
    /// Those of [`Trainer::step`].
    pub(super) fn step_here(&mut self, batch: &Loaded<B>, due: StepPlan) -> anyhow::Result<Option<StepRow>> {
        let launched = self.launch(batch, due).map_err(|error| self.on.explain(error))?;
        self.step += 1;
        let before = self.in_flight.replace(launched);
        if !B::ASYNCHRONOUS {
            return self.settle();
        }
        before.map(|step| step.into_row(&mut self.recorder)).transpose()
    }

    /// Applies the waiting update, so that values and state are those after the last step. Returns the row of that step, unless
    /// it was returned before. Does not change the bits of the training. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn settle(&mut self) -> anyhow::Result<Option<StepRow>> {
        self.apply_update(None)?;
        self.in_flight.take().map(|step| step.into_row(&mut self.recorder)).transpose()
    }

    fn assert_settled(&self) {
        let settled = self.update.is_none() && self.in_flight.is_none();
        assert!(settled, "a step is under way: settle the trainer first");
    }

    /// Applies the waiting update, if there is one. If a step `begins`, the same pass updates the average with its momentum.
    fn apply_update(&mut self, begins: Option<StepPlan>) -> Result<(), B::Error> {
        let Self { on, model, online, momentum, gradients, optimizer, update, schedules, .. } = self;
        let average = match (momentum, begins) {
            (Some(target), Some(due)) => Some(Average { target: &mut target.params, momentum: due.momentum }),
            _ => None,
        };
        match (update.take(), average) {
            (Some(StepPlan { learning_rate, epoch, .. }), average) => {
                let trains = (0..model.params.entries.len()).map(|entry| model.trains(entry, epoch)).collect();
                let (params, batches) = (&mut online.params, schedules.accumulation());
                on.update(optimizer, Update { params, gradients, batches, learning_rate, trains, average })
            }
            (None, Some(average)) => on.average(&online.params, average),
            (None, None) => Ok(()),
        }
    }

    /// Launches a step on the device.
    fn launch(&mut self, batch: &Loaded<B>, due: StepPlan) -> anyhow::Result<InFlight<B::Real>> {
        if due.begins {
            // Apply the last update, update the average, normalise the method's unit rows (prototypes), and clear the gradients.
            self.apply_update(Some(due))?;
            if let Some(entry) = self.model.method.unit_rows().map(|entry| &self.model.params.entries[entry]) {
                self.on.normalize_rows(&mut self.online.params, entry.range(), entry.shape[1])?;
            }
            self.on.zero(&mut self.gradients)?;
        }
        let Self { on, model, online, gradients, branch, .. } = self;
        let (n, dim) = (batch.samples.len(), model.projector.output());
        let groups = Groups::new(on, n, self.group);

        // Momentum branch: k = g'(f'(x)) of both full views. It comes first, because its working memory is free again before the
        // online branch keeps the results of all its layers.
        let mut keys = None;
        if let Some(target) = &mut self.momentum {
            let mut project = |(images, size): &(B::Buffer, Size)| -> anyhow::Result<Rows<B>> {
                let (h, _) = groups.encode(&model.encoder, target.in_training(), images, *size, false)?;
                let (k, _) = groups.head(&model.projector, target.in_training(), on.gather(h)?)?;
                on.rows(&k, (n, dim))
            };
            keys = Some([project(&batch.crops[0])?, project(&batch.crops[1])?]);
        }

        // Online branch: features h = f(x), projections y = g(h), predictions z = q(y), each crop with its own statistics. A
        // rank computes the features of its share of the images. Everything after that is the same on all ranks.
        let mut crops: Vec<Online<B>> = Vec::with_capacity(batch.crops.len());
        for (images, size) in &batch.crops {
            let (h, saved) = groups.encode(&model.encoder, online.in_training(), images, *size, true)?;
            let (y, projector) = groups.head(&model.projector, online.in_training(), on.gather(h)?)?;
            let projected = on.rows(&y, (n, dim))?;
            let (z, predictor) = match &model.predictor {
                Some(predictor) => {
                    let (z, saved) = groups.head(predictor, online.in_training(), y)?;
                    (on.rows(&z, (n, dim))?, Some(saved))
                }
                None => (projected.clone(), None),
            };
            crops.push(Online { encoder: saved, projector, predictor, y: projected, z });
        }

        // The loss, and its gradient with respect to projections, predictions and the method's own parameters.
        let own = OwnParams::new(on, &model.params, &online.params, model.method_entries())?;
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
        let StepOutput { loss, positives } = model.method.step(on, &input, &own)?;
        let (loss, tape) = loss.split_tape();
        let one: Matrix<B::Real, B::Tensors> = loss.clone().try_reshape_like(&(1, 1)).map_err(device_error)?;
        let loss_later = B::Tensors::read_later(&one).map_err(device_error)?;
        let tape = tape.merge(own.tape(on, &model.params, gradients)?);
        let mut of_loss = loss.put_tape(tape).try_backward().map_err(device_error)?;

        // Backward through heads and encoder. The optimiser runs later, in `apply_update`.
        own.put_gradients(on, &model.params, &mut of_loss, gradients)?;
        // Set aside the gradients of the heads' vectors from earlier batches of this update, until the crops of this batch are
        // summed.
        let mut earlier = Vec::new();
        for range in model.head_vectors().filter(|_| !due.begins) {
            earlier.push((range.clone(), on.take_out(gradients, range)?));
        }
        let mut learned = Learned { params: &online.params, gradients };
        for (crop, (images, _)) in crops.into_iter().zip(&batch.crops).rev() {
            let mut g = on.gradient(&mut of_loss, &crop.z)?;
            if let (Some(predictor), Some(saved)) = (&model.predictor, crop.predictor) {
                // The loss may depend on y directly too, as through SNCLR's attention.
                let of_y = on.gradient(&mut of_loss, &crop.y)?;
                g = groups.head_backward(predictor, &mut learned, saved, g, Some(of_y))?;
            }
            let mut g = on.share(groups.head_backward(&model.projector, &mut learned, crop.projector, g, None)?)?;
            on.scale_features(&self.optimizer, &mut g)?;
            match branch {
                None => groups.encode_backward(&model.encoder, &mut learned, images, crop.encoder, &g)?,
                Some(branch) => {
                    on.zero(branch)?;
                    let mut own = Learned { params: learned.params, gradients: branch };
                    groups.encode_backward(&model.encoder, &mut own, images, crop.encoder, &g)?;
                    on.sum_over_ranks(branch)?;
                    on.add(learned.gradients, 0..model.encoder_len().0, branch)?;
                }
            }
        }
        for (range, values) in earlier {
            on.add(gradients, range, &values)?;
        }
        self.update = due.ends.then_some(due);

        let later = |view: usize| B::Tensors::read_rows_later(&input.y[view]).map_err(device_error);
        let y = if due.diagnosis { Some(([later(0)?, later(1)?], dim)) } else { None };
        let (samples, labels) = (batch.samples.clone(), batch.labels.clone());
        Ok(InFlight { due, samples, labels, loss: loss_later, positives, y })
    }

    /// The complete state of the training, from which any device can continue. Must be [between
    /// updates](Trainer::between_updates) and [settled](Trainer::settle). Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<Vec<NamedTensor<B::Real>>, B::Error> {
        self.assert_settled();
        let flat = |name: String, values: Vec<B::Real>| NamedTensor::real(name, &[values.len()], values);
        let mut state = vec![NamedTensor::integer("step", &[1], vec![self.step as i64])];
        let branches = [Some(("online", &self.online)), self.momentum.as_ref().map(|branch| ("momentum", branch))];
        for (name, branch) in branches.into_iter().flatten() {
            let BranchValues { params, buffers } = branch.read(&self.on)?;
            state.extend([flat(format!("{name}.params"), params), flat(format!("{name}.buffers"), buffers)]);
        }
        state.extend(self.on.optimizer_state(&self.optimizer)?);
        for queue in self.model.method.queues() {
            state.extend(queue.state(&self.on)?);
        }
        state.extend(self.recorder.state());
        Ok(state)
    }

    /// Restores the state of [`Trainer::state`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, state: &[NamedTensor<B::Real>]) -> Result<(), B::Error> {
        (self.update, self.in_flight) = (None, None);
        for tensor in state {
            let branch = match tensor.name.split_once('.') {
                Some(("online", _)) => Some(&mut self.online),
                Some(("momentum", _)) => self.momentum.as_mut(),
                _ => None,
            };
            match (tensor.name.as_str(), &tensor.values, branch) {
                ("step", Values::Integer(step), _) => self.step = step[0] as u64,
                (name, Values::Real(values), Some(branch)) if name.ends_with(".params") => {
                    self.on.write_params(&mut branch.params, values)?;
                }
                (name, Values::Real(values), Some(branch)) if name.ends_with(".buffers") => {
                    self.on.write(&mut branch.buffers, values)?;
                }
                _ => {}
            }
        }
        self.on.restore_optimizer(&mut self.optimizer, state)?;
        for queue in self.model.method.queues_mut() {
            queue.restore(&self.on, state)?;
        }
        self.recorder.restore(state);
        Ok(())
    }
}

//! One training step on a GPU, top to bottom: what [`crate::train::Trainer`] does on the CPU, in the same order.

use std::sync::Arc;

use dfdx::prelude::*;

use super::{KeptBatch, batch::GpuBatch, branch::BranchGpu, unfinished::Unfinished};
use crate::{
    encoder::cuda::{SavedGpu, Statistics},
    method::{StepInput, StepOutput},
    ops::{
        backend::Backend,
        batch_norm::cuda::Rows,
        conv2d::{Size, cuda::Math},
        cuda::{Buffer, Gpu, GpuError, Kind, Scalar, View},
        leaves::Leaves,
        named::{NamedTensor, Values},
        normalize,
        seam::Matrix,
    },
    train::{
        Batch, Branch, Model, Precision, PretrainConfig, StepRow,
        optimizer::cuda::{OptimizerGpu, Scaling, StepGpu, follow},
        recorder::Recorder,
        schedule::{Due, Timetable},
    },
};

/// A model in training on a GPU, with heads and losses on the dfdx device `D`.
pub struct GpuTrainer<D: Backend<f32>> {
    gpu: Gpu,
    device: D,
    math: Math,
    model: Model<f32>,
    online: BranchGpu<D>,
    /// The momentum branch, where the method has one.
    momentum: Option<BranchGpu<D>>,
    gradients: Buffer,
    optimizer: OptimizerGpu,
    /// The update that the gradients are for, until it is taken: with the next step, whose average goes along in one pass,
    /// or by [`GpuTrainer::settle`].
    update: Option<Due>,
    /// The last step, as long as what it reports may be on its way to the host.
    unfinished: Option<Unfinished>,
    recorder: Recorder,
    timetable: Timetable,
    step: u64,
}

/// What the online branch makes of a crop.
struct Online<D: Backend<f32>> {
    images: Buffer,
    size: Size,
    h: Matrix<f32, D>,
    saved: SavedGpu,
    y: Matrix<f32, D>,
    z: Matrix<f32, D>,
    tape: OwnedTape<f32, D>,
}

impl<D: Backend<f32>> GpuTrainer<D>
where
    D::Err: Send + Sync,
{
    /// A fresh trainer. An epoch has `steps_per_epoch` steps over `images` images.
    ///
    /// # Errors
    /// When the configuration describes no model, or memory runs out.
    pub fn new(
        gpu: &Gpu,
        device: D,
        config: &PretrainConfig,
        steps_per_epoch: u64,
        images: usize,
    ) -> anyhow::Result<Self> {
        let mut model = Model::new(config)?;
        model.method.move_to(gpu)?;
        let math = match config.precision {
            Precision::F32 => Math::F32,
            Precision::Tf32 => Math::Tf32,
            Precision::F16 => Math::F16,
            Precision::Bf16 => anyhow::bail!(
                "precision: bf16 needs the CPU; use precision: f16 (--set precision=f16), or --device cpu"
            ),
        };
        let start = model.init(config.seed);
        let encoder = model.encoder_len();
        let online = BranchGpu::new(gpu, math, &start, encoder)?;
        let averaged = config.method.momentum().is_some();
        let momentum =
            averaged.then(|| BranchGpu::new(gpu, math, &model.momentum_branch(&start), encoder)).transpose()?;
        let scaled = if math == Math::F16 { encoder.0 } else { 0 };
        Ok(Self {
            gpu: gpu.clone(),
            device,
            math,
            gradients: gpu.zeros(Kind::F32, online.len())?,
            optimizer: OptimizerGpu::new(gpu, config.optimizer, &model.params, scaled)?,
            update: None,
            unfinished: None,
            recorder: Recorder::new(images, config.seed),
            timetable: Timetable::new(config, steps_per_epoch),
            step: 0,
            model,
            online,
            momentum,
        })
    }

    /// Puts other values in the encoder's place, in both branches: those that training starts from.
    ///
    /// # Errors
    /// When the device fails.
    pub fn start_encoder_from(&mut self, [params, buffers]: [&[f32]; 2]) -> Result<(), GpuError> {
        for branch in [&mut self.online].into_iter().chain(&mut self.momentum) {
            branch.write_params(params)?;
            branch.write_buffers(buffers)?;
        }
        Ok(())
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The model's structure.
    pub fn model(&self) -> &Model<f32> {
        &self.model
    }

    /// The online branch's values; [settled](GpuTrainer::settle). Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn online(&self) -> Result<Branch<f32>, GpuError> {
        self.assert_settled();
        self.online.read()
    }

    /// The momentum branch's values, where there is one. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn momentum(&self) -> Result<Option<Branch<f32>>, GpuError> {
        self.momentum.as_ref().map(BranchGpu::read).transpose()
    }

    /// How loss scaling went; None in f32 and tf32. [Settled](GpuTrainer::settle); waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scaling(&self) -> Result<Option<Scaling>, GpuError> {
        self.assert_settled();
        self.optimizer.scaling()
    }

    /// Whether the optimiser has been given every gradient: only then is [`GpuTrainer::state`] complete.
    pub fn between_updates(&self) -> bool {
        self.timetable.is_between_updates(self.step)
    }

    /// Takes the update that waits for the next step, so that values and state are those after the last one, and gives
    /// that step's row, if it was not given yet. Training goes on to the same bits with or without. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn settle(&mut self) -> anyhow::Result<Option<StepRow>> {
        self.catch_up(None)?;
        let last = self.unfinished.take();
        last.map(|step| step.finish(&mut self.recorder)).transpose()
    }

    fn assert_settled(&self) {
        let settled = self.update.is_none() && self.unfinished.is_none();
        assert!(settled, "a step is under way: settle the trainer first");
    }

    /// Takes the update that waits, and moves the average by the momentum of the step that begins: one pass for both.
    fn catch_up(&mut self, begins: Option<Due>) -> Result<(), GpuError> {
        let (online, model) = (&self.online, &self.model);
        let average = match (&self.momentum, begins) {
            (Some(target), Some(due)) => Some(target.average(due.momentum)),
            _ => None,
        };
        let (params, followers) = (online.params(), online.followers(average));
        match self.update.take() {
            Some(Due { learning_rate, epoch, .. }) => {
                let (gradients, batches) = (self.gradients.view(), self.timetable.accumulation());
                let step = StepGpu { params, gradients, batches, learning_rate, followers };
                self.optimizer.step(step, |entry| model.trains(entry, epoch))
            }
            None => match average {
                Some(average) => follow(&self.gpu, params.part(0..average.target.len()), followers),
                None => Ok(()),
            },
        }
    }

    /// `batch` on the device, as this trainer reads it.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn keep(&self, batch: &Batch<f32>) -> Result<KeptBatch, GpuError> {
        KeptBatch::new(&self.gpu, self.math, batch)
    }

    /// Trains on one batch as the timetable says. Gives the row of the step before, whose work the device has had the time
    /// of this call for; that of the last step comes from [`GpuTrainer::settle`].
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step(&mut self, batch: &impl GpuBatch) -> anyhow::Result<Option<StepRow>> {
        let launched = self.launch(batch, self.timetable.at(self.step))?;
        self.step += 1;
        let before = self.unfinished.replace(launched);
        before.map(|step| step.finish(&mut self.recorder)).transpose()
    }

    /// Has the device do a step. Waits for nothing.
    fn launch(&mut self, batch: &impl GpuBatch, due: Due) -> anyhow::Result<Unfinished> {
        if due.begins {
            // The last update, and the momentum branch moves towards where that leads; then gradients begin anew.
            self.catch_up(Some(due))?;
            self.before_step()?;
            self.gpu.zero(self.gradients.view())?;
        }
        let Self { gpu, device, model, online, .. } = self;
        let (n, dim) = (batch.samples().len(), model.encoder.feature_dim());

        // Online branch: features h = f(x), projections y = g(h), predictions z = q(y), each crop with its own statistics.
        let leaves = leaves(gpu, device, model, online.params(), model.head_entries())?;
        let mut crops: Vec<Online<D>> = Vec::new();
        for (images, size) in batch.crops(gpu, self.math)? {
            let (h, saved) =
                model.encoder.forward_gpu(&online.arenas(), Statistics::Batch, images.view(), size, true)?;
            let h: Matrix<f32, D> = device.tensor_at(gpu, h.view(), (n, dim))?;
            let y = model.projector.forward(h.leaky_trace(), &leaves, &model.buffers, &mut online.running);
            let (y, tape) = y.map_err(device_error)?.split_tape();
            let z = y.clone().put_tape(tape);
            let (z, tape) = match &model.predictor {
                Some(predictor) => {
                    predictor.forward(z, &leaves, &model.buffers, &mut online.running).map_err(device_error)?
                }
                None => z,
            }
            .split_tape();
            crops.push(Online { images, size, h, saved: saved.expect("kept"), y, z, tape });
        }

        // Momentum branch: k = g'(f'(x)) of both full views.
        let mut keys = None;
        if let Some(target) = &mut self.momentum {
            let leaves = self::leaves(gpu, device, model, target.params(), model.momentum_head_entries())?;
            let mut project = |i: usize| -> anyhow::Result<Matrix<f32, D>> {
                let (arenas, Online { images, size, .. }) = (target.arenas(), &crops[i]);
                let (h, _) = model.encoder.forward_gpu(&arenas, Statistics::Batch, images.view(), *size, false)?;
                let h: Matrix<f32, D> = device.tensor_at(gpu, h.view(), (n, dim))?;
                let k = model.projector.forward(h, &leaves, &model.buffers, &mut target.running);
                k.map_err(device_error)
            };
            keys = Some([project(0)?, project(1)?]);
        }

        // Loss and its gradient with respect to features and head parameters.
        let input = StepInput {
            step: due.step,
            epoch: due.epoch,
            y: crops.iter().map(|crop| crop.y.clone()).collect(),
            z: crops.iter().map(|crop| crop.z.clone()).collect(),
            momentum: keys,
            samples: batch.samples(),
            labels: batch.labels(),
            diagnose: due.diagnosis,
        };
        let StepOutput { loss, positives } = model.method.step(&input, &leaves)?;
        let (loss, mut tape) = loss.split_tape();
        let loss_later = D::read_later(&loss).map_err(device_error)?;
        for crop in &mut crops {
            tape = tape.merge(std::mem::take(&mut crop.tape));
        }
        let mut gradients = loss.put_tape(tape).try_backward().map_err(device_error)?;

        // Encoder backward; the optimiser's turn comes with the next step.
        let totals = self.gradients.view();
        let mut failed = Ok(());
        let visited = leaves.each_gradient(&model.params, &mut gradients, |entry, gradient| {
            let add = || {
                let lent = match &gradient {
                    crate::ops::leaves::Gradient::Matrix(g) => D::lend(gpu, g)?,
                    crate::ops::leaves::Gradient::Vector(g) => D::lend(gpu, g)?,
                };
                Rows::add(gpu, Scalar::F32, lent.view(), totals.part(entry.range()))
            };
            if failed.is_ok() {
                failed = add();
            }
        });
        visited.map_err(device_error)?;
        failed?;
        for crop in crops.into_iter().rev() {
            let g = gradients.get(&crop.h);
            let lent = D::lend(gpu, &g)?;
            self.optimizer.scale_features(lent.view())?;
            model.encoder.backward_gpu(&online.arenas(), crop.images.view(), crop.saved, lent.view(), totals)?;
        }
        self.update = due.ends.then_some(due);

        let y = match due.diagnosis {
            true => {
                let later = |i: usize| D::read_later(&input.y[i]).map_err(device_error);
                Some(([later(0)?, later(1)?], input.y[0].shape().1))
            }
            false => None,
        };
        let (samples, labels) = (batch.samples().to_vec(), batch.labels().to_vec());
        Ok(Unfinished { due, samples, labels, loss: loss_later, positives, y })
    }

    /// Brings the rows of the method's own parameters that must have unit length to it.
    fn before_step(&self) -> Result<(), GpuError> {
        let Some(entry) = self.model.method.unit_rows() else { return Ok(()) };
        let entry = &self.model.params.entries[entry];
        let rows = self.online.params().part(entry.range());
        normalize::cuda::forward(&self.gpu, rows, [entry.shape[0], entry.shape[1]], rows, None)
    }

    /// Everything that training depends on from here on, [between updates](GpuTrainer::between_updates) and
    /// [settled](GpuTrainer::settle), under the names that the CPU's trainer gives it. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> anyhow::Result<Vec<NamedTensor<f32>>> {
        self.assert_settled();
        let flat = |name: &str, values: Vec<f32>| NamedTensor::real(name, &[values.len()], values);
        let mut state = vec![NamedTensor::integer("step", &[1], vec![self.step as i64])];
        let branches = [Some(("online", &self.online)), self.momentum.as_ref().map(|branch| ("momentum", branch))];
        for (name, branch) in branches.into_iter().flatten() {
            let Branch { params, buffers } = branch.read()?;
            let params = Arc::unwrap_or_clone(params);
            state.extend([flat(&format!("{name}.params"), params), flat(&format!("{name}.buffers"), buffers)]);
        }
        state.extend(self.optimizer.state()?);
        state.extend(self.model.method.state()?);
        state.extend(self.recorder.state());
        Ok(state)
    }

    /// Goes on from what [`GpuTrainer::state`] gave.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, state: &[NamedTensor<f32>]) -> anyhow::Result<()> {
        (self.update, self.unfinished) = (None, None);
        for tensor in state {
            let branch = match tensor.name.split_once('.') {
                Some(("online", _)) => Some(&mut self.online),
                Some(("momentum", _)) => self.momentum.as_mut(),
                _ => None,
            };
            match (tensor.name.as_str(), &tensor.values, branch) {
                ("step", Values::Integer(step), _) => self.step = step[0] as u64,
                (name, Values::Real(values), Some(branch)) if name.ends_with(".params") => {
                    branch.write_params(values)?
                }
                (name, Values::Real(values), Some(branch)) if name.ends_with(".buffers") => {
                    branch.write_buffers(values)?;
                }
                _ => {}
            }
        }
        self.optimizer.restore(state)?;
        self.model.method.restore(state)?;
        self.recorder.restore(state);
        Ok(())
    }
}

/// The parameters of some entries as tensors.
fn leaves<D: Backend<f32>>(
    gpu: &Gpu,
    device: &D,
    model: &Model<f32>,
    params: View,
    entries: std::ops::Range<usize>,
) -> Result<Leaves<f32, D>, GpuError> {
    Leaves::from_tensors(
        device,
        &model.params,
        entries,
        |entry, shape| device.tensor_at(gpu, params.part(entry.range()), shape),
        |entry, len| device.tensor_at(gpu, params.part(entry.range()), (len,)),
    )
}

fn device_error(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error:?}")
}

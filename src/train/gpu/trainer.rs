//! One training step on a GPU, top to bottom: what [`crate::train::Trainer`] does on the CPU, in the same order.

use dfdx::prelude::*;

use super::{batch::GpuBatch, branch::BranchGpu, bridge::Bridge};
use crate::{
    encoder::cuda::{SavedGpu, Statistics},
    method::{StepInput, StepOutput},
    ops::{
        batch_norm::cuda::Rows,
        conv2d::{Size, cuda::Math},
        cuda::{Buffer, Gpu, GpuError, Scalar},
        leaves::Leaves,
        named::{NamedTensor, Values},
        normalize,
        seam::Matrix,
    },
    train::{
        Branch, Model, Precision, PretrainConfig, StepRow, Watch,
        diagnosis::diagnosis,
        learning_rates,
        optimizer::cuda::{OptimizerGpu, Scaling, ema},
        positiveness::Churn,
        schedule::{LrSchedule, momentum_at},
    },
};

/// A model in training on a GPU, with heads and losses on the dfdx device `D`.
pub struct GpuTrainer<D: Bridge> {
    gpu: Gpu,
    device: D,
    math: Math,
    model: Model<f32>,
    online: BranchGpu,
    /// The momentum branch and its momentum at the start, where the method has one.
    momentum: Option<(BranchGpu, f64)>,
    gradients: Buffer,
    optimizer: OptimizerGpu,
    churn: Churn,
    watch: Watch,
    lr: LrSchedule,
    health_every: u64,
    steps_per_epoch: u64,
    accumulation: u64,
    step: u64,
}

/// What the online branch makes of a crop.
struct Online<D: Bridge> {
    images: Buffer,
    size: Size,
    h: Matrix<f32, D>,
    saved: SavedGpu,
    y: Matrix<f32, D>,
    z: Matrix<f32, D>,
    tape: OwnedTape<f32, D>,
}

impl<D: Bridge> GpuTrainer<D>
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
        model.method.search_on(gpu);
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
        let momentum = match config.method.momentum() {
            Some(at_start) => Some((BranchGpu::new(gpu, math, &model.momentum_branch(&start), encoder)?, at_start)),
            None => None,
        };
        let accumulation = config.gradient_accumulation as u64;
        let (_, peak) = learning_rates(config.optimizer, config.batch_size * config.gradient_accumulation);
        let scaled = if math == Math::F16 { encoder.0 } else { 0 };
        Ok(Self {
            gpu: gpu.clone(),
            device,
            math,
            gradients: gpu.zeros(online.len() * 4)?,
            optimizer: OptimizerGpu::new(gpu, config.optimizer, &model.params, scaled)?,
            churn: Churn::new(images),
            watch: Watch::new(images, config.seed),
            lr: LrSchedule { peak, warmup_epochs: config.schedule.warmup_epochs, epochs: config.epochs as f64 },
            health_every: config.health.every as u64,
            steps_per_epoch,
            accumulation,
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
        for branch in [&mut self.online].into_iter().chain(self.momentum.as_mut().map(|(branch, _)| branch)) {
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

    /// The online branch's values. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn online(&self) -> Result<Branch<f32>, GpuError> {
        self.online.read()
    }

    /// The momentum branch's values, where there is one. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn momentum(&self) -> Result<Option<Branch<f32>>, GpuError> {
        self.momentum.as_ref().map(|(branch, _)| branch.read()).transpose()
    }

    /// How loss scaling went; None in f32 and tf32. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scaling(&self) -> Result<Option<Scaling>, GpuError> {
        self.optimizer.scaling()
    }

    /// Whether the optimiser has taken every gradient: only then is [`GpuTrainer::state`] complete.
    pub fn between_updates(&self) -> bool {
        self.step.is_multiple_of(self.accumulation)
    }

    /// Trains on one batch at the schedules' learning rate and momentum.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step(&mut self, batch: &impl GpuBatch) -> anyhow::Result<StepRow> {
        // Steps that the optimiser takes together share one learning rate and one momentum.
        let first = self.step / self.accumulation * self.accumulation;
        let epoch = first as f64 / self.steps_per_epoch as f64;
        let momentum = self.momentum.as_ref().map_or(f64::NAN, |(_, start)| momentum_at(epoch, *start, self.lr.epochs));
        let diagnose = self.step.is_multiple_of(self.health_every);
        self.step_at(batch, epoch, self.lr.at(epoch), momentum, diagnose)
    }

    pub(in crate::train) fn step_at(
        &mut self,
        batch: &impl GpuBatch,
        epoch: f64,
        learning_rate: f64,
        momentum: f64,
        diagnose: bool,
    ) -> anyhow::Result<StepRow> {
        let begins = self.step.is_multiple_of(self.accumulation);
        if begins {
            self.before_step()?;
        }
        let Self { gpu, device, model, online, .. } = self;
        let (n, dim) = (batch.samples().len(), model.encoder.feature_dim());

        // Online branch: features h = f(x), projections y = g(h), predictions z = q(y), each crop with its own statistics.
        let leaves = leaves(gpu, device, model, online.params(), model.head_entries())?;
        let mut crops: Vec<Online<D>> = Vec::new();
        for (images, size) in batch.crops(gpu, self.math)? {
            let (h, saved) = model.encoder.forward_gpu(&online.arenas(), Statistics::Batch, images.at(), size, true)?;
            let h: Matrix<f32, D> = device.tensor(gpu, h.at(), (n, dim))?;
            let y = model.projector.forward(h.leaky_trace(), &leaves, &model.buffers, &mut online.host_buffers);
            let (y, tape) = y.map_err(device_error)?.split_tape();
            let z = y.clone().put_tape(tape);
            let (z, tape) = match &model.predictor {
                Some(predictor) => {
                    predictor.forward(z, &leaves, &model.buffers, &mut online.host_buffers).map_err(device_error)?
                }
                None => z,
            }
            .split_tape();
            crops.push(Online { images, size, h, saved: saved.expect("kept"), y, z, tape });
        }

        // Momentum branch: moved towards the online one first, then k = g'(f'(x)) of both full views.
        let mut keys = None;
        if let Some((target, _)) = &mut self.momentum {
            if begins {
                ema(gpu, target.params(), online.params(), target.len(), momentum)?;
                target.refresh()?;
            }
            let leaves = self::leaves(gpu, device, model, target.params(), model.momentum_head_entries())?;
            let mut project = |i: usize| -> anyhow::Result<Vec<f32>> {
                let (arenas, Online { images, size, .. }) = (target.arenas(), &crops[i]);
                let (h, _) = model.encoder.forward_gpu(&arenas, Statistics::Batch, images.at(), *size, false)?;
                let h: Matrix<f32, D> = device.tensor(gpu, h.at(), (n, dim))?;
                let k = model.projector.forward(h, &leaves, &model.buffers, &mut target.host_buffers);
                Ok(k.map_err(device_error)?.as_vec())
            };
            keys = Some([project(0)?, project(1)?]);
        }

        // Loss and its gradient with respect to features and head parameters.
        let input = StepInput {
            step: self.step,
            epoch,
            y: crops.iter().map(|crop| crop.y.clone()).collect(),
            z: crops.iter().map(|crop| crop.z.clone()).collect(),
            momentum: keys,
            samples: batch.samples(),
            labels: batch.labels(),
            diagnose,
        };
        let StepOutput { loss, positives } = model.method.step(&input, &leaves)?;
        let loss_value = f64::from(loss.as_vec()[0]);
        let (loss, mut tape) = loss.split_tape();
        for crop in &mut crops {
            tape = tape.merge(std::mem::take(&mut crop.tape));
        }
        let mut gradients = loss.put_tape(tape).try_backward().map_err(device_error)?;

        // Encoder backward, then the optimiser.
        let totals = self.gradients.at();
        if begins {
            gpu.zero(totals, online.len() * 4)?;
        }
        let mut failed = Ok(());
        let visited = leaves.each_gradient(&model.params, &mut gradients, |entry, gradient| {
            let add = || {
                let to = totals + 4 * entry.offset as u64;
                match &gradient {
                    crate::ops::leaves::Gradient::Matrix(g) => {
                        Rows::add(gpu, Scalar::F32, D::lend(gpu, g)?.at, entry.len(), to)
                    }
                    crate::ops::leaves::Gradient::Vector(g) => {
                        Rows::add(gpu, Scalar::F32, D::lend(gpu, g)?.at, entry.len(), to)
                    }
                }
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
            self.optimizer.scale_features(lent.at, n * dim)?;
            model.encoder.backward_gpu(&online.arenas(), crop.images.at(), crop.saved, lent.at, totals)?;
        }
        self.step += 1;
        if self.step.is_multiple_of(self.accumulation) {
            let trains = |entry| model.trains(entry, epoch);
            self.optimizer.step(online.params(), totals, learning_rate, self.accumulation, trains)?;
            online.refresh()?;
        }

        let neighbours = self.watch.of(&positives, batch.samples(), batch.labels());
        self.churn.update(batch.samples(), &positives.choices);
        let diagnosis =
            diagnose.then(|| diagnosis([&input.y[0], &input.y[1]], &positives, batch.labels(), self.churn.take()));
        Ok(StepRow {
            step: self.step - 1,
            epoch,
            loss: loss_value,
            learning_rate,
            momentum,
            diagnosis,
            knn_top1: None,
            neighbours,
        })
    }

    /// Brings the rows of the method's own parameters that must have unit length to it.
    fn before_step(&self) -> Result<(), GpuError> {
        let Some(entry) = self.model.method.unit_rows() else { return Ok(()) };
        let entry = &self.model.params.entries[entry];
        let at = self.online.params() + 4 * entry.offset as u64;
        normalize::cuda::forward(&self.gpu, at, [entry.shape[0], entry.shape[1]], at, 0)
    }

    /// Everything that training depends on from here on, [between updates](GpuTrainer::between_updates), under the names
    /// that the CPU's trainer gives it. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> Result<Vec<NamedTensor<f32>>, GpuError> {
        let flat = |name: &str, values: Vec<f32>| NamedTensor::real(name, &[values.len()], values);
        let mut state = vec![NamedTensor::integer("step", &[1], vec![self.step as i64])];
        let branches = [Some(("online", &self.online)), self.momentum.as_ref().map(|(b, _)| ("momentum", b))];
        for (name, branch) in branches.into_iter().flatten() {
            let Branch { params, buffers } = branch.read()?;
            state.extend([flat(&format!("{name}.params"), params), flat(&format!("{name}.buffers"), buffers)]);
        }
        state.extend(self.optimizer.state()?);
        state.extend(self.model.method.state());
        state.extend(self.churn.state());
        Ok(state)
    }

    /// Goes on from what [`GpuTrainer::state`] gave.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, state: &[NamedTensor<f32>]) -> Result<(), GpuError> {
        for tensor in state {
            let branch = match tensor.name.split_once('.') {
                Some(("online", _)) => Some(&mut self.online),
                Some(("momentum", _)) => self.momentum.as_mut().map(|(branch, _)| branch),
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
        self.model.method.restore(state);
        self.churn.restore(state);
        Ok(())
    }
}

/// The parameters of some entries as tensors.
fn leaves<D: Bridge>(
    gpu: &Gpu,
    device: &D,
    model: &Model<f32>,
    params: u64,
    entries: std::ops::Range<usize>,
) -> Result<Leaves<f32, D>, GpuError> {
    let at = |offset: usize| params + 4 * offset as u64;
    Leaves::from_tensors(
        &model.params,
        entries,
        |entry, shape| device.tensor(gpu, at(entry.offset), shape),
        |entry, len| device.tensor(gpu, at(entry.offset), (len,)),
    )
}

fn device_error(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("the device failed: {error:?}")
}

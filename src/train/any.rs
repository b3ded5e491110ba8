//! A trainer on the device that was chosen.

use super::{Batch, Branch, Device, Loaded, Model, Precision, PretrainConfig, StepRow, Trainer};
use crate::ops::named::NamedTensor;

/// A model in training on the CPU or on a GPU.
pub enum AnyTrainer {
    Cpu(Box<Trainer<f32>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<super::gpu::GpuTrainer<dfdx::prelude::Cuda>>),
}

/// Calls the method of whichever trainer it is; `?` is for the GPU's, which may fail.
macro_rules! on_either {
    ($any:expr, $trainer:ident => $cpu:expr, $gpu:expr) => {
        match $any {
            AnyTrainer::Cpu($trainer) => $cpu,
            #[cfg(feature = "cuda")]
            AnyTrainer::Cuda($trainer) => $gpu,
        }
    };
}

impl AnyTrainer {
    /// A fresh trainer on `device`. An epoch has `steps_per_epoch` steps over `images` images.
    ///
    /// # Errors
    /// When the device cannot be used, or not with this encoder or precision.
    pub fn new(device: Device, config: &PretrainConfig, steps_per_epoch: u64, images: usize) -> anyhow::Result<Self> {
        match device {
            Device::Cpu => {
                anyhow::ensure!(
                    config.precision != Precision::F16,
                    "precision: f16 needs a GPU; add --device cuda:0, or use precision: f32 (--set precision=f32)"
                );
                Ok(AnyTrainer::Cpu(Box::new(Trainer::new(config, steps_per_epoch, images)?)))
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(index) => {
                use crate::ops::cuda::{backend, nvidia};
                let cuda = nvidia::open(index)?;
                backend::allow_tf32(config.precision != Precision::F32);
                let gpu = backend::gpu(&cuda).map_err(|error| anyhow::anyhow!("the device failed: {error:?}"))?;
                let trainer = super::gpu::GpuTrainer::new(&gpu, cuda, config, steps_per_epoch, images)?;
                Ok(AnyTrainer::Cuda(Box::new(trainer)))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(device.check().expect_err("no feature, no device").into()),
        }
    }

    /// Puts other values in the encoder's place, in both branches: those that training starts from.
    ///
    /// # Errors
    /// When the device fails.
    pub fn start_encoder_from(&mut self, values: [&[f32]; 2]) -> anyhow::Result<()> {
        on_either!(self, trainer => trainer.start_encoder_from(values), trainer.start_encoder_from(values)?);
        Ok(())
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        on_either!(self, trainer => trainer.steps(), trainer.steps())
    }

    /// The model's structure.
    pub fn model(&self) -> &Model<f32> {
        on_either!(self, trainer => trainer.model(), trainer.model())
    }

    /// Completes what is under way on the device, before values or state are asked for: gives the row of the last step, if
    /// [`AnyTrainer::step`] has not. Training goes on to the same bits with or without.
    ///
    /// # Errors
    /// When the device fails.
    pub fn settle(&mut self) -> anyhow::Result<Option<StepRow>> {
        on_either!(self, _trainer => Ok(None), _trainer.settle())
    }

    /// The online branch's values; [settled](AnyTrainer::settle).
    ///
    /// # Errors
    /// When the device fails.
    pub fn online(&self) -> anyhow::Result<std::borrow::Cow<'_, Branch<f32>>> {
        use std::borrow::Cow;
        Ok(on_either!(self, trainer => Cow::Borrowed(trainer.online()), Cow::Owned(trainer.online()?)))
    }

    /// The momentum branch's values, where there is one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn momentum(&self) -> anyhow::Result<Option<std::borrow::Cow<'_, Branch<f32>>>> {
        use std::borrow::Cow;
        Ok(on_either!(self, trainer => trainer.momentum().map(Cow::Borrowed), trainer.momentum()?.map(Cow::Owned)))
    }

    /// Whether the optimiser has taken every gradient.
    pub fn between_updates(&self) -> bool {
        on_either!(self, trainer => trainer.between_updates(), trainer.between_updates())
    }

    /// Trains on one batch. Gives the row of the step that has ended: this one, or the one before where a device is still at
    /// work; None where there is none yet.
    ///
    /// # Errors
    /// When the queue has too few rows of other images, or the device fails.
    pub fn step(&mut self, batch: &Batch<f32>) -> anyhow::Result<Option<StepRow>> {
        on_either!(self, trainer => trainer.step(batch).map(Some), trainer.step(batch))
    }

    /// `batch` where this trainer's device reads it, to be trained on by [`AnyTrainer::step_loaded`] as often as wanted.
    ///
    /// # Errors
    /// When the device's memory runs out.
    pub fn keep(&self, batch: Batch<f32>) -> anyhow::Result<Loaded> {
        Ok(on_either!(self, _trainer => Loaded::Views(batch), Loaded::Kept(_trainer.keep(&batch)?)))
    }

    /// Trains on one batch of a [`Loader`](super::Loader) for this trainer's device.
    ///
    /// # Errors
    /// As of [`AnyTrainer::step`].
    ///
    /// # Panics
    /// When the batch is for a GPU and this trainer is not.
    pub fn step_loaded(&mut self, loaded: &Loaded) -> anyhow::Result<Option<StepRow>> {
        match (self, loaded) {
            (trainer, Loaded::Views(batch)) => trainer.step(batch),
            #[cfg(feature = "cuda")]
            (AnyTrainer::Cuda(trainer), Loaded::Raw(batch)) => trainer.step(batch),
            #[cfg(feature = "cuda")]
            (AnyTrainer::Cuda(trainer), Loaded::Kept(batch)) => trainer.step(batch),
            #[cfg(any(test, feature = "cuda"))]
            (AnyTrainer::Cpu(_), Loaded::Raw(_) | Loaded::Kept(_)) => panic!("a batch for a GPU"),
        }
    }

    /// Everything that training depends on from here on, [settled](AnyTrainer::settle); either device goes on from it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self) -> anyhow::Result<Vec<NamedTensor<f32>>> {
        on_either!(self, trainer => Ok(trainer.state()), trainer.state())
    }

    /// Goes on from what [`AnyTrainer::state`] gave.
    ///
    /// # Errors
    /// When the device fails.
    pub fn restore(&mut self, state: &[NamedTensor<f32>]) -> anyhow::Result<()> {
        on_either!(self, trainer => trainer.restore(state), trainer.restore(state)?);
        Ok(())
    }

    /// A line on how loss scaling went; None where there is none.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scaling(&self) -> anyhow::Result<Option<String>> {
        match self {
            AnyTrainer::Cpu(_) => Ok(None),
            #[cfg(feature = "cuda")]
            AnyTrainer::Cuda(trainer) => Ok(trainer.scaling()?.map(|s| {
                format!("loss scale {}; {} of {} updates skipped by overflow", s.scale, s.skipped, s.skipped + s.taken)
            })),
        }
    }
}

//! The device of the process. The command line chooses it once.

use std::{fmt, str::FromStr, sync::OnceLock};

use super::{Feed, Optimize, Precision};
use crate::{
    backend::Host,
    ops::{conv2d::cuda::Math, cuda, matmul},
    ranks::{Ranks, launcher},
};

/// A device that trains in f32 or a lower precision.
pub trait Trains: Optimize<Real = f32> + Feed {}

impl<B: Optimize<Real = f32> + Feed> Trains for B {}

/// Work that runs on any device.
pub trait OnDevice {
    type Output;

    /// Does the work on `on`.
    fn run<B: Trains>(self, on: B) -> Self::Output;
}

/// A device. Another device computes the same artifacts up to rounding, so keys do not hold it. Only the key of a training in
/// bf16 holds the [unit](Device::bf16_unit) that multiplies bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// An error for a device that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--device {device}: {why}\n  help: `snclr doctor` lists the usable devices; --device cpu always works")]
pub struct DeviceError {
    pub device: Device,
    pub why: String,
}

/// The error message of a build without the `cuda` feature.
pub const NOT_BUILT: &str = "this build has no CUDA support; build it with --features cuda (docs/cuda.md)";

static CHOSEN: OnceLock<Device> = OnceLock::new();

impl Device {
    /// Makes this the device of the process.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn choose(self) -> Result<(), DeviceError> {
        self.check()?;
        let _ = CHOSEN.set(self);
        Ok(())
    }

    /// The device of the process.
    pub fn chosen() -> Self {
        CHOSEN.get().copied().unwrap_or_default()
    }

    /// Does some work on the device, with encoders that compute in `precision`.
    ///
    /// # Errors
    /// When the device cannot be used, or lacks this precision.
    pub fn run<W: OnDevice>(self, precision: Precision, work: W) -> anyhow::Result<W::Output> {
        match self {
            Device::Cpu => {
                if let Some(name) = precision.of_gpus() {
                    anyhow::bail!(
                        "precision: {name} needs a GPU; add --device cuda:0, or use precision: f32 (--set precision=f32)"
                    );
                }
                Ok(work.run(Host::<f32>::among(Ranks::chosen())))
            }
            Device::Cuda(index) => {
                self.check()?;
                driver::run(index, math(precision), Ranks::chosen(), work)
            }
        }
    }

    /// The unit that multiplies bf16 on this device; None if the device multiplies in f32 instead. Each kind of unit adds in its
    /// own order, so results differ by rounding.
    pub fn bf16_unit(self) -> Option<&'static str> {
        match self {
            Device::Cpu => matmul::bf16_unit(),
            Device::Cuda(_) => Some("GPU"),
        }
    }

    /// The GPU; None for the CPU.
    ///
    /// # Errors
    /// When the GPU cannot be used.
    pub fn gpu(self) -> anyhow::Result<Option<cuda::Gpu>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Cuda(index) => {
                self.check()?;
                driver::open(index).map(Some)
            }
        }
    }

    /// Name of the GPU, and the bytes of its memory that all processes use; None on the CPU.
    pub fn in_use(self) -> Option<(String, usize)> {
        match self {
            Device::Cpu => None,
            Device::Cuda(index) => driver::in_use(index),
        }
    }

    /// The device, and the library that computes its products if there is one, e.g. `cuda:0, cuBLASLt 130100`: what the bits of
    /// results depend on.
    pub fn with_library(self) -> String {
        let library = if self == Device::Cpu { None } else { driver::library() };
        library.map_or_else(|| self.to_string(), |library| format!("{self}, {library}"))
    }

    /// A description of the device: for a GPU its model. Empty if the device cannot be used.
    pub fn describe(self) -> String {
        match self {
            Device::Cpu => "cpu".into(),
            Device::Cuda(index) => found_cuda().ok().and_then(|found| found.into_iter().nth(index)).unwrap_or_default(),
        }
    }

    /// Checks that the device can be used.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(self) -> Result<(), DeviceError> {
        match self {
            Device::Cpu => Ok(()),
            Device::Cuda(index) => {
                let usable = found_cuda().and_then(|devices| match devices.len() {
                    n if index < n => Ok(()),
                    1 => Err("there is only cuda:0".into()),
                    n => Err(format!("there are only cuda:0 to cuda:{}", n - 1)),
                });
                usable.map_err(|why| DeviceError { device: self, why })
            }
        }
    }
}

/// The arithmetic of encoders on a GPU.
fn math(precision: Precision) -> Math {
    match precision {
        Precision::F32 => Math::F32,
        Precision::Tf32 => Math::Tf32,
        Precision::F16 => Math::F16,
        Precision::Bf16 => Math::Bf16,
    }
}

/// The part that needs the CUDA driver.
#[cfg(feature = "cuda")]
mod driver {
    #[cfg(feature = "nccl")]
    use std::sync::{Arc, Mutex, PoisonError};

    #[cfg(feature = "nccl")]
    use anyhow::anyhow;
    use dfdx::prelude::Cuda;

    use super::{Math, OnDevice, Ranks};
    use crate::{
        backend::{Gpu, gpu::Exchange},
        ops::{
            cuda::{self, nvidia},
            tensor::cuda as tensors,
        },
    };

    pub fn run<W: OnDevice>(index: usize, math: Math, ranks: Ranks, work: W) -> anyhow::Result<W::Output> {
        let cuda = tensors::open(index)?;
        let exchange = exchange(&cuda, ranks)?;
        Ok(work.run(Gpu::new(tensors::gpu(&cuda)?, cuda, math).among(exchange)))
    }

    /// Connects the GPUs of all ranks through their hosts.
    #[cfg(not(feature = "nccl"))]
    fn exchange(_: &Cuda, ranks: Ranks) -> anyhow::Result<Exchange> {
        Ok(Exchange::through_hosts(ranks))
    }

    /// Connects the GPUs of all ranks by NCCL. The ranks join at the first call, and later calls use the same connection. The
    /// first rank sends NCCL's id to the others through the hosts.
    #[cfg(feature = "nccl")]
    fn exchange(cuda: &Cuda, ranks: Ranks) -> anyhow::Result<Exchange> {
        static JOINED: Mutex<Option<Arc<dyn cuda::Wire>>> = Mutex::new(None);
        if ranks.is_alone() {
            return Ok(Exchange::default());
        }
        let mut joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner);
        let wire = match &*joined {
            Some(wire) => wire.clone(),
            None => {
                let id = if ranks.is_first() { nvidia::nccl::id()?.to_vec() } else { Vec::new() };
                let id = ranks
                    .broadcast(id)
                    .try_into()
                    .map_err(|_| anyhow!("the first rank uses another version of NCCL"))?;
                let wire = tensors::join_by_nccl(cuda, [ranks.rank(), ranks.size()], id)?;
                joined.insert(wire).clone()
            }
        };
        Ok(Exchange::by(ranks, wire))
    }

    pub fn open(index: usize) -> anyhow::Result<cuda::Gpu> {
        Ok(tensors::gpu(&tensors::open(index)?)?)
    }

    pub fn in_use(index: usize) -> Option<(String, usize)> {
        Some((nvidia::devices().ok()?.into_iter().nth(index)?.name, nvidia::memory_in_use()?))
    }

    pub fn library() -> Option<String> {
        nvidia::library()
    }

    pub fn found() -> Result<Vec<String>, String> {
        let devices = nvidia::devices().map_err(|error| error.to_string())?;
        let text = |d: &nvidia::Device| {
            let (major, minor) = (d.capability / 10, d.capability % 10);
            format!("{}, compute capability {major}.{minor}, {:.0} GB", d.name, d.memory as f64 / 1e9)
        };
        Ok(devices.iter().map(text).collect())
    }
}

/// The same functions in a build without CUDA. They find no GPU.
#[cfg(not(feature = "cuda"))]
mod driver {
    use super::{Math, NOT_BUILT, OnDevice, Ranks};
    use crate::ops::cuda;

    pub fn run<W: OnDevice>(_: usize, _: Math, _: Ranks, _: W) -> anyhow::Result<W::Output> {
        anyhow::bail!(NOT_BUILT)
    }

    pub fn open(_: usize) -> anyhow::Result<cuda::Gpu> {
        anyhow::bail!(NOT_BUILT)
    }

    pub fn in_use(_: usize) -> Option<(String, usize)> {
        None
    }

    pub fn library() -> Option<String> {
        None
    }

    pub fn found() -> Result<Vec<String>, String> {
        Err(NOT_BUILT.into())
    }
}

/// A description of each GPU, or the reason why there is none.
///
/// # Errors
/// When the feature, the driver or a device is missing.
pub fn found_cuda() -> Result<Vec<String>, String> {
    driver::found()
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let index = |number: &str| number.parse().ok().filter(|index| *index < 64);
        match text.strip_prefix("cuda") {
            None if text == "cpu" => Some(Device::Cpu),
            // Each rank of a machine has its own GPU, as with torchrun.
            Some("") => Some(Device::Cuda(launcher::local_rank_here())),
            Some(rest) => rest.strip_prefix(':').and_then(index).map(Device::Cuda),
            None => None,
        }
        .ok_or_else(|| "no such device; use cpu, cuda, or cuda:N with N from 0 to 63".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_printed_alike() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["tpu", "cuda:", "cuda:x", "cuda:99", "cuda0"] {
            assert!(wrong.parse::<Device>().unwrap_err().contains("use cpu, cuda, or cuda:N"), "{wrong}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_why() {
        assert_eq!(Device::Cpu.check(), Ok(()));
        let error = Device::Cuda(63).check().unwrap_err().to_string();
        assert!(error.starts_with("--device cuda:63: ") && error.contains("snclr doctor"), "{error}");
    }
}

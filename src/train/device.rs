//! The device that computes: chosen once, by the command line, for the whole process.

use std::{fmt, str::FromStr, sync::OnceLock};

/// A device. It is no part of any key: the same spec gives the same artifacts up to rounding, which differs between
/// devices as it does between kinds of CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// A device that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--device {device}: {why}\n  help: `snclr doctor` tells which devices are usable; --device cpu always is")]
pub struct DeviceError {
    pub device: Device,
    pub why: String,
}

/// Why a build without the feature has no GPU.
pub const NOT_BUILT: &str = "this build has no CUDA support; build it with --features cuda (docs/cuda.md)";

static CHOSEN: OnceLock<Device> = OnceLock::new();

impl Device {
    /// Makes it the process's device.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn choose(self) -> Result<(), DeviceError> {
        self.check()?;
        let _ = CHOSEN.set(self);
        Ok(())
    }

    /// The process's device.
    pub fn chosen() -> Self {
        CHOSEN.get().copied().unwrap_or_default()
    }

    /// Whether it can be used.
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

/// What is known of each GPU, for people; or why there is none.
///
/// # Errors
/// When there is no feature, no driver or no device.
pub fn found_cuda() -> Result<Vec<String>, String> {
    #[cfg(feature = "cuda")]
    {
        let devices = crate::ops::cuda::nvidia::devices().map_err(|error| error.to_string())?;
        let text = |d: &crate::ops::cuda::nvidia::Device| {
            let (major, minor) = (d.capability / 10, d.capability % 10);
            format!("{}, compute capability {major}.{minor}, {:.0} GB", d.name, d.memory as f64 / 1e9)
        };
        Ok(devices.iter().map(text).collect())
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(NOT_BUILT.into())
    }
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
        let index = |text: &str| text.parse().ok().filter(|index| *index < 64);
        match text.strip_prefix("cuda") {
            None if text == "cpu" => Ok(Device::Cpu),
            Some("") => Ok(Device::Cuda(0)),
            Some(rest) if rest.strip_prefix(':').and_then(index).is_some() => {
                Ok(Device::Cuda(rest.strip_prefix(':').and_then(index).unwrap_or_default()))
            }
            _ => Err("no such device; use cpu, or cuda:N with N from 0".into()),
        }
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
            assert!(wrong.parse::<Device>().unwrap_err().contains("use cpu, or cuda:N"), "{wrong}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_why() {
        assert_eq!(Device::Cpu.check(), Ok(()));
        let error = Device::Cuda(63).check().unwrap_err().to_string();
        assert!(error.starts_with("--device cuda:63: ") && error.contains("snclr doctor"), "{error}");
    }
}

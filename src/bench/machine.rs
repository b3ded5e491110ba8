//! Describes the machine, and the memory that this process uses.

use serde::{Deserialize, Serialize};

use crate::{artifact::cpu_model, ops::simd::vector_unit, train::Device};

/// The machine that a figure was measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the CPU, as the CPU reports it.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Vector unit that the CPU kernels use.
    pub vector_unit: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Machine {
            cpu: cpu_model().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            vector_unit: vector_unit().to_owned(),
        }
    }
}

/// The GPU that a figure was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuUse {
    /// Name of the GPU, as its driver reports it.
    pub name: String,
    /// GPU memory in use in MB (10^6 bytes), including that of other processes. Memory pools release nothing, so this is the
    /// peak.
    pub memory_mb: f64,
}

impl GpuUse {
    /// The GPU of this process, once something has run on it; None on the CPU.
    pub fn here() -> Option<Self> {
        let (name, bytes) = Device::chosen().in_use()?;
        Some(GpuUse { name, memory_mb: bytes as f64 / 1e6 })
    }
}

/// Peak memory of this process so far in MB (10^6 bytes), from Linux's `VmHWM`; None on other systems.
pub fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<f64>().ok()? * 1024.0 / 1e6)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_stays_when_memory_is_given_back() {
        let before = peak_rss_mb().unwrap();
        drop(std::hint::black_box(vec![1u8; 300_000_000]));
        let after = peak_rss_mb().unwrap();
        assert!(before > 1.0 && after > 300.0 && after >= before, "{before} {after}");
    }
}

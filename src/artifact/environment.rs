//! The environment in which an artifact was made: program, machine and threads. It is not part of keys or content.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, System};

use super::Process;
use crate::train::Device;

/// Where an artifact was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of the program.
    pub snclr: String,
    /// Architecture and operating system that the program was built for, e.g. `x86_64-linux`.
    pub target: String,
    /// Name of the machine; missing in older manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Model of the CPU, as the CPU reports it.
    pub cpu: String,
    /// Worker threads.
    pub threads: u64,
    /// Device that computed the artifact, and its library for products if it has one.
    pub device: String,
}

impl Environment {
    /// The environment of this process.
    pub fn here() -> Self {
        Environment {
            snclr: env!("CARGO_PKG_VERSION").to_owned(),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            host: Some(Process::here().host().to_owned()),
            cpu: cpu_model().to_owned(),
            threads: rayon::current_num_threads() as u64,
            device: Device::chosen().with_library(),
        }
    }

    /// Machine and device, for people, e.g. `node7 (AMD EPYC, cpu)`.
    pub fn describe(&self) -> String {
        let host = self.host.as_deref().unwrap_or("another machine");
        format!("{host} ({}, {})", self.cpu, self.device)
    }

    /// Names and values of the fields that results may depend on, for people.
    pub fn fields(&self) -> [(&'static str, String); 5] {
        [
            ("snclr", self.snclr.clone()),
            ("target", self.target.clone()),
            ("cpu", self.cpu.clone()),
            ("threads", self.threads.to_string()),
            ("device", self.device.clone()),
        ]
    }
}

/// Model of the CPU; `unknown` where the system does not report it.
pub fn cpu_model() -> &'static str {
    static MODEL: OnceLock<String> = OnceLock::new();
    MODEL.get_or_init(|| {
        let mut system = System::new();
        system.refresh_cpu_list(CpuRefreshKind::nothing());
        let brand = system.cpus().first().map_or("", |cpu| cpu.brand()).trim();
        if brand.is_empty() { "unknown".to_owned() } else { brand.to_owned() }
    })
}

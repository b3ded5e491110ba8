//! CPU and memory in use by this process, for the live view.

use std::time::{Duration, Instant};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// The shortest time between two questions to the system.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// CPU and memory in use by this process, as of at most a second ago.
#[derive(Debug, Default)]
pub struct Usage {
    system: Option<System>,
    asked: Option<Instant>,
    text: String,
}

impl Usage {
    /// `cpu 195 %  memory 410 MB`; empty if the system does not say.
    pub fn text(&mut self) -> String {
        if self.asked.is_none_or(|at| at.elapsed() >= ASK_EVERY) {
            self.asked = Some(Instant::now());
            self.ask();
        }
        self.text.clone()
    }

    fn ask(&mut self) {
        let own = Pid::from_u32(std::process::id());
        let system = self.system.get_or_insert_with(System::new);
        let what = ProcessRefreshKind::nothing().with_cpu().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, what);
        if let Some(process) = system.process(own) {
            self.text = format!("cpu {:.0} %  memory {} MB", process.cpu_usage(), process.memory() / 1_000_000);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_told() {
        let text = Usage::default().text();
        let memory = text.split("memory ").nth(1).and_then(|rest| rest.strip_suffix(" MB")).expect("memory");
        assert!(memory.parse::<u64>().expect("a number") > 0, "{text}");
    }
}

//! Identifies the process that wrote a file, on any machine, and says whether it is still alive, as far as this machine can know.

use std::{fmt, fs, path::Path, sync::OnceLock};

use rustix::{io::Errno, process::Pid, system::uname};

use super::hash;

/// A process, distinguished from every other process of any machine and time. As text: `HOST-PLACE-PID.STARTED`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// Name of the machine, up to its first dot.
    host: String,
    /// Eight hexadecimal digits that identify the boot of the machine and the namespace of process ids (a container has its own).
    place: String,
    pid: u32,
    /// Start time in the system's clock ticks since the boot; 0 where the system does not report it.
    started: u64,
}

/// Whether a process is alive, as far as this machine can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Alive,
    Dead,
    /// The process belongs to another machine, boot or container.
    Unknown,
}

impl Process {
    /// This process.
    pub fn here() -> &'static Process {
        static HERE: OnceLock<Process> = OnceLock::new();
        HERE.get_or_init(|| {
            let (pid, started) = (std::process::id(), state(std::process::id()).map_or(0, |(_, started)| started));
            Process { host: host(), place: place(), pid, started }
        })
    }

    /// Parses the text of a process; None when it has another form.
    pub fn parse(text: &str) -> Option<Process> {
        let mut parts = text.rsplitn(3, '-');
        let (pid, started) = parts.next()?.split_once('.')?;
        let (pid, started) = (pid.parse().ok()?, started.parse().ok()?);
        let (place, host) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let plain =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        (plain(&host) && plain(&place)).then_some(Process { host, place, pid, started })
    }

    /// Whether the process is alive. Unlike a lock, a process of this machine is visible whatever the file system.
    pub fn life(&self) -> Life {
        let here = Process::here();
        if (&self.host, &self.place) != (&here.host, &here.place) {
            return Life::Unknown;
        }
        if self.pid == here.pid {
            return if self.started == here.started { Life::Alive } else { Life::Dead };
        }
        match state(self.pid) {
            Some((state, started)) if started == self.started && !"ZXx".contains(state) => Life::Alive,
            Some(_) => Life::Dead,
            // A system may hide processes of other users in `/proc`, but it still answers a test with signal 0.
            None => match Pid::from_raw(self.pid as i32).map(rustix::process::test_kill_process) {
                Some(Ok(()) | Err(Errno::PERM)) => Life::Alive,
                _ => Life::Dead,
            },
        }
    }

    /// Text for people: `process 4711`, or `process 4711 on node7` for a process of another machine.
    pub fn describe(&self) -> String {
        match self.host == Process::here().host {
            true => format!("process {}", self.pid),
            false => format!("process {} on {}", self.pid, self.host),
        }
    }

    /// Its process id on its machine.
    pub fn number(&self) -> u32 {
        self.pid
    }

    /// Name of its machine.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A process of this machine that cannot exist, for tests.
    #[cfg(test)]
    pub fn dead() -> Process {
        Process { pid: 4_000_001, ..Process::here().clone() }
    }

    /// A process of another machine, for tests.
    #[cfg(test)]
    pub fn elsewhere() -> Process {
        Process { host: "else-where".to_owned(), ..Process::here().clone() }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}-{}-{}.{}", self.host, self.place, self.pid, self.started)
    }
}

/// State letter and start time of a process of this machine, where Linux's `/proc` has them.
fn state(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The field before them is the process's name in brackets, and may itself hold blanks and brackets.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start field 22.
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn host() -> String {
    let name = uname().nodename().to_string_lossy().into_owned();
    let first = name.split('.').next().unwrap_or_default();
    let plain: String = first.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    // File names, which contain this name, are at most 255 bytes long.
    if plain.is_empty() { "unnamed".to_owned() } else { plain.chars().take(63).collect() }
}

fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let namespace = fs::read_link(Path::new("/proc/self/ns/pid"));
    let text = match (boot, namespace) {
        (Ok(boot), Ok(namespace)) => format!("{} {}", boot.trim(), namespace.display()),
        // Without these two, no other process can be recognised as one of the same place, so the text is unique to this process.
        _ => format!("{} {:?}", std::process::id(), std::time::SystemTime::now()),
    };
    hash::bytes(text.as_bytes())[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_back_and_its_life_is_known_on_its_own_machine() {
        let here = Process::here();
        assert_eq!(Process::parse(&here.to_string()).as_ref(), Some(here));
        assert_eq!(
            (here.life(), Process::dead().life(), Process::elsewhere().life()),
            (Life::Alive, Life::Dead, Life::Unknown)
        );
        assert_eq!(Process::parse(&Process::elsewhere().to_string()), Some(Process::elsewhere()));
        let rebooted = Process { place: "0123abcd".into(), ..here.clone() };
        assert_eq!(rebooted.life(), Life::Unknown);
        let earlier = Process { started: here.started + 1, ..here.clone() };
        assert_eq!(earlier.life(), Life::Dead, "its number was given again");
        for text in ["", "4711", "host-0123abcd-4711", "host-4711.5", "../x-0123abcd-4711.5", "-0123abcd-1.2"] {
            assert_eq!(Process::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_child_lives_until_its_end_even_before_anybody_waits_for_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let started = state(child.id()).unwrap().1;
        let process = Process { pid: child.id(), started, ..Process::here().clone() };
        assert_eq!(process.life(), Life::Alive);
        assert_eq!(Process { started: started + 1, ..process.clone() }.life(), Life::Dead);
        child.kill().unwrap();
        while state(child.id()).is_some_and(|(state, _)| state != 'Z') {
            std::thread::yield_now();
        }
        assert_eq!(process.life(), Life::Dead);
        child.wait().unwrap();
        assert_eq!(process.life(), Life::Dead);
    }
}

//! Starts a real Slurm for a test: a controller and two nodes on this machine.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::Scratch;

/// Lets only one Slurm run at a time: two would contend for the processors.
static ONE: Mutex<()> = Mutex::new(());

/// A running Slurm. It stops when this value is dropped.
pub struct Slurm {
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Slurm {
    /// Starts a Slurm. Where that fails, prints a line and returns None; with `SNCLR_REQUIRE_SLURM` it panics.
    pub fn start() -> Option<Slurm> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let slurm = Slurm { dir: tempfile::tempdir().expect("a folder"), _one: one };
        match slurm.up() {
            Ok(()) => Some(slurm),
            Err(why) => {
                let why = format!(
                    "no Slurm (apt-get install slurmctld slurmd slurm-client munge, and run as root): {why}\n{}",
                    slurm.logs()
                );
                assert!(std::env::var_os("SNCLR_REQUIRE_SLURM").is_none(), "{why}");
                println!("skipped: {why}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The path of the configuration file. Slurm's programs find it by the variable `SLURM_CONF`.
    pub fn conf(&self) -> PathBuf {
        self.path("slurm.conf")
    }

    fn logs(&self) -> String {
        let logs = fs::read_dir(self.path("log")).into_iter().flatten().flatten();
        logs.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.conf()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn up(&self) -> Result<(), String> {
        let said = |error: std::io::Error| error.to_string();
        for name in ["state", "spool", "log", "run"] {
            fs::create_dir(self.path(name)).map_err(said)?;
        }
        let output = Command::new("hostname").output().map_err(said)?;
        let host = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // Ports that are free now. Fixed ports could collide with another Slurm on this machine.
        let port = || Ok(TcpListener::bind("127.0.0.1:0").map_err(said)?.local_addr().map_err(said)?.port());
        let ports: Vec<u16> = (0..3).map(|_| port()).collect::<Result<_, String>>()?;
        let at = |name: &str| self.path(name).display().to_string();
        let nodes = [1, 2].map(|n| {
            format!("NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={} CPUs=2 RealMemory=1000\n", ports[n])
        });
        let config = format!(
            "ClusterName=t\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={}\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
             ReturnToService=2\nSlurmctldPidFile={}\nSlurmdPidFile={}/d.%n.pid\nSlurmdSpoolDir={}/%n\nStateSaveLocation={}\n\
             SlurmctldLogFile={}\nSlurmdLogFile={}/d.%n.log\n\
             SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1\nSelectType=select/cons_tres\n\
             SelectTypeParameters=CR_Core\nAccountingStorageType=accounting_storage/none\n\
             JobAcctGatherType=jobacct_gather/none\nMaxArraySize=10001\nKillWait=5\nMpiDefault=none\n{}\
             PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP\n",
            ports[0],
            at("run/munge.sock"),
            at("run/c.pid"),
            at("run"),
            at("spool"),
            at("state"),
            at("log/c.log"),
            at("log"),
            nodes.concat(),
        );
        fs::write(self.conf(), config).map_err(said)?;
        let key = self.path("munge.key");
        fs::write(&key, [7; 1024]).map_err(said)?;
        self.run("chmod", &["400", &key.display().to_string()])?;
        self.run("chmod", &["755", &self.dir.path().display().to_string()])?;
        let munged = format!(
            "--force --key-file={} --socket={} --pid-file={} --log-file={} --seed-file={}",
            at("munge.key"),
            at("run/munge.sock"),
            at("run/munged.pid"),
            at("log/munged.log"),
            at("run/seed")
        );
        self.run("munged", &munged.split(' ').collect::<Vec<_>>())?;
        self.run("slurmctld", &[])?;
        for node in ["n1", "n2"] {
            self.run("slurmd", &["-N", node])?;
        }
        let begun = Instant::now();
        while self.ask("sinfo", &["--noheader", "--format=%T"]).trim() != "idle" {
            if begun.elapsed() > Duration::from_secs(30) {
                return Err(format!("the nodes are {:?}", self.ask("sinfo", &[])));
            }
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Runs a program of Slurm to its end. It is an error if the program fails.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<(), String> {
        let status = self.command(program).args(args).status().map_err(|error| format!("{program}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("{program} {}: {status}", args.join(" "))) }
    }

    /// The output of a program of Slurm; empty if the program cannot be started.
    pub fn ask(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).stdout(Stdio::piped()).output();
        output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `snclr` with this Slurm and returns its output. It must succeed.
    #[track_caller]
    pub fn snclr(&self, scratch: &Scratch, args: &str) -> String {
        let output = scratch.command(args).env("SLURM_CONF", self.conf()).output().expect("the program");
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    pub fn json(&self, scratch: &Scratch, args: &str) -> Value {
        serde_json::from_str(&self.snclr(scratch, args)).expect("JSON")
    }

    /// Blocks until no job is left in the queue.
    #[track_caller]
    pub fn drain(&self, scratch: &Scratch) {
        let begun = Instant::now();
        while !self.ask("squeue", &["--noheader"]).trim().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(100), "{}{}", self.ask("squeue", &[]), printed(scratch));
            sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let _ = self.command("scontrol").arg("shutdown").status();
        if let Ok(pid) = fs::read_to_string(self.path("run/munged.pid")) {
            let _ = Command::new("kill").arg(pid.trim()).status();
        }
        // Jobs that still run end with their daemons. The daemons use the folder until then, so it must not be removed yet.
        sleep(Duration::from_millis(500));
    }
}

/// The output of the tasks of all submissions.
pub fn printed(scratch: &Scratch) -> String {
    let submissions = fs::read_dir(scratch.path("runs/cluster")).into_iter().flatten().flatten();
    let logs = submissions.flat_map(|dir| fs::read_dir(dir.path().join("logs")).into_iter().flatten().flatten());
    logs.map(|log| format!("{}:\n{}", log.path().display(), fs::read_to_string(log.path()).unwrap_or_default()))
        .collect()
}

//! A real Slurm: a controller and two nodes on this machine, for as long as a test has it.

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

/// One Slurm at a time: two would contend for the processors.
static ONE: Mutex<()> = Mutex::new(());

/// A running Slurm.
pub struct Slurm {
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Slurm {
    /// None, and a line, where there is no Slurm.
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

    /// Its configuration, which the variable `SLURM_CONF` names to its programs.
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
        // Free ones, as far as can be told: another Slurm may run here.
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

    /// A program of Slurm, which must succeed.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<(), String> {
        let status = self.command(program).args(args).status().map_err(|error| format!("{program}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("{program} {}: {status}", args.join(" "))) }
    }

    /// What a program of Slurm prints.
    pub fn ask(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).stdout(Stdio::piped()).output();
        output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The program with this Slurm, which must succeed.
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

    /// Waits until no job is left.
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
        // What jobs still run ends with their daemons, which look into their folder until then.
        sleep(Duration::from_millis(500));
    }
}

/// What the tasks of all submissions printed.
pub fn printed(scratch: &Scratch) -> String {
    let submissions = fs::read_dir(scratch.path("runs/cluster")).into_iter().flatten().flatten();
    let logs = submissions.flat_map(|dir| fs::read_dir(dir.path().join("logs")).into_iter().flatten().flatten());
    logs.map(|log| format!("{}:\n{}", log.path().display(), fs::read_to_string(log.path()).unwrap_or_default()))
        .collect()
}

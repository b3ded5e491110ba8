//! `snclr submit` and `snclr status` against a real Slurm: one controller and two nodes on this machine (Debian's packages slurmctld,
//! slurmd, slurm-client and munge). Without them these tests are skipped aloud, unless `SNCLR_REQUIRE_SLURM` is set.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Scratch, TINY, text};
use serde_json::{Value, json};

/// One Slurm at a time: two would contend for the processors.
static ONE: Mutex<()> = Mutex::new(());

/// A running Slurm.
struct Slurm {
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Slurm {
    /// None, and a line, where there is no Slurm.
    fn start() -> Option<Slurm> {
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

    fn logs(&self) -> String {
        let logs = fs::read_dir(self.path("log")).into_iter().flatten().flatten();
        logs.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.path("slurm.conf")).stdout(Stdio::null()).stderr(Stdio::null());
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
        fs::write(self.path("slurm.conf"), config).map_err(said)?;
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

    fn run(&self, program: &str, args: &[&str]) -> Result<(), String> {
        let status = self.command(program).args(args).status().map_err(|error| format!("{program}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("{program} {}: {status}", args.join(" "))) }
    }

    fn ask(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).stdout(Stdio::piped()).output();
        output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The program with this Slurm, which must succeed.
    #[track_caller]
    fn snclr(&self, scratch: &Scratch, args: &str) -> String {
        let output = scratch.command(args).env("SLURM_CONF", self.path("slurm.conf")).output().expect("the program");
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn json(&self, scratch: &Scratch, args: &str) -> Value {
        serde_json::from_str(&self.snclr(scratch, args)).expect("JSON")
    }

    /// Waits until no job is left.
    #[track_caller]
    fn drain(&self, scratch: &Scratch) {
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
fn printed(scratch: &Scratch) -> String {
    let submissions = fs::read_dir(scratch.path("runs/cluster")).into_iter().flatten().flatten();
    let logs = submissions.flat_map(|dir| fs::read_dir(dir.path().join("logs")).into_iter().flatten().flatten());
    logs.map(|log| format!("{}:\n{}", log.path().display(), fs::read_to_string(log.path()).unwrap_or_default()))
        .collect()
}

fn short() -> String {
    TINY.replace("epochs: 5\n", "epochs: 2\n").replace("train_images: 96", "train_images: 48")
}

const SWEEP: &str = "--sweep method.tau=0.1,0.2 --sweep knn.k=[3],[5] --threads 1";

/// Content of every artifact, by stage and key.
fn contents(runs: &Path) -> BTreeMap<String, String> {
    let mut contents = BTreeMap::new();
    for stage in fs::read_dir(runs.join("store")).expect("the store") {
        for artifact in fs::read_dir(stage.expect("a stage").path()).expect("artifacts") {
            let manifest = fs::read_to_string(artifact.expect("an artifact").path().join("manifest.json"));
            let manifest: Value = serde_json::from_str(&manifest.expect("a manifest")).expect("JSON");
            contents
                .insert(format!("{} {}", text(&manifest["stage"]), text(&manifest["key"])), text(&manifest["content"]));
        }
    }
    contents
}

#[test]
fn a_sweep_makes_each_stage_once_on_two_nodes_to_the_bits_of_one_machine() {
    let Some(slurm) = Slurm::start() else { return };
    let scratch = Scratch::new();
    scratch.write("short.yaml", short());
    let expected = scratch.json(&format!("run short.yaml --runs alone --json {SWEEP}"));

    let submitted = slurm.json(&scratch, &format!("submit short.yaml --json {SWEEP}"));
    // Data, two trainings and their embeddings, one control, two probes, four evaluations by kNN.
    let arrays = submitted["submitted"].as_array().expect("arrays").iter();
    let arrays: Vec<_> =
        arrays.map(|array| (text(&array["stage"]), array["tasks"].as_u64().expect("a number"))).collect();
    let named = [("data", 1), ("pretrain", 2), ("embed", 2), ("embed_random_init", 1), ("linear_probe", 2), ("knn", 4)];
    assert_eq!(arrays, named.map(|(stage, tasks)| (stage.to_owned(), tasks)));
    slurm.drain(&scratch);

    let status = slurm.json(&scratch, &format!("status short.yaml --json {SWEEP}"));
    assert_eq!((&status["points"], &status["points_done"]), (&json!(4), &json!(4)), "{}", printed(&scratch));
    assert_eq!(contents(&scratch.path("runs")), contents(&scratch.path("alone")));
    let all = printed(&scratch);
    assert_eq!(all.matches("ran 1 stage").count(), 12, "{all}");
    let runs = |json: &Value, list: &str| -> BTreeSet<String> {
        json[list].as_array().expect("a list").iter().map(|run| text(&run["run"])).collect()
    };
    assert_eq!(runs(&scratch.json("runs --json"), "runs"), runs(&expected, "points"));
    let again = slurm.snclr(&scratch, &format!("submit short.yaml {SWEEP}"));
    assert_eq!(again, "nothing to do: 12 stages of 4 points done\n");
}

#[test]
fn what_fails_or_is_stopped_is_submitted_again_and_harms_no_other() {
    let Some(slurm) = Slurm::start() else { return };
    let scratch = Scratch::new();
    scratch.write("long.yaml", TINY.replace("epochs: 5\n", "epochs: 200\n"));
    scratch.json("run long.yaml --runs alone --json --threads 1");
    // One of two points diverges.
    let sweep = "long.yaml --sweep optimizer.base_lr=0.1,1e30 --threads 1";
    scratch.write("cluster.yaml", "all: {cpus: 1, warning: 30}\n");
    let submit = || slurm.json(&scratch, &format!("submit {sweep} --cluster cluster.yaml --json"));
    submit();

    // Its training is stopped as a time limit or a preemption does it: it leaves a checkpoint, and asks to be started again.
    let at_work = |status: &Value| -> bool {
        let tasks = status["tasks"].as_array().expect("tasks").iter();
        tasks
            .filter(|task| task["stage"] == "pretrain")
            .any(|task| task["state"] == "running" && task["host"].is_string())
    };
    let status = || slurm.json(&scratch, &format!("status {sweep} --json"));
    let begun = Instant::now();
    while !at_work(&status()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}{}", status(), printed(&scratch));
        sleep(Duration::from_millis(100));
    }
    sleep(Duration::from_secs(1));
    slurm.run("scancel", &["--signal=TERM", "--name=tiny-pretrain-0"]).expect("a signal");
    let begun = Instant::now();
    while !printed(&scratch).contains("interrupted in pretrain after step") {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", printed(&scratch));
        sleep(Duration::from_millis(100));
    }
    // Slurm lets a task that was put back wait for two minutes; whoever does not want to wait submits again.
    sleep(Duration::from_secs(1));
    let waiting = slurm.ask("squeue", &["--noheader", "--name=tiny-pretrain-0", "--format=%T %r"]);
    assert!(waiting.contains("PENDING"), "{waiting}");
    slurm.run("scancel", &["--full", "--name=tiny-pretrain-0"]).expect("an end");
    slurm.drain(&scratch);
    submit();
    slurm.drain(&scratch);

    let status = status();
    assert_eq!(status["points_done"], 1, "{status}{}", printed(&scratch));
    let diverged: Vec<&Value> =
        status["tasks"].as_array().expect("tasks").iter().filter(|task| task["state"] == "diverged").collect();
    assert_eq!(diverged.len(), 1);
    assert!(text(&diverged[0]["why"]).contains("the loss is NaN"), "{status}");
    let (whole, stopped) = (contents(&scratch.path("alone")), contents(&scratch.path("runs")));
    assert!(whole.iter().all(|(key, content)| stopped.get(key) == Some(content)), "{whole:?} {stopped:?}");
    let again = slurm.snclr(&scratch, &format!("submit {sweep}"));
    let expected = "nothing to do: 6 stages of 2 points done, 4 not to be had: their training diverged\n";
    assert_eq!(again, expected);
    let shown = slurm.snclr(&scratch, &format!("status {sweep}"));
    assert!(shown.ends_with("1 of 2 points done\n") && shown.contains(": diverged: "), "{shown}");
}

#[test]
fn a_thousand_points_are_six_arrays_in_three_seconds() {
    let scratch = Scratch::new();
    let seeds: Vec<String> = (0..1000).map(|seed| seed.to_string()).collect();
    let begun = Instant::now();
    let printed = scratch.run(&format!("submit tiny.yaml --dry-run --sweep seed={}", seeds.join(",")));
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(printed.code, 0, "{}", printed.stderr);
    let last = printed.stdout.lines().last().expect("a line");
    // Without a Slurm to ask, an array ends at 1,000 tasks.
    assert_eq!(last, "would submit 5001 tasks in 6 arrays; 0 done");
    println!("{seconds:.2} s");
    assert!(!scratch.path("runs").exists());
}

#[test]
fn a_stage_alone_needs_its_inputs_and_nothing_else() {
    let scratch = Scratch::new();
    let many = scratch.run("run tiny.yaml --only knn --sweep seed=1,2");
    assert_eq!(many.code, 2);
    assert_eq!(many.stderr, "error: a stage is run of one point, and the spec has 2; choose one with --set\n");
    let missing = scratch.run("run tiny.yaml --only knn");
    assert_eq!(missing.code, 3);
    assert_eq!(
        missing.stderr,
        "error: stage knn cannot run yet: its input data is not there; run that first (--only data)\n"
    );
    for stage in ["data", "pretrain", "embed", "embed_random_init", "linear_probe"] {
        let run = scratch.json(&format!("run tiny.yaml --only {stage} --json"));
        assert_eq!(run["run"], Value::Null);
        assert_eq!(common::statuses(&run), BTreeMap::from([(stage.to_owned(), "ran".to_owned())]));
    }
    assert_eq!(scratch.json("runs --json"), json!({ "runs": [] }));
    // The last stage of all makes it a run.
    let last = scratch.json("run tiny.yaml --only knn --json");
    let whole = scratch.json("run tiny.yaml --json");
    assert_eq!(last["run"], whole["run"]);
    assert!(common::statuses(&whole).values().all(|status| status == "cached"));
    let again = scratch.json("run tiny.yaml --only pretrain --json");
    assert_eq!(common::statuses(&again), BTreeMap::from([("pretrain".to_owned(), "cached".to_owned())]));
}

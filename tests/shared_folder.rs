//! Tests of a runs folder that several machines share. Two FUSE mounts of one folder (Debian's package bindfs) stand for two
//! machines. Each mount caches names and attributes by itself, and locks reach the other mount or do not. Without bindfs these
//! tests print that they are skipped; with `SNCLR_REQUIRE_FUSE` they fail.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Scratch, TINY};
use serde_json::{Value, json};
use snclr::artifact::{Attempt, Lock, Store};

/// The environment variable with the two folders of the test `contend`: that of the lock, and that of its marks, joined by `|`.
const CONTENDED: &str = "SNCLR_TEST_CONTENDED";

/// How often each of three processes takes the lock.
const ACQUISITIONS: usize = 400;

/// A scratch directory with a folder and two mounts of it, `a` and `b`.
struct Machines {
    scratch: Scratch,
    mounted: Vec<PathBuf>,
}

impl Machines {
    /// Mounts the folder twice with `options` of bindfs, separated by blanks. If bindfs cannot mount, prints a line and returns
    /// None; with `SNCLR_REQUIRE_FUSE` it panics.
    fn with(options: &str) -> Option<Machines> {
        let mut machines = Machines { scratch: Scratch::new(), mounted: Vec::new() };
        let folder = machines.scratch.path("folder");
        for name in ["a", "b"] {
            let mount = machines.scratch.path(name);
            fs::create_dir_all(&folder).and_then(|()| fs::create_dir(&mount)).expect("folders");
            let mut command = Command::new("bindfs");
            command.args(["--multithreaded", "-o", "attr_timeout=3,entry_timeout=3"]);
            let output = command.args(options.split_whitespace()).args([&folder, &mount]).output();
            let problem = match output {
                Ok(output) if output.status.success() => {
                    machines.mounted.push(mount);
                    continue;
                }
                Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
                Err(error) => error.to_string(),
            };
            let why = format!("bindfs cannot mount (apt-get install bindfs fuse3): {problem}");
            assert!(std::env::var_os("SNCLR_REQUIRE_FUSE").is_none(), "{why}");
            println!("skipped: {why}");
            return None;
        }
        Some(machines)
    }

    /// Starts `args` with the runs folder on mount `a` or `b`. If the system permits it, the process has a host name of its own.
    fn start(&self, machine: &str, args: &str) -> Child {
        let line = format!("{args} --runs {machine}/runs");
        let mut command = match other_machines() {
            true => {
                let mut command = Command::new("unshare");
                let script = format!("hostname machine-{machine} && exec \"$0\" {line}");
                command.args(["--uts", "sh", "-c", &script, env!("CARGO_BIN_EXE_snclr")]);
                command.current_dir(self.scratch.path("."));
                command
            }
            false => self.scratch.command(&line),
        };
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program")
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for mount in &self.mounted {
            // A lazy unmount works even while a process uses the mount.
            let _ = Command::new("umount").arg("--lazy").arg(mount).status();
        }
    }
}

/// Whether the system permits a process with a host name of its own.
fn other_machines() -> bool {
    Command::new("unshare").args(["--uts", "true"]).output().is_ok_and(|output| output.status.success())
}

/// Takes the lock again and again, and checks that no other process holds it. The test below starts this one in processes of its
/// own; without the variable [`CONTENDED`] it does nothing.
#[test]
fn contend() {
    let Some(arguments) = std::env::var_os(CONTENDED) else { return };
    let (dir, truth) = arguments.to_str().and_then(|text| text.split_once('|')).expect("two folders");
    let mut taken = 0;
    while taken < ACQUISITIONS {
        let Attempt::Held(lock) = Lock::attempt(Path::new(dir), "x").expect("an attempt") else {
            sleep(Duration::from_micros(200));
            continue;
        };
        // The mark of the holder is in a folder that is not reached through the mounts, so no cache can hide it.
        let inside = Path::new(truth).join("inside");
        match fs::File::create_new(&inside) {
            Ok(_) => {
                sleep(Duration::from_micros(100));
                fs::remove_file(&inside).expect("the mark");
            }
            Err(_) => {
                drop(fs::File::create_new(Path::new(truth).join(format!("double-{}-{taken}", std::process::id()))))
            }
        }
        drop(lock);
        taken += 1;
    }
}

#[test]
fn where_locks_reach_the_other_mount_nobody_holds_one_twice() {
    let Some(machines) = Machines::with("--enable-lock-forwarding") else { return };
    let truth = machines.scratch.path("truth");
    fs::create_dir(&truth).expect("a folder");
    let contender = |mount: &str| {
        let arguments = format!("{}|{}", machines.scratch.path(mount).join("locks").display(), truth.display());
        let mut command = Command::new(std::env::current_exe().expect("the test"));
        command.args(["--exact", "contend", "--nocapture"]).env(CONTENDED, arguments).stdout(Stdio::null());
        command.spawn().expect("the test")
    };
    let contenders = ["a", "b", "a"].map(contender);
    for mut contender in contenders {
        assert!(contender.wait().expect("an end").success());
    }
    assert_eq!(fs::read_dir(&truth).expect("the folder").count(), 0, "somebody held it while another did");
}

/// A spec that takes a second.
fn short() -> String {
    TINY.replace("epochs: 5\n", "epochs: 2\n").replace("train_images: 96", "train_images: 48")
}

/// Waits for runs of one spec, asserts that all have the same metrics, and returns these.
#[track_caller]
fn all_come_to_the_same(runs: Vec<Child>) -> Value {
    let mut metrics: Option<Value> = None;
    for run in runs {
        let output = run.wait_with_output().expect("an end");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("damaged"), "{stderr}");
        let mut found: Value = serde_json::from_str(stdout.lines().last().expect("JSON")).expect("JSON");
        // Rates per second are the only metrics that depend on time.
        found["metrics"].as_object_mut().expect("metrics").retain(|name, _| !name.contains("second"));
        assert_eq!(*metrics.get_or_insert(found["metrics"].clone()), found["metrics"]);
    }
    metrics.expect("a run")
}

/// Asserts that the store of a runs folder holds one whole artifact of each stage, and that nothing else is left.
#[track_caller]
fn is_whole(scratch: &Scratch, runs: &str) {
    let verified = scratch.run(&format!("verify --runs {runs}"));
    assert_eq!(verified.code, 0, "{}", verified.stdout);
    assert!(verified.stdout.starts_with("all whole: 6 artifacts, 0 checkpoint files, 1 run, "), "{}", verified.stdout);
    let runs = scratch.path(runs);
    assert!(!runs.join("damaged").exists());
    for stage in fs::read_dir(runs.join("store")).expect("the store") {
        let stage = stage.expect("a stage").path();
        assert_eq!(fs::read_dir(&stage).expect("artifacts").count(), 1, "{}", stage.display());
    }
}

/// Starts `count` runs of one spec at once, half of them on each mount. Locks do not reach the other mount.
fn many_at_once(count: usize) {
    let Some(machines) = Machines::with("") else { return };
    machines.scratch.write("short.yaml", short());
    let run = |number: usize| {
        machines.start(["a", "b"][number % 2], "run short.yaml --json --threads 1 --checkpoint-every 0")
    };
    all_come_to_the_same((0..count).map(run).collect());
    is_whole(&machines.scratch, "folder/runs");
    let doctor = machines.scratch.run("doctor --runs a/runs");
    assert_eq!(doctor.code, 0, "{}", doctor.stdout);
    let expected = "warning  file system  fuse, perhaps shared: whether locks reach other machines cannot be told\n";
    assert!(doctor.stdout.contains(expected), "{}", doctor.stdout);
}

#[test]
fn where_locks_do_not_reach_the_other_mount_runs_harm_nothing() {
    many_at_once(6);
}

#[test]
#[ignore = "minutes; scripts/soak.sh runs it"]
fn soak_two_hundred_runs_at_once() {
    many_at_once(200);
}

/// A worst case that no file system reaches: a thread removes every lock file at once, so that every process gets every lock.
#[test]
fn where_locks_do_nothing_at_all_stages_are_computed_twice_and_nothing_is_lost() {
    let scratch = Scratch::new();
    scratch.write("short.yaml", short());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let locks = fs::read_dir(scratch.path("runs/locks")).into_iter().flatten().flatten();
                locks.for_each(|entry| drop(fs::remove_file(entry.path())));
                sleep(Duration::from_millis(1));
            }
        });
        let start = |_| {
            let mut command = scratch.command("run short.yaml --json --threads 1 --checkpoint-every 0");
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program")
        };
        let runs: Vec<Child> = (0..4).map(start).collect();
        // The flag is set even if the runs fail, because the other thread ends only then.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| all_come_to_the_same(runs)));
        done.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    is_whole(&scratch, "runs");
}

/// Runs `gc --yes` and sweeps on the other mount, `tries` times each, while a run is at work and after it was killed.
fn nothing_is_taken_away(tries: usize) {
    let Some(machines) = Machines::with("") else { return };
    if !other_machines() {
        println!("a name of machine of one's own cannot be had: both mounts are of one machine");
    }
    let long = TINY.replace("epochs: 5\n", "epochs: 100000\n");
    machines.scratch.write("long.yaml", long);
    let mut run = machines.start("a", "run long.yaml --json --checkpoint-every 0");
    let begun = Instant::now();
    let work = machines.scratch.path("folder/runs/work");
    while !fs::read_dir(&work).is_ok_and(|mut stages| stages.next().is_some()) {
        assert_eq!(run.try_wait().expect("a child"), None, "it ended too soon");
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint");
        sleep(Duration::from_millis(20));
    }
    let here = Store::open(&machines.scratch.path("b/runs"));
    let try_all = || {
        for _ in 0..tries {
            let cleaned = machines.scratch.json("gc --yes --json --runs b/runs");
            assert_eq!(cleaned["items"], json!([]), "{cleaned}");
            here.sweep().expect("a sweep");
        }
    };
    try_all();
    assert_eq!(run.try_wait().expect("a child"), None, "it lost something that it needed");
    run.kill().expect("SIGKILL");
    let output = run.wait_with_output().expect("an end");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("damaged"));
    if other_machines() {
        // This host cannot see that the process of another host was killed, so its work must stay.
        try_all();
        assert!(fs::read_dir(&work).is_ok_and(|mut stages| stages.next().is_some()));
        let runs = machines.scratch.json("runs --json --runs b/runs");
        assert_eq!(runs["runs"][0]["state"], "running");
    }
}

#[test]
fn nothing_that_another_machine_made_today_is_taken_away() {
    nothing_is_taken_away(15);
}

#[test]
#[ignore = "a minute; scripts/soak.sh runs it"]
fn soak_a_hundred_cleanings_take_nothing_away() {
    nothing_is_taken_away(100);
}

#[test]
fn a_bucket_is_refused() {
    let Some(machines) = Machines::with("-o subtype=gcsfuse") else { return };
    let expected = "fuse.gcsfuse, a bucket: folders cannot be renamed in one step";
    let run = machines.scratch.run("run tiny.yaml --runs a/runs");
    assert_eq!(run.code, 2, "{}", run.stderr);
    let text = format!(
        "error: a/runs lies on {expected}: an artifact could be seen half written; keep runs on a disk or a network file system (--runs)\n"
    );
    assert_eq!(run.stderr, text);
    assert!(!machines.scratch.path("folder/runs").exists());
    let doctor = machines.scratch.run("doctor --runs a/runs");
    assert_eq!(doctor.code, 1);
    assert!(doctor.stdout.contains(&format!("error    file system  {expected}\n")), "{}", doctor.stdout);
}

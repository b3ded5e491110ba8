//! Many ranks over MPI: any number of ranks gives the same bits, an impossible request gives one message, and all ranks end when
//! one ends.

mod common;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{
    Finished, METHODS, Scratch, checkpoints, mpirun::launcher, signal, slurm::Slurm, tiny_with,
    wait_for_another_checkpoint,
};
use rand::{RngExt, SeedableRng};

/// A lock that each test holds. Ranks that wait for each other keep all processors busy, and some tests have time limits.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The program with `args` on `ranks` ranks with one thread each. None if there is no launcher.
fn on_ranks(scratch: &Scratch, ranks: usize, args: &str) -> Option<Command> {
    let plain = scratch.command(&format!("{args} --threads 1"));
    let mut command = launcher(ranks)?;
    command.arg(plain.get_program()).args(plain.get_args()).current_dir(scratch.path(""));
    for (name, value) in plain.get_envs() {
        assert!(value.is_none(), "it is only taken away");
        command.env_remove(name);
    }
    Some(command)
}

fn finished(command: &mut Command) -> Finished {
    Finished::of(command.output().expect("the launcher starts"))
}

const RESNET: &str = "encoder.width_multiplier=0.125";
const VIT: &str = "encoder={arch: vit_tiny, patch_size: 8}";

/// Trains by method `i` on 1, 2 and 4 ranks, but on at most `most`, and compares the bits.
fn trains_to_the_same_bits(i: usize, encoder: &str, precision: &str, most: usize) {
    let (scratch, method) = (Scratch::new(), METHODS[i]);
    let spec = format!("{}.yaml", method.0);
    scratch.write(&spec, tiny_with(method, !i.is_multiple_of(3)));
    let mut alone: Option<BTreeMap<String, String>> = None;
    for ranks in [1, 2, 4].into_iter().filter(|ranks| *ranks <= most) {
        let runs = format!("runs-{ranks}");
        let Some(mut command) = on_ranks(&scratch, ranks, &format!("run {spec} --runs {runs} --json")) else { return };
        for setting in ["batch_size=32", "epochs=1", "health.knn_every_epochs=1", encoder] {
            command.args(["--set", setting]);
        }
        if method.0 == "swav" {
            command.args(["--set", "method.queue_length=64"]);
        }
        let ended = finished(command.args(["--set", &format!("precision={precision}")]));
        let what = format!("{}, {encoder}, {precision}, {ranks} ranks", method.0);
        assert_eq!(ended.code, 0, "{what}: {}", ended.stderr);
        let told = ended.stdout.lines().filter(|line| line.starts_with('{')).count();
        assert_eq!(told, 1, "the first rank alone talks");
        let contents = scratch.contents(&runs);
        assert_eq!(alone.get_or_insert_with(|| contents.clone()), &contents, "{what}");
    }
}

/// Every method is tested, with small crops, queues and several batches per update; ResNet and ViT; f32 and bf16. The first two
/// methods also train on four ranks.
#[test]
fn bits_do_not_depend_on_the_number_of_ranks() {
    let _alone = one_at_a_time();
    for i in 0..METHODS.len() {
        trains_to_the_same_bits(i, [RESNET, VIT][i % 2], ["f32", "bf16"][i / 2 % 2], if i < 2 { 4 } else { 2 });
    }
}

/// Every method is tested with each network in each precision.
#[test]
#[ignore = "takes minutes; scripts/soak.sh"]
fn soak_every_training() {
    let _alone = one_at_a_time();
    for i in 0..METHODS.len() {
        for encoder in [RESNET, VIT] {
            ["f32", "bf16"].into_iter().for_each(|precision| trains_to_the_same_bits(i, encoder, precision, 4));
        }
    }
}

/// MPI ranks on two Slurm nodes, which talk by TCP, and ranks that `srun` starts give the same bits as one process.
#[test]
fn tasks_of_slurm_are_ranks() {
    let Some(launcher) = launcher(4) else { return };
    let (_alone, scratch) = (one_at_a_time(), Scratch::new());
    let Some(slurm) = Slurm::start() else { return };
    let line = "run tiny.yaml --threads 1 --set batch_size=32";
    assert_eq!(scratch.run(&format!("{line} --runs alone")).code, 0);
    let open_mpi = launcher.get_args().any(|word| word == "--oversubscribe");
    // Open MPI's processes find each other by PMIx. Slurm runs one PMIx server for all nodes on the same machine.
    let starts: &[&str] = match open_mpi {
        true => &["salloc --nodes=2 --ntasks=4 LAUNCHER", "srun --mpi=pmix --nodes=1 --ntasks=2"],
        false => &["srun --mpi=pmi2 --nodes=2 --ntasks=4 --ntasks-per-node=2 --overcommit"],
    };
    for (i, start) in starts.iter().enumerate() {
        let plain = scratch.command(&format!("{line} --runs nodes-{i}"));
        let mut words = start.split(' ');
        let mut command = Command::new(words.next().expect("a program"));
        for word in words {
            match word {
                "LAUNCHER" => {
                    command.arg(launcher.get_program()).args(launcher.get_args());
                    // Open MPI accepts this option only once, so it is left out if SNCLR_MPIRUN has it.
                    let chosen = launcher.get_args().any(|word| word == "btl");
                    command.args(if chosen { &[][..] } else { &["--mca", "btl", "tcp,self"] })
                }
                _ => command.arg(word),
            };
        }
        command.envs(launcher.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.arg(plain.get_program()).args(plain.get_args()).current_dir(scratch.path(""));
        let ended = finished(command.env("SLURM_CONF", slurm.conf()));
        assert_eq!(ended.code, 0, "{start}: {}", ended.stderr);
        assert_eq!(scratch.contents(&format!("nodes-{i}")), scratch.contents("alone"), "{start}");
    }
}

/// After many steps the queue is the same on all ranks (a difference between ranks is an error) and the same as in one process.
#[test]
#[ignore = "takes minutes; scripts/soak.sh"]
fn soak_five_hundred_steps() {
    let (_alone, scratch) = (one_at_a_time(), Scratch::new());
    let line = "run tiny.yaml --checkpoint-every 0 --set batch_size=32 --set epochs=167";
    assert_eq!(scratch.run(&format!("{line} --runs alone")).code, 0);
    for ranks in [2, 4] {
        let Some(mut command) = on_ranks(&scratch, ranks, &format!("{line} --runs ranks-{ranks}")) else { return };
        let ended = finished(&mut command);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert_eq!(scratch.contents(&format!("ranks-{ranks}")), scratch.contents("alone"));
    }
}

/// Sixteen ranks, usually more than the machine has processors, share the search and the loss.
#[test]
#[ignore = "sixteen processes; scripts/soak.sh"]
fn soak_sixteen_ranks() {
    let (_alone, scratch) = (one_at_a_time(), Scratch::new());
    let line =
        "run tiny.yaml --set batch_size=128 --set data.train_images=256 --set method.queue_length=256 --set epochs=2";
    let Some(mut command) = on_ranks(&scratch, 16, &format!("{line} --runs sixteen")) else { return };
    let ended = finished(&mut command);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(scratch.run(&format!("{line} --runs alone")).code, 0);
    assert_eq!(scratch.contents("sixteen"), scratch.contents("alone"));
}

/// All ranks end with code 2, and the first rank prints the reason.
#[test]
fn ranks_that_do_not_fit_say_so_once() {
    let (_alone, scratch) = (one_at_a_time(), Scratch::new());
    let Some(mut command) = on_ranks(&scratch, 4, "run tiny.yaml") else { return };
    let told = |command: &mut Command, message: &str| {
        let begun = Instant::now();
        let ended = finished(command);
        assert_eq!((ended.code, ended.stderr.matches(message).count()), (2, 1), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("error: ").count(), 1, "{}", ended.stderr);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    };
    told(
        &mut command,
        "error: 4 ranks cannot share batches of 16 images, which are 2 parts\n  help: start 1 or 2 ranks",
    );
    let two = |args: &str| on_ranks(&scratch, 2, args).expect("a launcher");
    told(&mut two("run tiny.yaml --jobs 2"), "error: ranks work on one point at a time");
    if cfg!(not(feature = "cuda")) {
        told(&mut two("run tiny.yaml --device cuda"), ": this build has no CUDA support");
    }
    // An error in the spec is also printed once.
    let ended = finished(&mut two("run tiny.yaml --set batch_sice=4"));
    assert_eq!((ended.code, ended.stderr.matches("did you mean").count()), (2, 1), "{}", ended.stderr);
    // The second rank has another spec.
    let program = env!("CARGO_BIN_EXE_snclr");
    let mut differs = launcher(1).expect("a launcher");
    differs.args([program, "run", "tiny.yaml", ":", "-np", "1", program, "run", "tiny.yaml", "--set", "seed=2"]);
    told(differs.current_dir(scratch.path("")), "error: the ranks differ in their spec: ranks 0 | ranks 1");
    // The second rank has another program: a copy with one more byte at its end.
    let other = scratch.path("other");
    let mut bytes = std::fs::read(program).expect("the program");
    bytes.push(0);
    std::fs::write(&other, bytes).expect("another program");
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a program");
    let mut differs = launcher(1).expect("a launcher");
    differs.args([program, "run", "tiny.yaml", ":", "-np", "1"]).arg(&other).args(["run", "tiny.yaml"]);
    told(differs.current_dir(scratch.path("")), "error: the ranks differ in their program: ranks 0 | ranks 1");
    // Without a launcher, an incomplete set of its variables is an error.
    let mut half = scratch.command("run tiny.yaml");
    let ended = finished(half.env("RANK", "1"));
    assert_eq!(ended.code, 2, "{}", ended.stderr);
}

/// The process ids of a launcher's running ranks, in the order of ranks.
fn running(launcher: &Child) -> Vec<u32> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        let program = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        if !program.ends_with(env!("CARGO_BIN_EXE_snclr")) || !descends(id, launcher.id()) {
            continue;
        }
        let variables = environment.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
        let rank = variables.filter_map(|text| text.split_once('=')).find_map(|(name, value)| {
            ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].contains(&name).then(|| value.parse::<usize>().ok())?
        });
        rank.map(|rank| found.insert(rank, id));
    }
    found.into_values().collect()
}

/// Blocks until a launcher has `count` running ranks, and returns their process ids in the order of ranks.
fn ranks_of(launcher: &Child, count: usize) -> Vec<u32> {
    let begun = Instant::now();
    loop {
        let found = running(launcher);
        if found.len() == count {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{found:?}");
        sleep(Duration::from_millis(50));
    }
}

/// Whether the process `id` is a descendant of the process `from`, or that process itself.
fn descends(mut id: u32, from: u32) -> bool {
    while id > 1 && id != from {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        id = parent.unwrap_or(0);
    }
    id == from
}

/// Starts a long training and blocks until it has written a checkpoint. Returns the launcher and the ranks' process ids.
fn long_training(scratch: &Scratch, ranks: usize, runs: &str, more: &str) -> Option<(Child, Vec<u32>)> {
    let args = format!("run tiny.yaml --runs {runs} --checkpoint-every 0 --set batch_size=32 --set epochs=60 {more}");
    let mut command = on_ranks(scratch, ranks, &args)?;
    let before = checkpoints(&scratch.path(runs));
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the launcher starts");
    let ids = ranks_of(&child, ranks);
    wait_for_another_checkpoint(&scratch.path(runs), &before);
    Some((child, ids))
}

/// Waits until the launcher ends. Returns the time until then, its exit code and its output.
fn ends(child: Child) -> (Duration, Finished) {
    let begun = Instant::now();
    let ended = Finished::of(child.wait_with_output().expect("the launcher ends"));
    (begun.elapsed(), ended)
}

#[test]
fn a_rank_that_is_killed_ends_all_and_any_number_goes_on_to_the_same_bits() {
    let (_alone, scratch) = (one_at_a_time(), Scratch::new());
    let Some((child, ids)) = long_training(&scratch, 2, "killed", "") else { return };
    signal(ids[1], "KILL");
    let (took, ended) = ends(child);
    assert!(took < Duration::from_secs(10) && ended.code != 0, "{took:?}, code {}", ended.code);
    // A signal to a rank other than the first makes one checkpoint, and all ranks stop.
    let (child, ids) = long_training(&scratch, 4, "killed", "").expect("a launcher");
    signal(ids[3], "TERM");
    let (_, ended) = ends(child);
    assert_eq!(ended.code, 130, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("interrupted in pretrain after step").count(), 1, "{}", ended.stderr);
    let rest = "--set batch_size=32 --set epochs=60";
    let alone = scratch.run(&format!("run tiny.yaml --runs killed {rest}"));
    assert!(alone.code == 0 && alone.stderr.contains("resuming after step"), "{}", alone.stderr);
    assert_eq!(scratch.run(&format!("run tiny.yaml --runs whole {rest}")).code, 0);
    assert_eq!(scratch.contents("killed"), scratch.contents("whole"));
}

#[test]
fn a_rank_that_stops_ends_all_after_the_time_limit() {
    let (_alone, scratch) = (one_at_a_time(), Scratch::new());
    let limit = "--collective-timeout 2";
    let Some((child, ids)) = long_training(&scratch, 2, "stopped", limit) else { return };
    signal(ids[1], "STOP");
    let begun = Instant::now();
    while Path::new(&format!("/proc/{}", ids[0])).exists() {
        assert!(begun.elapsed() < Duration::from_secs(2 + 2), "the other rank waits for ever");
        sleep(Duration::from_millis(20));
    }
    // Open MPI takes a while to end a stopped process.
    let (took, ended) = ends(child);
    assert!(took < Duration::from_secs(8) && ended.code != 0, "{took:?}, code {}", ended.code);
    assert!(ended.stderr.contains("error: rank 0 of 2 has waited 2 s for another rank"), "{}", ended.stderr);
}

/// A hundred times a rank is killed at a random moment, and the training starts again with another number of ranks. Each training
/// that reaches its end gives the same bits as one process.
#[test]
#[ignore = "takes minutes; scripts/soak.sh"]
fn soak_a_hundred_killed_ranks() {
    let (_alone, scratch) = (one_at_a_time(), Scratch::new());
    let line = "run tiny.yaml --checkpoint-every 0 --set batch_size=32 --set epochs=30";
    assert_eq!(scratch.run(&format!("{line} --runs whole")).code, 0);
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let (mut kills, mut ends, mut slowest) = (0, 0, Duration::ZERO);
    while kills < 100 || ends == 0 {
        let runs = format!("killed-{ends}");
        let ranks = 1 << random.random_range(0..3);
        let Some(mut command) = on_ranks(&scratch, ranks, &format!("{line} --runs {runs}")) else { return };
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the launcher starts");
        sleep(Duration::from_millis(random.random_range(200..4000)));
        let found = if kills < 100 { running(&child) } else { Vec::new() };
        if found.is_empty() {
            assert!(child.wait().expect("it ends").success(), "{ranks} ranks");
            assert_eq!(scratch.contents(&runs), scratch.contents("whole"));
            ends += 1;
            continue;
        }
        let one = found[random.random_range(0..found.len())];
        // The rank may have ended just now, so a failed kill is no error.
        let _ = Command::new("kill").args(["-KILL", &one.to_string()]).status();
        let begun = Instant::now();
        child.wait().expect("it ends");
        slowest = slowest.max(begun.elapsed());
        assert!(slowest < Duration::from_secs(10), "{slowest:?}");
        kills += 1;
    }
    println!("{kills} kills, {ends} trainings that came to their end, all ended at most {slowest:?} after a kill");
}

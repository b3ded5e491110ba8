//! Many ranks over TCP, started with PyTorch's environment variables as torchrun does. `tests/mpi.rs` tests ranks over MPI.

mod common;

use std::{
    net::TcpListener,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use common::{Finished, METHODS, Scratch, checkpoints, complaint, signal, tiny_with, wait_for_another_checkpoint};
use expect_test::expect;

/// Starts the program with `args` on `size` ranks with one thread each.
fn on_ranks(scratch: &Scratch, size: usize, args: &str) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let started = (0..size).map(|rank| {
        let mut command = scratch.command(&format!("{args} --threads 1"));
        let variables = [("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", size)];
        command.envs(variables.map(|(name, number)| (name, number.to_string())));
        command.envs([("MASTER_ADDR", "localhost"), ("MASTER_PORT", &port.to_string())]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
    });
    started.collect()
}

/// Waits until all ranks have ended. Returns the output and exit code of each.
fn ended(ranks: Vec<Child>) -> Vec<Finished> {
    ranks.into_iter().map(|rank| Finished::of(rank.wait_with_output().expect("it ends"))).collect()
}

fn codes(ranks: &[Finished]) -> Vec<i32> {
    ranks.iter().map(|rank| rank.code).collect()
}

/// The error lines that the ranks printed.
fn errors(ranks: &[Finished]) -> Vec<&str> {
    ranks.iter().flat_map(|rank| rank.stderr.lines()).filter(|line| line.starts_with("error: ")).collect()
}

#[test]
fn bits_do_not_depend_on_the_number_of_ranks() {
    let scratch = Scratch::new();
    for (i, method) in METHODS.into_iter().enumerate().take(2) {
        let spec = format!("{}.yaml", method.0);
        scratch.write(&spec, tiny_with(method, true));
        let line = format!("run {spec} --set batch_size=32 --set epochs=1 --json");
        assert_eq!(scratch.run(&format!("{line} --runs alone-{i}")).code, 0);
        for size in [2, 4] {
            let runs = format!("ranks-{i}-{size}");
            let ranks = ended(on_ranks(&scratch, size, &format!("{line} --runs {runs}")));
            assert!(ranks.iter().all(|rank| rank.code == 0), "{:?}", errors(&ranks));
            let told: Vec<usize> = ranks.iter().map(|rank| rank.stdout.lines().count()).collect();
            assert_eq!(told[1..], vec![0; size - 1], "the first rank alone talks");
            assert_eq!(scratch.contents(&runs), scratch.contents(&format!("alone-{i}")), "{}, {size} ranks", method.0);
        }
    }
}

#[test]
fn ranks_that_do_not_fit_say_so_once() {
    let scratch = Scratch::new();
    let told = |size: usize, args: &str, message: &str| {
        let begun = Instant::now();
        let ranks = ended(on_ranks(&scratch, size, args));
        assert_eq!((codes(&ranks), errors(&ranks)), (vec![2; size], vec![message]));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    };
    told(4, "run tiny.yaml", "error: 4 ranks cannot share batches of 16 images, which are 2 parts");
    told(2, "run tiny.yaml --jobs 2", "error: ranks work on one point at a time");
    let alone = |variables: &[(&str, &str)]| {
        let mut command = scratch.command("run tiny.yaml --collective-timeout 1");
        let ended = Finished::of(command.envs(variables.iter().copied()).output().expect("the program starts"));
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        ended.stderr
    };
    let two = [("RANK", "0"), ("WORLD_SIZE", "2")];
    expect![[r#"
        error: RANK is set and WORLD_SIZE is not: this looks like a process of torchrun, but not how many there are
          help: set both, or none to run alone
    "#]]
    .assert_eq(&alone(&two[..1]));
    expect![[r#"
        error: torchrun has started 2 processes, and MASTER_ADDR is not set: it says where the first one listens
          help: MASTER_ADDR is the first one's machine, MASTER_PORT a free port there (docs/how-to/many-ranks.md)
    "#]]
    .assert_eq(&alone(&two));
    let nobody = [("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")];
    let second = [("RANK", "1"), ("WORLD_SIZE", "2")];
    assert!(alone(&[second, nobody].concat()).starts_with("error: rank 1 of 2 cannot reach rank 0 at localhost:1: "));
}

/// Starts a long training on `size` ranks and blocks until there is a new checkpoint.
fn long_training(scratch: &Scratch, size: usize, more: &str) -> Vec<Child> {
    let runs = scratch.path("runs");
    let before = checkpoints(&runs);
    let args = format!("run tiny.yaml --checkpoint-every 0 --set batch_size=32 --set epochs=60 {more}");
    let ranks = on_ranks(scratch, size, &args);
    wait_for_another_checkpoint(&runs, &before);
    ranks
}

#[test]
fn a_rank_that_ends_ends_all_and_any_number_goes_on_to_the_same_bits() {
    let scratch = Scratch::new();
    for killed in [1, 0] {
        let ranks = long_training(&scratch, 2, "");
        let begun = Instant::now();
        signal(ranks[killed].id(), "KILL");
        let ranks = ended(ranks);
        assert!(begun.elapsed() < Duration::from_secs(10) && ranks[1 - killed].code == 1, "{:?}", codes(&ranks));
        assert_eq!(errors(&ranks), [format!("error: rank {killed} of 2 is gone")]);
    }
    let ranks = long_training(&scratch, 2, "--collective-timeout 1");
    signal(ranks[1].id(), "STOP");
    let (begun, stopped) = (Instant::now(), ranks[1].id());
    let mut ranks = ranks.into_iter();
    let first = ended(ranks.by_ref().take(1).collect());
    assert!(begun.elapsed() < Duration::from_secs(1 + 2), "{:?}", begun.elapsed());
    assert_eq!((codes(&first), errors(&first).len()), (vec![1], 1));
    expect![[r#"
        error: rank 0 of 2 has waited 1 s for another rank, which has stopped or is far behind
          help: the same command, with any number of ranks, goes on from the last checkpoint; --collective-timeout SECONDS allows for more
    "#]]
    .assert_eq(complaint(&first[0].stderr));
    signal(stopped, "KILL");
    ended(ranks.collect());
    // A signal to a rank other than the first makes one checkpoint, and all ranks stop.
    let ranks = long_training(&scratch, 4, "");
    signal(ranks[3].id(), "TERM");
    let ranks = ended(ranks);
    assert_eq!(codes(&ranks), vec![130; 4], "{:?}", errors(&ranks));
    let told = ranks.iter().filter(|rank| rank.stderr.contains("interrupted in pretrain after step"));
    assert_eq!(told.count(), 1);
    let rest = "--set batch_size=32 --set epochs=60";
    let alone = scratch.run(&format!("run tiny.yaml {rest}"));
    assert!(alone.code == 0 && alone.stderr.contains("resuming after step"), "{}", alone.stderr);
    assert_eq!(scratch.run(&format!("run tiny.yaml --runs whole {rest}")).code, 0);
    assert_eq!(scratch.contents("runs"), scratch.contents("whole"));
}

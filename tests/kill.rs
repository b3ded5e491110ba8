//! Killed at any moment, a run that is started again ends in the same bits as one that was never disturbed.

mod common;

use std::{thread::sleep, time::Duration};

use common::Scratch;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rounds of killing; each kills a run several times before it lets it end.
const ROUNDS: u64 = 4;
/// Kills per round.
const KILLS: usize = 8;

#[test]
fn a_killed_run_ends_in_the_same_bits() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --runs whole --json");
    let expected = scratch.contents("whole");
    let start = std::time::Instant::now();
    scratch.json("run tiny.yaml --runs timed --json");
    let whole = start.elapsed();

    let mut random = ChaCha8Rng::seed_from_u64(7);
    for round in 0..ROUNDS {
        let runs = format!("killed{round}");
        // Checkpoints at every opportunity, so that kills also hit while one is being written.
        let args = format!("run tiny.yaml --runs {runs} --json --checkpoint-every 0 --threads {}", 1 + round % 3);
        for _ in 0..KILLS {
            let mut child = scratch.command(&args).stderr(std::process::Stdio::null()).spawn().expect("the program");
            sleep(whole.mul_f64(random.random_range(0.0..0.6)).max(Duration::from_millis(1)));
            child.kill().expect("SIGKILL");
            child.wait().expect("an end");
        }
        scratch.json(&args);
        assert_eq!(scratch.contents(&runs), expected, "round {round}");
        assert_eq!(
            std::fs::read_dir(scratch.path(&runs).join("work")).map_or(0, Iterator::count),
            0,
            "work is left behind"
        );
    }
}

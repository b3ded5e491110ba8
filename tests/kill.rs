//! A run that is killed at random moments and started again ends in the same bits as an undisturbed one.

mod common;

use std::{
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use common::{METHODS, Scratch, tiny_with};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How often each run is killed before it may end.
const KILLS: usize = 6;

#[test]
fn a_killed_run_ends_in_the_same_bits_whatever_the_method() {
    let scratch = Scratch::new();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for (round, method) in METHODS.into_iter().enumerate() {
        let name = method.0;
        scratch.write("spec.yaml", tiny_with(method, round % 2 == 1));
        let whole = format!("whole-{name}");
        let start = Instant::now();
        scratch.json(&format!("run spec.yaml --runs {whole} --json"));
        let duration = start.elapsed();

        let killed = format!("killed-{name}");
        // A checkpoint is saved at every opportunity, so that some kills hit while one is being written.
        let args = format!("run spec.yaml --runs {killed} --json --checkpoint-every 0 --threads {}", 1 + round % 3);
        for _ in 0..KILLS {
            let mut child =
                scratch.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
            sleep(duration.mul_f64(random.random_range(0.0..0.6)).max(Duration::from_millis(1)));
            child.kill().expect("SIGKILL");
            child.wait().expect("an end");
        }
        scratch.json(&args);
        assert_eq!(scratch.contents(&killed), scratch.contents(&whole), "{name}");
        let left = std::fs::read_dir(scratch.path(&killed).join("work")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{name}: work is left behind");
    }
}

//! Ctrl-C saves a checkpoint and exits with 130; divergence exits with 4; the same command goes on, or says what to try.

mod common;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use common::Scratch;

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json --runs whole --set epochs=60");
    let mut child =
        scratch.command("run tiny.yaml --set epochs=60").stderr(Stdio::piped()).spawn().expect("the program");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    // The line that announces the training.
    lines
        .by_ref()
        .find(|line| line.as_ref().is_ok_and(|l| l.contains("learning rate")))
        .expect("training")
        .expect("a line");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("an end").code(), Some(130), "{rest:?}");
    let last = rest.last().expect("a last line");
    assert!(last.contains("run the same command again"), "{last}");

    let resumed = scratch.run("run tiny.yaml --set epochs=60");
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.stderr.contains("resuming after step"), "{}", resumed.stderr);
    assert_eq!(scratch.contents("runs"), scratch.contents("whole"));
}

#[test]
fn divergence_says_what_to_try() {
    let scratch = Scratch::new();
    let finished = scratch.run("run tiny.yaml --set optimizer.base_lr=1e30 --set schedule.warmup_epochs=0");
    assert_eq!(finished.code, 4, "{}", finished.stderr);
    assert!(finished.stderr.contains("training diverged"), "{}", finished.stderr);
    assert!(finished.stderr.contains("what to try: a lower optimizer.base_lr"), "{}", finished.stderr);
}

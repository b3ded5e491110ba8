//! On a terminal a run shows a live view and erases it at the end; elsewhere it prints plain lines.
#![cfg(target_os = "linux")]

mod common;

use std::process::{Command, Stdio};

use common::Scratch;

/// The output of the program on a pseudo-terminal, which the program `script` provides. Every Debian has it.
fn on_a_terminal(scratch: &Scratch, args: &str, no_color: &str) -> String {
    let line = format!("stty cols 140 rows 40; {} {args}", env!("CARGO_BIN_EXE_snclr"));
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).current_dir(scratch.path("")).stdin(Stdio::null());
    command.env("TERM", "xterm-256color").env("NO_COLOR", no_color);
    let output = command.output().expect("script runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn a_terminal_gets_a_live_view_that_disappears() {
    let scratch = Scratch::new();
    let shown = on_a_terminal(&scratch, "run tiny.yaml --set epochs=30 -v", "1");
    for part in ["✓ data", "▶ pretrain", "· knn", "steps", "left", "loss ", "images/s ", "memory "] {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    assert!(shown.contains("effective positives") && !shown.contains("\x1b[32m"), "{shown}");
    // After the last erased line there are only the results. The cursor was never hidden.
    let rest = shown.rsplit("\x1b[2K").next().unwrap_or_default();
    assert!(
        rest.contains("top-1 in %") && !rest.contains('▶') && rest.trim_end().ends_with("ran 6 stages, 0 cached"),
        "{rest:?}"
    );
    assert!(!shown.contains("\x1b[?25l"), "{shown}");
    assert!(on_a_terminal(&scratch, "run tiny.yaml", "").contains("\x1b[32m= data"));
}

#[test]
fn elsewhere_lines_are_plain_and_details_come_when_asked_for() {
    let scratch = Scratch::new();
    let plain = scratch.run("run tiny.yaml");
    assert_eq!(plain.code, 0);
    assert!(!plain.stderr.contains('\x1b') && !plain.stderr.contains("effective positives"), "{}", plain.stderr);
    let verbose = scratch.run("run tiny.yaml --set seed=9 -v");
    assert!(
        verbose.stderr.contains("step 0: spread ") && verbose.stderr.contains("effective positives"),
        "{}",
        verbose.stderr
    );
    assert_eq!(scratch.run("run tiny.yaml -q -v").code, 2);
}

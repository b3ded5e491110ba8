//! Handles Ctrl-C and SIGTERM: the first one asks stages to stop at a safe point, the second one ends the process.

use std::io::Write;

use anyhow::Context;

use crate::stage::Interrupt;

/// Exit code of an interrupted run.
const INTERRUPTED: i32 = 130;

/// Starts to handle signals.
pub fn watch(interrupt: &Interrupt) -> anyhow::Result<()> {
    let interrupt = interrupt.clone();
    ctrlc::set_handler(move || {
        if interrupt.requested() {
            std::process::exit(INTERRUPTED);
        }
        interrupt.request();
        let _ = writeln!(std::io::stderr(), "stopping at the next safe point; press Ctrl-C again to stop now");
    })
    .context("watching for ctrl-C")
}

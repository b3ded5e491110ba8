//! The services that a stage gets from its caller: progress, interruption, checkpoints, warnings.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::artifact::Checkpoints;

/// Receives the progress of a stage. Implementations draw bars or print lines.
pub trait Progress {
    /// Work starts: `total` units, if known, of `unit` (plural, e.g. "steps").
    fn start(&self, total: Option<u64>, unit: &str);
    /// Adds `count` finished units.
    fn advance(&self, count: u64);
    /// Shows a short status beside the bar, e.g. "loss 5.21".
    fn message(&self, text: &str);
    /// Adds a value to a figure whose history is shown, e.g. "loss".
    fn value(&self, name: &str, value: f64);
    /// Prints a permanent line.
    fn log(&self, text: &str);
    /// Prints a permanent line with `-v` only.
    fn detail(&self, text: &str);
    /// Prints a warning, which is repeated at the end of the run.
    fn warn(&self, text: &str);
}

/// Discards all progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _total: Option<u64>, _unit: &str) {}
    fn advance(&self, _count: u64) {}
    fn message(&self, _text: &str) {}
    fn value(&self, _name: &str, _value: f64) {}
    fn log(&self, _text: &str) {}
    fn detail(&self, _text: &str) {}
    fn warn(&self, _text: &str) {}
}

/// Set when the user asks to stop; stages poll it between steps.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Asks every stage to stop at its next safe point.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the user asked to stop.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A callback for a scan of a source, which is called with the numbers of samples found. It reports them as progress, and stops
/// the scan on an interruption.
pub fn looking_through<'a>(
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
    stage: &'static str,
) -> impl FnMut(u64) -> anyhow::Result<()> + 'a {
    let mut announced = false;
    move |samples| {
        if !std::mem::replace(&mut announced, true) {
            progress.start(None, "samples found");
        }
        progress.advance(samples);
        match interrupt.requested() {
            true => Err(Stopped::InterruptedAt { stage }.into()),
            false => Ok(()),
        }
    }
}

/// The services for a running stage.
pub struct StageContext<'a> {
    pub progress: &'a dyn Progress,
    pub interrupt: &'a Interrupt,
    pub checkpoints: &'a Checkpoints,
    /// The longest time between two checkpoints.
    pub checkpoint_interval: Duration,
}

/// Why a stage stopped early without a failure.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The user interrupted a stage that keeps checkpoints.
    #[error("interrupted in {stage} after step {step}; run the same command again to go on from there")]
    Interrupted { stage: &'static str, step: u64 },
    /// The user interrupted before a stage, or in one that starts from the beginning next time.
    #[error("interrupted at {stage}; run the same command again to go on with it")]
    InterruptedAt { stage: &'static str },
    /// Training diverged: NaN or collapse.
    #[error("{0}")]
    Diverged(String),
}

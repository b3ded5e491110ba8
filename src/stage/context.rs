//! What a stage may ask of whoever runs it: progress, interruption, checkpoints, warnings.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::artifact::Checkpoints;

/// Where a stage reports how far it is. Implementations draw bars or print lines.
pub trait Progress {
    /// A piece of work begins: `total` units, when known, of `unit` (plural, e.g. "steps").
    fn start(&self, total: Option<u64>, unit: &str);
    /// `count` more units are done.
    fn advance(&self, count: u64);
    /// A short status beside the bar, e.g. "loss 5.21".
    fn message(&self, text: &str);
    /// The next value of a figure whose course is worth watching, e.g. "loss".
    fn value(&self, name: &str, value: f64);
    /// A line that stays.
    fn log(&self, text: &str);
    /// A line that stays, for those who asked for details.
    fn detail(&self, text: &str);
    /// A warning that stays and is repeated at the end of the run.
    fn warn(&self, text: &str);
}

/// Progress that nobody watches.
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

    /// Whether someone asked.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What hears of samples that are found while a source is looked through: it tells how many, and stops where that is asked for.
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

/// What a stage gets from its surroundings.
pub struct StageContext<'a> {
    pub progress: &'a dyn Progress,
    pub interrupt: &'a Interrupt,
    pub checkpoints: &'a Checkpoints,
    /// Longest time between two checkpoints.
    pub checkpoint_interval: Duration,
}

/// Why a stage stopped before its end without having failed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The user asked, within a stage that keeps checkpoints.
    #[error("interrupted in {stage} after step {step}; run the same command again to go on from there")]
    Interrupted { stage: &'static str, step: u64 },
    /// The user asked, before or within a stage that starts anew the next time.
    #[error("interrupted at {stage}; run the same command again to go on with it")]
    InterruptedAt { stage: &'static str },
    /// Training went wrong: NaN or collapse.
    #[error("{0}")]
    Diverged(String),
}

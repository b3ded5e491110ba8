//! Progress on stderr: a live view on a terminal, a line every ten seconds elsewhere, nothing with `-q`, more with `-v`.

mod live;
mod sparkline;
mod usage;
mod work;

use std::{
    io::{IsTerminal, Write},
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::ProgressDrawTarget;

use crate::stage::Progress;
use live::{Live, StageState};
use sparkline::Series;
use usage::Usage;
use work::Work;

pub use work::duration;

/// Longest silence of a working stage when lines are printed.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The live view's figures are drawn at most this often.
const DRAW_EVERY: Duration = Duration::from_millis(250);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The live view on a terminal.
    Live,
    /// Plain lines, for log files.
    Lines,
    /// Warnings only.
    Quiet,
}

/// How much is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Warnings and results.
    Quiet,
    #[default]
    Normal,
    /// Also details, such as the health of the embeddings.
    Verbose,
}

impl Mode {
    /// What suits stderr.
    fn detect(quiet: bool) -> Mode {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match () {
            () if quiet => Mode::Quiet,
            () if std::io::stderr().is_terminal() && !dumb => Mode::Live,
            () => Mode::Lines,
        }
    }
}

/// Shows what goes on, and keeps the warnings.
pub struct Reporter {
    mode: Mode,
    details: bool,
    /// In front of every line.
    prefix: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stage: String,
    work: Option<Work>,
    live: Option<Live>,
    /// The course of the figures that the stage has told, in the order of their first values.
    series: Vec<(String, Series)>,
    usage: Usage,
    drawn: Option<Instant>,
    warnings: Vec<String>,
}

impl Reporter {
    /// A reporter that has nothing to show yet, on stderr.
    pub fn new(verbosity: Verbosity) -> Self {
        let mode = Mode::detect(verbosity == Verbosity::Quiet);
        Reporter { mode, details: verbosity == Verbosity::Verbose, prefix: String::new(), state: Mutex::default() }
    }

    /// One of several reporters that print at once: plain lines instead of the live view, each with `prefix` in front.
    pub fn beside_others(verbosity: Verbosity, prefix: String) -> Self {
        let reporter = Reporter::new(verbosity);
        let mode = if reporter.mode == Mode::Live { Mode::Lines } else { reporter.mode };
        Reporter { mode, prefix, ..reporter }
    }

    /// What is about to be gone through.
    pub fn stages(&self, stages: &[&'static str]) {
        if self.mode == Mode::Live {
            let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let view = Live::new(stages, ProgressDrawTarget::stderr(), colour);
            self.state().live = Some(view);
        }
    }

    /// There is nothing left to go through: the live view disappears.
    pub fn done(&self) {
        self.stage_ends();
        self.state().live = None;
    }

    /// Warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.state().warnings.clone()
    }

    /// A stage whose artifact was there.
    pub fn stage_cached(&self, stage: &str, key: &str) {
        self.line(&format!("{stage:<18} cached  {key}"));
        self.show(stage, StageState::Cached);
    }

    /// The shared cache is asked for a stage's artifact.
    pub fn stage_fetches(&self, stage: &str) {
        self.state().stage = stage.to_owned();
        self.show(stage, StageState::Running);
    }

    /// A stage whose artifact came out of the shared cache; `made` says where it was made.
    pub fn stage_fetched(&self, stage: &str, key: &str, made: &str) {
        self.line(&format!("{stage:<18} fetched {key}  made on {made}"));
        self.show(stage, StageState::Cached);
    }

    /// A stage begins to work.
    pub fn stage_begins(&self, stage: &str, reason: &str) {
        self.line(&format!("{stage:<18} runs    {reason}"));
        self.state().stage = stage.to_owned();
        self.show(stage, StageState::Running);
    }

    /// The stage stopped working, well or not.
    pub fn stage_ends(&self) {
        let mut state = self.state();
        state.work = None;
        state.series.clear();
        if let Some(live) = &mut state.live {
            live.end();
        }
    }

    /// A stage ran and has its artifact.
    pub fn stage_ran(&self, stage: &str, key: &str, time: Duration) {
        self.line(&format!("{stage:<18} ran     {key}  in {}", duration(time)));
        self.show(stage, StageState::Ran);
    }

    fn show(&self, stage: &str, state: StageState) {
        if let Some(live) = &mut self.state().live {
            live.stage(stage, state);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn line(&self, text: &str) {
        if self.mode != Mode::Quiet {
            self.print(text);
        }
    }

    /// A line on stderr, above the live view if there is one. Nobody may be listening: that is no error.
    fn print(&self, text: &str) {
        let state = self.state();
        let print = || drop(writeln!(std::io::stderr(), "{}{text}", self.prefix));
        match &state.live {
            Some(live) => live.suspend(print),
            None => print(),
        }
    }
}

impl Progress for Reporter {
    fn start(&self, total: Option<u64>, unit: &str) {
        self.stage_ends();
        let mut state = self.state();
        state.work = Some(Work::new(total, unit));
        let stage = state.stage.clone();
        if let Some(live) = &mut state.live {
            live.begin(&stage, total, unit);
        }
    }

    fn advance(&self, count: u64) {
        let mut state = self.state();
        let State { stage, work: Some(work), live, series, usage, drawn, .. } = &mut *state else { return };
        let first = work.advance(count);
        if let Some(live) = live {
            live.advance(work.done, first);
            if drawn.is_none_or(|at| at.elapsed() >= DRAW_EVERY) {
                *drawn = Some(Instant::now());
                live.figures(series, &usage.text());
            }
        }
        if self.mode == Mode::Lines && work.last_line.elapsed() >= LINE_EVERY {
            work.last_line = Instant::now();
            let line = work.line(stage);
            drop(state);
            self.print(&line);
        }
    }

    fn message(&self, text: &str) {
        if let Some(work) = &mut self.state().work {
            text.clone_into(&mut work.message);
        }
    }

    fn value(&self, name: &str, value: f64) {
        let series = &mut self.state().series;
        match series.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => known.push(value),
            None => {
                let mut new = Series::default();
                new.push(value);
                series.push((name.to_owned(), new));
            }
        }
    }

    fn log(&self, text: &str) {
        self.line(text);
    }

    fn detail(&self, text: &str) {
        if self.details {
            self.line(text);
        }
    }

    fn warn(&self, text: &str) {
        self.print(&format!("warning: {text}"));
        self.state().warnings.push(text.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_kept_without_any_stage() {
        let reporter = Reporter::new(Verbosity::Quiet);
        reporter.warn("something");
        reporter.value("loss", 1.0);
        reporter.advance(3);
        reporter.message("unheard");
        assert_eq!(reporter.warnings(), ["something"]);
    }
}

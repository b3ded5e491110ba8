//! Shows progress on stderr: a live view on a terminal, else a line every ten seconds; nothing with `-q`, more with `-v`.

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

/// The longest time without a line while a stage runs.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The shortest time between two updates of the figures in the live view.
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

/// How much is printed.
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
    /// The mode for the stderr at hand.
    fn detect(quiet: bool) -> Mode {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match () {
            () if quiet => Mode::Quiet,
            () if std::io::stderr().is_terminal() && !dumb => Mode::Live,
            () => Mode::Lines,
        }
    }
}

/// Shows progress, and collects the warnings.
pub struct Reporter {
    mode: Mode,
    details: bool,
    /// Printed at the start of every line.
    prefix: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stage: String,
    work: Option<Work>,
    live: Option<Live>,
    /// The figures that the stage has reported so far, in the order of their first values.
    series: Vec<(String, Series)>,
    usage: Usage,
    drawn: Option<Instant>,
    warnings: Vec<String>,
}

impl Reporter {
    /// A reporter on stderr.
    pub fn new(verbosity: Verbosity) -> Self {
        let mode = Mode::detect(verbosity == Verbosity::Quiet);
        Reporter { mode, details: verbosity == Verbosity::Verbose, prefix: String::new(), state: Mutex::default() }
    }

    /// A reporter among several that print at the same time: plain lines instead of the live view, each starting with `prefix`.
    pub fn beside_others(verbosity: Verbosity, prefix: String) -> Self {
        let reporter = Reporter::new(verbosity);
        let mode = if reporter.mode == Mode::Live { Mode::Lines } else { reporter.mode };
        Reporter { mode, prefix, ..reporter }
    }

    /// Announces the stages, in order.
    pub fn stages(&self, stages: &[&'static str]) {
        if self.mode == Mode::Live {
            let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let view = Live::new(stages, ProgressDrawTarget::stderr(), colour);
            self.state().live = Some(view);
        }
    }

    /// Says that all stages are done, which removes the live view.
    pub fn done(&self) {
        self.stage_ends();
        self.state().live = None;
    }

    /// Warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.state().warnings.clone()
    }

    /// Reports a stage whose artifact was in the store.
    pub fn stage_cached(&self, stage: &str, key: &str) {
        self.line(&format!("{stage:<18} cached  {key}"));
        self.show(stage, StageState::Cached);
    }

    /// Reports that the artifact of a stage is looked for in the shared cache.
    pub fn stage_fetches(&self, stage: &str) {
        self.state().stage = stage.to_owned();
        self.show(stage, StageState::Running);
    }

    /// Reports a stage whose artifact was fetched from the shared cache; `made` says where it was made.
    pub fn stage_fetched(&self, stage: &str, key: &str, made: &str) {
        self.line(&format!("{stage:<18} fetched {key}  made on {made}"));
        self.show(stage, StageState::Cached);
    }

    /// Reports that a stage starts.
    pub fn stage_begins(&self, stage: &str, reason: &str) {
        self.line(&format!("{stage:<18} runs    {reason}"));
        self.state().stage = stage.to_owned();
        self.show(stage, StageState::Running);
    }

    /// Reports that the stage has stopped, finished or not.
    pub fn stage_ends(&self) {
        let mut state = self.state();
        state.work = None;
        state.series.clear();
        if let Some(live) = &mut state.live {
            live.end();
        }
    }

    /// Reports that a stage ran to its end.
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

    /// Prints a line on stderr, above the live view if there is one. A closed stderr is no error.
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

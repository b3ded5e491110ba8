//! Progress on stderr: a bar with the time left on a terminal, a line every ten seconds elsewhere, nothing with `-q`.

use std::{
    io::{IsTerminal, Write},
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::stage::Progress;

/// Longest silence of a working stage when lines are printed.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bars on a terminal.
    Bars,
    /// Plain lines, for log files.
    Lines,
    /// Warnings only.
    Quiet,
}

impl Mode {
    /// What suits stderr.
    pub fn detect(quiet: bool) -> Mode {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match () {
            () if quiet => Mode::Quiet,
            () if std::io::stderr().is_terminal() && !dumb => Mode::Bars,
            () => Mode::Lines,
        }
    }
}

/// Shows what goes on, and keeps the warnings.
pub struct Reporter {
    mode: Mode,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stage: String,
    work: Option<Work>,
    warnings: Vec<String>,
}

struct Work {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    unit: String,
    done: u64,
    /// Where the pace is measured from: the first report, which on resuming holds what an earlier run did.
    pace: Option<(Instant, u64)>,
    message: String,
    last_line: Instant,
}

impl Reporter {
    /// A reporter that has nothing to show yet.
    pub fn new(mode: Mode) -> Self {
        Reporter { mode, state: Mutex::default() }
    }

    /// Warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.state().warnings.clone()
    }

    /// A stage whose artifact was there.
    pub fn stage_cached(&self, stage: &str, key: &str) {
        self.line(&format!("{stage:<18} cached  {key}"));
    }

    /// A stage begins to work.
    pub fn stage_begins(&self, stage: &str, reason: &str) {
        self.line(&format!("{stage:<18} runs    {reason}"));
        self.state().stage = stage.to_owned();
    }

    /// The stage stopped working, well or not.
    pub fn stage_ends(&self) {
        if let Some(bar) = self.state().work.take().and_then(|work| work.bar) {
            bar.finish_and_clear();
        }
    }

    /// A stage ran and has its artifact.
    pub fn stage_ran(&self, stage: &str, key: &str, time: Duration) {
        self.line(&format!("{stage:<18} ran     {key}  in {}", duration(time)));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn line(&self, text: &str) {
        if self.mode != Mode::Quiet {
            self.print(text);
        }
    }

    /// A line on stderr, above the bar if there is one. Nobody may be listening: that is no error.
    fn print(&self, text: &str) {
        let state = self.state();
        let print = || drop(writeln!(std::io::stderr(), "{text}"));
        match state.work.as_ref().and_then(|work| work.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Progress for Reporter {
    fn start(&self, total: Option<u64>, unit: &str) {
        self.stage_ends();
        let mut state = self.state();
        let bar = (self.mode == Mode::Bars).then(|| bar(&state.stage, total, unit));
        let (unit, message, last_line) = (unit.to_owned(), String::new(), Instant::now());
        state.work = Some(Work { bar, total, unit, done: 0, pace: None, message, last_line });
    }

    fn advance(&self, count: u64) {
        let mut state = self.state();
        let stage = state.stage.clone();
        let Some(work) = &mut state.work else { return };
        work.done += count;
        if work.pace.is_none() {
            work.pace = Some((Instant::now(), work.done));
            work.bar.iter().for_each(|bar| {
                bar.set_position(work.done);
                bar.reset_eta();
            });
        } else {
            work.bar.iter().for_each(|bar| bar.inc(count));
        }
        if self.mode == Mode::Lines && work.last_line.elapsed() >= LINE_EVERY {
            work.last_line = Instant::now();
            let line = work.line(&stage);
            drop(state);
            self.print(&line);
        }
    }

    fn message(&self, text: &str) {
        if let Some(work) = &mut self.state().work {
            work.message = text.to_owned();
            work.bar.iter().for_each(|bar| bar.set_message(text.to_owned()));
        }
    }

    fn log(&self, text: &str) {
        self.line(text);
    }

    fn warn(&self, text: &str) {
        self.print(&format!("warning: {text}"));
        self.state().warnings.push(text.to_owned());
    }
}

impl Work {
    fn line(&self, stage: &str) -> String {
        let mut line = format!("{stage}: {}", self.done);
        if let Some(total) = self.total {
            line += &format!("/{total}");
        }
        line += &format!(" {}", self.unit);
        if let (Some(total), Some((since, from))) = (self.total, self.pace)
            && self.done > from
        {
            let pace = since.elapsed().as_secs_f64() / (self.done - from) as f64;
            let left = pace * total.saturating_sub(self.done) as f64;
            line += &format!(", {} left", duration(Duration::from_secs_f64(left)));
        }
        if !self.message.is_empty() {
            line += &format!(", {}", self.message);
        }
        line
    }
}

fn bar(stage: &str, total: Option<u64>, unit: &str) -> ProgressBar {
    let template = match total {
        Some(_) => format!("{{prefix:<18}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}, {{eta}} left {{msg}}"),
        None => format!("{{prefix:<18}} {{spinner}} {{human_pos}} {unit} in {{elapsed}} {{msg}}"),
    };
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(stage.to_owned());
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// A length of time for people: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 7 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, text) in [(0.42, "0.4 s"), (12.9, "12 s"), (185.0, "3 min 5 s"), (7627.0, "2 h 7 min")] {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn a_line_says_how_far_and_how_long_to_go() {
        let mut work = Work {
            bar: None,
            total: Some(100),
            unit: "steps".into(),
            done: 50,
            pace: Some((Instant::now(), 50)),
            message: String::new(),
            last_line: Instant::now(),
        };
        assert_eq!(work.line("pretrain"), "pretrain: 50/100 steps");
        work.pace = Some((Instant::now() - Duration::from_secs(100), 40));
        work.message = "loss 5.2".into();
        assert_eq!(work.line("pretrain"), "pretrain: 50/100 steps, 8 min 20 s left, loss 5.2");
        work.total = None;
        assert_eq!(work.line("data"), "data: 50 steps, loss 5.2");
    }

    #[test]
    fn warnings_are_kept_without_any_stage() {
        let reporter = Reporter::new(Mode::Quiet);
        reporter.warn("something");
        reporter.advance(3);
        reporter.message("unheard");
        assert_eq!(reporter.warnings(), ["something"]);
    }
}

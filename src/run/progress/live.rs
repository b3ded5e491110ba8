//! The live view on a terminal: the state of each stage, a progress bar with the time left, and sparklines of the figures.
//!
//! indicatif draws it below the permanent lines. It disappears when the view is dropped. It changes no settings of the
//! terminal, so nothing is left behind after a panic or an interruption.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::sparkline::Series;

/// The width of a sparkline in blocks.
const WIDTH: usize = 24;

/// State of a stage in the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageState {
    Waiting,
    Running,
    Cached,
    Ran,
}

/// The view.
#[derive(Debug)]
pub struct Live {
    all: MultiProgress,
    graph: ProgressBar,
    work: Option<ProgressBar>,
    figures: ProgressBar,
    stages: Vec<(&'static str, StageState)>,
    colour: bool,
}

impl Live {
    /// A view of `stages` before the first one starts.
    pub fn new(stages: &[&'static str], target: ProgressDrawTarget, colour: bool) -> Self {
        let all = MultiProgress::with_draw_target(target);
        let text = || ProgressBar::new_spinner().with_style(style("{msg}"));
        let (graph, figures) = (all.add(text()), all.add(text()));
        let stages = stages.iter().map(|name| (*name, StageState::Waiting)).collect();
        let view = Self { all, graph, work: None, figures, stages, colour };
        view.draw_graph();
        view
    }

    /// Sets the state of a stage.
    pub fn stage(&mut self, name: &str, state: StageState) {
        self.stages.iter_mut().filter(|(stage, _)| *stage == name).for_each(|stage| stage.1 = state);
        self.draw_graph();
    }

    fn draw_graph(&self) {
        let line = graph(&self.stages, self.colour);
        self.graph.set_message(line);
    }

    /// Starts the progress bar of a stage.
    pub fn begin(&mut self, stage: &str, total: Option<u64>, unit: &str) {
        let template = match total {
            Some(_) => format!("{{prefix:<18}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}, {{eta}} left"),
            None => format!("{{prefix:<18}} {{spinner}} {{human_pos}} {unit} in {{elapsed}}"),
        };
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden()).with_style(style(&template));
        let bar = self.all.insert_before(&self.figures, bar);
        bar.set_prefix(stage.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        self.work = Some(bar);
    }

    /// Moves the bar to `done`. `first` starts the clock from which the time left is estimated.
    pub fn advance(&self, done: u64, first: bool) {
        if let Some(bar) = &self.work {
            bar.set_position(done);
            if first {
                bar.reset_eta();
            }
        }
    }

    /// Removes the progress bar.
    pub fn end(&mut self) {
        if let Some(bar) = self.work.take() {
            bar.finish_and_clear();
        }
        self.figures.set_message("");
    }

    /// Shows the figures, and the CPU and memory in use.
    pub fn figures(&self, series: &[(String, Series)], usage: &str) {
        self.figures.set_message(line(series, usage));
    }

    /// Prints a permanent line above the view.
    pub fn suspend(&self, print: impl FnOnce()) {
        self.all.suspend(print);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.end();
        self.graph.finish_and_clear();
        self.figures.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The stages in one line, each after a sign of its state.
fn graph(stages: &[(&'static str, StageState)], colour: bool) -> String {
    let stage = |(name, state): &(&str, StageState)| {
        let (sign, code) = match state {
            StageState::Waiting => ('·', "2"),
            StageState::Running => ('▶', "1"),
            StageState::Cached => ('=', "32"),
            StageState::Ran => ('✓', "32"),
        };
        if colour { format!("\x1b[{code}m{sign} {name}\x1b[0m") } else { format!("{sign} {name}") }
    };
    stages.iter().map(stage).collect::<Vec<_>>().join("  ")
}

/// The figures in one line, each with its sparkline, then the CPU and memory in use.
fn line(series: &[(String, Series)], usage: &str) -> String {
    let shown = series.iter().map(|(name, series)| format!("{name} {} {}", short(series.last()), series.blocks(WIDTH)));
    shown.chain((!usage.is_empty()).then(|| usage.to_owned())).collect::<Vec<_>>().join("  ")
}

/// A number in about four digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_in_a_line_with_their_course() {
        let mut loss = Series::default();
        [6.0, 5.0, 4.25].into_iter().for_each(|value| loss.push(value));
        let figures = [("loss".to_owned(), loss)];
        assert_eq!(line(&figures, "memory 120 MB"), "loss 4.250 █▄▁  memory 120 MB");
        assert_eq!(line(&figures, ""), "loss 4.250 █▄▁");
    }

    #[test]
    fn colours_are_left_out_when_they_are_not_wanted() {
        let stages = [("data", StageState::Ran)];
        assert_eq!(graph(&stages, false), "✓ data");
        assert_eq!(graph(&stages, true), "\x1b[32m✓ data\x1b[0m");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([0.12345, 41.87, 1234.5].map(short), ["0.123", "41.9", "1234"]);
    }
}

//! Progress, speed and remaining time of a running stage.

use std::time::{Duration, Instant};

/// The progress of a running stage.
#[derive(Debug)]
pub struct Work {
    pub total: Option<u64>,
    pub unit: String,
    pub done: u64,
    /// Time and progress of the first report. Speed is measured from there, since after a resume that progress includes earlier
    /// work.
    pub pace: Option<(Instant, u64)>,
    pub message: String,
    pub last_line: Instant,
}

impl Work {
    /// The start of a stage.
    pub fn new(total: Option<u64>, unit: &str) -> Self {
        let (unit, message, last_line) = (unit.to_owned(), String::new(), Instant::now());
        Work { total, unit, done: 0, pace: None, message, last_line }
    }

    /// Notes more progress, and says whether this was the first report.
    pub fn advance(&mut self, count: u64) -> bool {
        self.done += count;
        let first = self.pace.is_none();
        if first {
            self.pace = Some((Instant::now(), self.done));
        }
        first
    }

    /// The progress as one line.
    pub fn line(&self, stage: &str) -> String {
        let mut line = self.done.to_string();
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
        // Work before the first stage belongs to no stage.
        if stage.is_empty() { line } else { format!("{stage}: {line}") }
    }
}

/// A duration as text: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 7 min`.
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
        let mut work = Work::new(Some(100), "steps");
        work.advance(50);
        assert_eq!(work.line("pretrain"), "pretrain: 50/100 steps");
        work.pace = Some((Instant::now() - Duration::from_secs(100), 40));
        work.message = "loss 5.2".into();
        assert_eq!(work.line("pretrain"), "pretrain: 50/100 steps, 8 min 20 s left, loss 5.2");
        work.total = None;
        assert_eq!(work.line("data"), "data: 50 steps, loss 5.2");
        assert_eq!(work.line(""), "50 steps, loss 5.2");
    }
}

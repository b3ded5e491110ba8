//! One case, repeated and timed.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Case, Machine, Options, machine::peak_rss_mb};
use crate::{stage::Progress, train::Device};

/// What a case came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub case: Case,
    /// What was done, with its sizes.
    pub what: String,
    pub precision: String,
    pub device: String,
    pub threads: usize,
    /// Measured repetitions.
    pub steps: usize,
    /// Of one repetition.
    pub milliseconds: Time,
    /// Where it is images that count.
    pub images_per_second: Option<Rate>,
    /// The most memory that the process held, what was prepared included; None where the system does not tell.
    pub peak_rss_mb: Option<f64>,
    pub machine: Machine,
    /// Program and version.
    pub version: String,
}

/// Milliseconds of the repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Time {
    pub median: f64,
    pub minimum: f64,
}

/// Images per second of the repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    pub median: f64,
    pub maximum: f64,
}

impl Time {
    /// Of at least one repetition; the median of an even number is the mean of the middle two.
    fn of(mut milliseconds: Vec<f64>) -> Self {
        milliseconds.sort_by(f64::total_cmp);
        let (n, half) = (milliseconds.len(), milliseconds.len() / 2);
        let median = (milliseconds[(n - 1) / 2] + milliseconds[half]) / 2.0;
        Time { median, minimum: milliseconds[0] }
    }
}

/// Measures `case` in this process, on rayon's threads: once unmeasured, then `steps` times (at least 1).
///
/// # Errors
/// [`super::Unfit`] when the case does not know an option; otherwise when what is measured fails.
pub fn measure(case: Case, options: &Options, steps: usize, progress: &dyn Progress) -> anyhow::Result<Measurement> {
    progress.start(Some(steps as u64 + 1), "repetitions");
    let mut workload = case.prepare(options)?;
    workload.once()?;
    progress.advance(1);
    let mut milliseconds = Vec::with_capacity(steps);
    for _ in 0..steps {
        let begun = Instant::now();
        workload.once()?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        milliseconds.push(took);
        progress.value("ms", took);
        progress.advance(1);
    }
    let time = Time::of(milliseconds);
    let rate = |images: usize| Rate { median: rate(images, time.median), maximum: rate(images, time.minimum) };
    Ok(Measurement {
        case,
        precision: options.precision_name(),
        device: Device::chosen().to_string(),
        threads: rayon::current_num_threads(),
        steps,
        milliseconds: time,
        images_per_second: workload.images.map(rate),
        peak_rss_mb: peak_rss_mb(),
        machine: Machine::here(),
        version: format!("snclr {}", env!("CARGO_PKG_VERSION")),
        what: workload.what,
    })
}

fn rate(images: usize, milliseconds: f64) -> f64 {
    images as f64 * 1e3 / milliseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Time::of(vec![9.0, 1.0, 2.0]), Time { median: 2.0, minimum: 1.0 });
        assert_eq!(Time::of(vec![9.0, 1.0, 2.0, 3.0]), Time { median: 2.5, minimum: 1.0 });
        assert_eq!(Time::of(vec![4.0]), Time { median: 4.0, minimum: 4.0 });
        assert_eq!(rate(128, 500.0), 256.0);
    }
}

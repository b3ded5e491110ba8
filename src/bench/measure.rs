//! Runs a case several times, and measures how long each repetition takes.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Card, Case, GpuUse, Machine, Options, Workload, machine::peak_rss_mb};
use crate::{stage::Progress, train::Device};

/// Repetitions on a GPU that are not measured. The first compiles kernels. From the second on, the host runs ahead of the GPU.
const UNMEASURED_ON_GPU: usize = 3;

/// The result of measuring a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub case: Case,
    /// A description of the work, with its sizes.
    pub what: String,
    pub precision: String,
    pub device: String,
    pub threads: usize,
    /// Measured repetitions.
    pub steps: usize,
    /// Duration of one repetition.
    pub milliseconds: Time,
    /// Images per second, for cases that process images.
    pub images_per_second: Option<Rate>,
    /// Floating-point operations of the model, for cases that train one.
    pub flops: Option<Flops>,
    /// Share of the repetitions' time that was spent waiting for data, for cases that load data in parallel.
    pub waiting_share: Option<f64>,
    /// Peak memory of the process in MB (10^6 bytes), including the preparation; None if the system does not report it.
    pub peak_rss_mb: Option<f64>,
    /// The GPU, if one was used.
    pub gpu: Option<GpuUse>,
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

/// Floating-point operations of a model, as [`crate::train::Model::flops_per_image`] counts them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flops {
    /// 10^9 operations per image of a step.
    pub gflop_per_image: f64,
    /// 10^12 operations per second, from the median time.
    pub tflops: f64,
    /// `tflops` as a share of the device's dense peak in this precision (model FLOP utilisation); None if the peak is not known.
    pub utilisation: Option<f64>,
}

impl Time {
    /// Median and minimum of at least one repetition. The median of an even number is the mean of the middle two.
    fn of(mut milliseconds: Vec<f64>) -> Self {
        milliseconds.sort_by(f64::total_cmp);
        let (n, half) = (milliseconds.len(), milliseconds.len() / 2);
        let median = (milliseconds[(n - 1) / 2] + milliseconds[half]) / 2.0;
        Time { median, minimum: milliseconds[0] }
    }
}

/// Measures `case` in this process, on rayon's threads. Runs it once to warm up (on a GPU three times), then `steps` times;
/// `steps` must be at least 1. On a GPU, a step is still running when the next one starts, so the measured time is that from one
/// step to the next.
///
/// # Errors
/// [`super::Unfit`] when the case does not accept an option; other errors when a repetition fails.
pub fn measure(case: Case, options: &Options, steps: usize, progress: &dyn Progress) -> anyhow::Result<Measurement> {
    let unmeasured = if Device::chosen() == Device::Cpu { 1 } else { UNMEASURED_ON_GPU };
    progress.start(Some((steps + unmeasured) as u64), "repetitions");
    let mut workload = case.prepare(options)?;
    for _ in 0..unmeasured {
        workload.once()?;
        progress.advance(1);
    }
    let waited = |workload: &Workload| workload.waited.as_ref().map(|waited| waited.get());
    let waited_before = waited(&workload);
    let mut milliseconds = Vec::with_capacity(steps);
    for _ in 0..steps {
        let begun = Instant::now();
        workload.once()?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        milliseconds.push(took);
        progress.value("ms", took);
        progress.advance(1);
    }
    let waiting_share = waited(&workload).zip(waited_before).map(|(after, before)| {
        let seconds = milliseconds.iter().sum::<f64>() / 1e3;
        (after - before).as_secs_f64() / seconds
    });
    let time = Time::of(milliseconds);
    let gpu = GpuUse::here();
    let flops = workload.images.zip(workload.flops_per_image).map(|(images, flops)| {
        let tflops = rate(images, time.median) * flops as f64 / 1e12;
        let peak = gpu.as_ref().and_then(|gpu| Card::named(&gpu.name)).map(|card| card.dense_peak(options.precision));
        Flops { gflop_per_image: flops as f64 / 1e9, tflops, utilisation: peak.map(|peak| tflops / peak) }
    });
    let rate = |images: usize| Rate { median: rate(images, time.median), maximum: rate(images, time.minimum) };
    Ok(Measurement {
        case,
        precision: options.precision_name(),
        device: Device::chosen().with_library(),
        threads: rayon::current_num_threads(),
        steps,
        milliseconds: time,
        images_per_second: workload.images.map(rate),
        flops,
        waiting_share,
        peak_rss_mb: peak_rss_mb(),
        gpu,
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

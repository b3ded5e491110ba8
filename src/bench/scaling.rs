//! Measures how speed and memory grow with threads, data set, queue and K.

use serde::Serialize;

use super::{Case, Options};
use crate::train::Precision;

/// The quantity that is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Series {
    Threads,
    Images,
    QueueLength,
    K,
}

/// One value of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub series: Series,
    pub value: usize,
}

/// All points of all series. The number of threads doubles up to the number of processors.
pub fn points() -> Vec<Point> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|n| *n <= cores).collect();
    let series = [
        (Series::Threads, threads),
        (Series::Images, vec![1_000, 10_000, 100_000]),
        (Series::QueueLength, vec![4_096, 8_192, 16_384, 32_768, 65_536, 131_072]),
        (Series::K, vec![1, 3, 10, 30, 100]),
    ];
    series
        .into_iter()
        .flat_map(|(series, values)| values.into_iter().map(move |value| Point { series, value }))
        .collect()
}

impl Series {
    /// Name of the varied quantity, for people.
    pub fn name(self) -> &'static str {
        match self {
            Series::Threads => "threads",
            Series::Images => "images",
            Series::QueueLength => "queue length",
            Series::K => "K",
        }
    }

    /// The case that is measured.
    pub fn case(self) -> Case {
        match self {
            Series::Threads => Case::Small,
            Series::Images => Case::Epoch,
            Series::QueueLength | Series::K => Case::Queue,
        }
    }
}

impl Point {
    /// The number of threads, if the series varies it.
    pub fn threads(self) -> Option<usize> {
        (self.series == Series::Threads).then_some(self.value)
    }

    /// `options` with the value of this point. Cases that do not train are measured in f32.
    pub fn options(self, options: &Options) -> Options {
        let mut options = options.clone();
        if !self.series.case().trains() {
            options.precision = Precision::F32;
        }
        match self.series {
            Series::Threads => {}
            Series::Images => options.images = Some(self.value),
            Series::QueueLength => options.queue_length = Some(self.value),
            Series::K => options.k = Some(self.value),
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_knows_what_is_varied_in_it() {
        let asked = Options { precision: Precision::Bf16, ..Options::default() };
        for point in points() {
            let options = point.options(&asked);
            options.check(point.series.case()).unwrap();
            let varied = options != Options { precision: options.precision, ..Options::default() };
            assert!(varied || point.threads() == Some(point.value), "{point:?}");
        }
    }
}

//! Sparklines: the history of a figure as a row of block characters.

/// The number of points to keep. When there are more, neighbours are averaged.
const POINTS: usize = 256;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The history of a figure, as at most [`POINTS`] averages over equal numbers of values.
#[derive(Clone, Debug, Default)]
pub struct Series {
    means: Vec<f64>,
    /// Values per mean.
    stretch: usize,
    /// Sum and number of the values that are not averaged yet.
    open: (f64, usize),
    last: f64,
}

impl Series {
    /// Adds a value, unless it is infinite or NaN.
    pub fn push(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        self.last = value;
        self.open = (self.open.0 + value, self.open.1 + 1);
        if self.open.1 < self.stretch.max(1) {
            return;
        }
        self.means.push(self.open.0 / self.open.1 as f64);
        self.open = (0.0, 0);
        if self.means.len() == POINTS {
            self.means = self.means.chunks(2).map(|pair| pair.iter().sum::<f64>() / pair.len() as f64).collect();
            self.stretch = 2 * self.stretch.max(1);
        }
    }

    /// The newest value.
    pub fn last(&self) -> f64 {
        self.last
    }

    /// At most `width` blocks, the lowest value as the lowest block.
    pub fn blocks(&self, width: usize) -> String {
        let per_block = self.means.len().div_ceil(width.max(1)).max(1);
        let means: Vec<f64> =
            self.means.chunks(per_block).map(|part| part.iter().sum::<f64>() / part.len() as f64).collect();
        let low = means.iter().copied().fold(f64::INFINITY, f64::min);
        let high = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let range = if high > low { high - low } else { 1.0 };
        means.iter().map(|mean| BLOCKS[(((mean - low) / range) * 7.0).round() as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_the_values() {
        let mut series = Series::default();
        [1.0, f64::NAN, 3.0, 8.0].into_iter().for_each(|value| series.push(value));
        assert_eq!((series.blocks(10), series.last()), ("▁▃█".to_owned(), 8.0));
        assert_eq!(series.blocks(2), "▁█");
        assert_eq!(Series::default().blocks(5), "");
    }

    #[test]
    fn long_series_stay_short() {
        let mut series = Series::default();
        (0..100_000).for_each(|i| series.push(f64::from(i)));
        assert!(series.means.len() < POINTS);
        assert_eq!(series.blocks(8), "▁▂▃▄▅▆▇█");
    }
}

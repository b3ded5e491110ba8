//! McNemar's exact test: whether two classifiers differ by more than chance.

use statrs::distribution::{Binomial, DiscreteCDF};

/// Two-sided p of McNemar's exact test. Of the samples on which two classifiers differ, the second is right on `won` and the
/// first on `lost`. If both were equally good, each sample would be a coin toss.
pub fn mcnemar(won: usize, lost: usize) -> f64 {
    let tosses = Binomial::new(0.5, (won + lost) as u64).expect("a share as probability");
    (2.0 * tosses.cdf(won.min(lost) as u64)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mcnemar_equals_the_binomial_distribution() {
        // Two-sided p of scipy.stats.binomtest(won, won + lost).
        for (won, lost, p) in [(0, 0, 1.0), (5, 5, 1.0), (1, 9, 0.021484375), (3, 12, 0.03515625), (0, 10, 0.001953125)]
        {
            assert!((mcnemar(won, lost) - p).abs() < 1e-12, "{won} {lost}: {}", mcnemar(won, lost));
            assert_eq!(mcnemar(won, lost), mcnemar(lost, won));
        }
        assert!((mcnemar(5000, 5000) - 1.0).abs() < 1e-9);
        // (5200.5 - 5000) / 50 = 4.01 standard deviations.
        assert!((5.0e-5..8.0e-5).contains(&mcnemar(5200, 4800)));
    }
}

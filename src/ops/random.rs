//! Counter-based random streams: the numbers of a stream depend on its key alone, never on order, workers or restarts.

use std::f64::consts::TAU;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The purpose of a random stream. Two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Order of the samples in an epoch.
    Shuffle = 1,
    /// Augmentation of one view of one sample.
    Augment = 2,
    /// Initial weights.
    Init = 3,
    /// Initial content of the neighbour queue.
    Queue = 4,
    /// Generated images.
    Synthetic = 5,
    /// Shuffled labels of the control evaluation.
    ShuffledLabels = 6,
    /// Order of the samples in the linear probe.
    ProbeShuffle = 7,
    /// Initial weights of the linear probe.
    ProbeInit = 8,
    /// Images whose neighbours are recorded during training.
    Watch = 9,
}

/// The stream of (`seed`, `purpose`, `a`, `b`, `c`), e.g. `a` = epoch, `b` = sample index, `c` = view.
///
/// The arguments form the cipher's 256-bit key, so that distinct arguments give independent streams. `c` and the purpose have 32
/// bits each, the other arguments 64 bits.
pub fn stream(seed: u64, purpose: Purpose, a: u64, b: u64, c: u32) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&a.to_le_bytes());
    key[16..24].copy_from_slice(&b.to_le_bytes());
    key[24..28].copy_from_slice(&c.to_le_bytes());
    key[28..].copy_from_slice(&(purpose as u32).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Draws from the standard normal distribution by the Box-Muller transform, two at a time, with the same bits on every machine.
#[derive(Clone, Debug)]
pub struct Normals {
    random: ChaCha8Rng,
    /// The second draw of the last pair, until it is returned.
    second: Option<f64>,
}

impl Normals {
    /// Draws that are computed from the stream `random`.
    pub fn of(random: ChaCha8Rng) -> Self {
        Self { random, second: None }
    }

    /// The next draw.
    pub fn draw(&mut self) -> f64 {
        if let Some(second) = self.second.take() {
            return second;
        }
        // The argument is in (0, 1], so its logarithm is finite.
        let radius = (-2.0 * libm::log(1.0 - self.random.random::<f64>())).sqrt();
        let (sin, cos) = libm::sincos(TAU * self.random.random::<f64>());
        self.second = Some(radius * sin);
        radius * cos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_give_equal_streams_and_any_other_key_another() {
        let draw = |s, p, a, b, c| stream(s, p, a, b, c).random::<u64>();
        let base = draw(1, Purpose::Augment, 2, 3, 0);
        assert_eq!(base, draw(1, Purpose::Augment, 2, 3, 0));
        for other in [
            draw(2, Purpose::Augment, 2, 3, 0),
            draw(1, Purpose::Shuffle, 2, 3, 0),
            draw(1, Purpose::Augment, 3, 3, 0),
            draw(1, Purpose::Augment, 2, 4, 0),
            draw(1, Purpose::Augment, 2, 3, 1),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn normals_have_the_moments_and_tails_of_their_distribution() {
        let mut normals = Normals::of(stream(0, Purpose::Init, 0, 0, 0));
        let n = 400_000;
        let draws: Vec<f64> = (0..n).map(|_| normals.draw()).collect();
        let mean = |f: &dyn Fn(f64) -> f64| draws.iter().map(|x| f(*x)).sum::<f64>() / n as f64;
        // Each moment is within four standard errors of its expected value.
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0f64)] {
            let found = mean(&|x| (0..power).map(|_| x).product());
            assert!((found - expected).abs() < 4.0 * (variance / n as f64).sqrt(), "{power}: {found}");
        }
        let beyond_two = mean(&|x| f64::from(u8::from(x.abs() > 2.0)));
        assert!((beyond_two - 0.0455).abs() < 0.0014, "{beyond_two}");
        // Consecutive draws, within a pair and across two pairs, are uncorrelated.
        let along = draws.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / n as f64;
        assert!(along.abs() < 0.0064, "{along}");
    }
}

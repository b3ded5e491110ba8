//! Counter-based random streams: what a stream yields depends on its key alone, never on order, workers or restarts.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream is for; two purposes never share a stream.
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
/// The key is packed into the cipher's 256-bit key as it stands, so that distinct keys give independent streams.
/// `c` and the purpose share its last word.
pub fn stream(seed: u64, purpose: Purpose, a: u64, b: u64, c: u32) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&a.to_le_bytes());
    key[16..24].copy_from_slice(&b.to_le_bytes());
    key[24..28].copy_from_slice(&c.to_le_bytes());
    key[28..].copy_from_slice(&(purpose as u32).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

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
}

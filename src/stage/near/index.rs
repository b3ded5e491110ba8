//! Finds 64-bit hashes within a small Hamming distance. Each hash is stored under each of its four parts, so that a search
//! compares only a few hashes.

/// Bits in a part.
const BITS: usize = 16;
const PARTS: usize = 64 / BITS;
/// Bits by which a part may differ: if every part differs by more, the hashes differ by more than [`RADIUS`].
const RADIUS_OF_PART: u32 = 2;
/// Bits by which near hashes may differ. At least one of their four parts then differs by 2 bits at most.
pub const RADIUS: u32 = (RADIUS_OF_PART + 1) * PARTS as u32 - 1;

/// An index of 64-bit hashes with numbers.
pub struct Index {
    parts: [Filed; PARTS],
    /// All changes of a part by at most [`RADIUS_OF_PART`] bits, as masks for XOR.
    changes: Vec<u16>,
}

/// Hashes and their numbers, sorted by one part.
struct Filed {
    /// Index of the first hash of each value of the part.
    begins: Vec<u32>,
    hashes: Vec<u64>,
    numbers: Vec<u32>,
}

fn part(hash: u64, at: usize) -> usize {
    (hash >> (at * BITS)) as usize & ((1 << BITS) - 1)
}

impl Filed {
    fn new(all: &[(u64, u32)], at: usize) -> Filed {
        let mut begins = vec![0u32; (1 << BITS) + 1];
        for (hash, _) in all {
            begins[part(*hash, at) + 1] += 1;
        }
        for value in 1..begins.len() {
            begins[value] += begins[value - 1];
        }
        let mut next = begins.clone();
        let (mut hashes, mut numbers) = (vec![0; all.len()], vec![0; all.len()]);
        for (hash, number) in all {
            let place = &mut next[part(*hash, at)];
            hashes[*place as usize] = *hash;
            numbers[*place as usize] = *number;
            *place += 1;
        }
        Filed { begins, hashes, numbers }
    }
}

impl Index {
    /// An index of hashes and their numbers.
    pub fn new(all: &[(u64, u32)]) -> Index {
        let changes = (0..=u16::MAX).filter(|change| change.count_ones() <= RADIUS_OF_PART).collect();
        Index { parts: std::array::from_fn(|at| Filed::new(all, at)), changes }
    }

    /// Calls `found` with the number and the distance of every hash within [`RADIUS`] bits. Some hashes are passed more than
    /// once.
    pub fn near(&self, hash: u64, mut found: impl FnMut(u32, u32)) {
        for (at, filed) in self.parts.iter().enumerate() {
            for change in &self.changes {
                let value = part(hash, at) ^ *change as usize;
                let range = filed.begins[value] as usize..filed.begins[value + 1] as usize;
                for (other, number) in filed.hashes[range.clone()].iter().zip(&filed.numbers[range]) {
                    let distance = (hash ^ other).count_ones();
                    if distance <= RADIUS {
                        found(*number, distance);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_search_finds_what_a_look_at_all_finds() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut hashes: Vec<u64> = (0..3000).map(|_| random.random()).collect();
        for i in 0..1000 {
            let bits = random.random_range(0..16);
            let changed = (0..bits).fold(hashes[i], |hash, _| hash ^ 1 << random.random_range(0..64));
            hashes.push(changed);
        }
        let all: Vec<(u64, u32)> = hashes.iter().copied().zip(0..).collect();
        let index = Index::new(&all);
        for hash in &hashes {
            let mut found = std::collections::BTreeSet::new();
            index.near(*hash, |number, distance| {
                assert_eq!((hash ^ hashes[number as usize]).count_ones(), distance);
                found.insert(number);
            });
            let expected = all.iter().filter(|(other, _)| (hash ^ other).count_ones() <= RADIUS).map(|(_, n)| *n);
            assert_eq!(found, expected.collect());
        }
    }
}

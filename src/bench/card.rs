//! The speeds of known GPUs, as their data sheets give them.

use crate::train::Precision;

/// A GPU whose speeds are known. All are SXM boards, which differ from PCIe boards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    H100,
    H200,
    A100,
}

impl Card {
    /// All cards.
    pub const ALL: [Card; 3] = [Card::H100, Card::H200, Card::A100];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Card::H100 => "h100",
            Card::H200 => "h200",
            Card::A100 => "a100",
        }
    }

    /// The card that its driver calls `name`; None if it is not known.
    pub(super) fn named(name: &str) -> Option<Self> {
        let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let is = |word: &str| words.contains(&word);
        match () {
            _ if is("PCIe") || is("PCIE") || is("NVL") => None,
            _ if is("H200") => Some(Card::H200),
            _ if is("H100") && is("HBM3") => Some(Card::H100),
            _ if is("A100") => Some(Card::A100),
            _ => None,
        }
    }

    /// The dense peak in TFLOP/s in the arithmetic of `precision`, without sparsity, at boost clock.
    /// Sources: NVIDIA's datasheets of the H100 and H200 (which give tensor core figures with sparsity, twice these) and of the A100.
    pub(super) fn dense_peak(self, precision: Precision) -> f64 {
        let (half, tf32, f32) = match self {
            Card::H100 | Card::H200 => (989.4, 494.7, 66.9),
            Card::A100 => (312.0, 156.0, 19.5),
        };
        match precision {
            Precision::F16 | Precision::Bf16 => half,
            Precision::Tf32 => tf32,
            Precision::F32 => f32,
        }
    }

    /// Bandwidth of the memory in GB/s, from the same sources; of the A100 with 80 GB.
    pub(super) fn bandwidth(self) -> f64 {
        match self {
            Card::H100 => 3350.0,
            Card::H200 => 4800.0,
            Card::A100 => 2039.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_known_by_its_name() {
        let peaks = |name| {
            let card = Card::named(name)?;
            Some([Precision::Bf16, Precision::F16, Precision::Tf32, Precision::F32].map(|p| card.dense_peak(p)))
        };
        for name in ["NVIDIA H200", "NVIDIA H100 80GB HBM3"] {
            assert_eq!(peaks(name), Some([989.4, 989.4, 494.7, 66.9]), "{name}");
        }
        assert_eq!(peaks("NVIDIA A100-SXM4-80GB"), Some([312.0, 312.0, 156.0, 19.5]));
        for name in ["NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA L4", "emulation"] {
            assert_eq!(peaks(name), None, "{name}");
        }
    }
}

//! The peak speeds of known GPUs, with which the measured speed of a model is compared.

use crate::train::Precision;

/// Dense peak of a GPU in TFLOP/s: (f16 with f32 sums, tf32, f32).
type Peak = (f64, f64, f64);

/// Peak of H100 and H200 without sparsity, at boost clock. Both constants are for SXM boards, which differ from PCIe boards.
/// Sources: NVIDIA's datasheets of the H100 and H200 (which give tensor core figures with sparsity, twice these) and of the A100.
const HOPPER: Peak = (989.4, 494.7, 66.9);
const A100: Peak = (312.0, 156.0, 19.5);

/// The dense peak in TFLOP/s of the GPU whose driver calls it `name`, in the arithmetic of `precision`; None if it is not known.
pub(super) fn dense_peak(name: &str, precision: Precision) -> Option<f64> {
    let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let is = |word: &str| words.contains(&word);
    let (f16, tf32, f32) = match () {
        _ if is("PCIe") || is("PCIE") || is("NVL") => return None,
        _ if is("H200") || (is("H100") && is("HBM3")) => HOPPER,
        _ if is("A100") => A100,
        _ => return None,
    };
    match precision {
        Precision::F16 | Precision::Bf16 => Some(f16),
        Precision::Tf32 => Some(tf32),
        Precision::F32 => Some(f32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_known_by_its_name() {
        let peaks =
            |name| [Precision::Bf16, Precision::F16, Precision::Tf32, Precision::F32].map(|p| dense_peak(name, p));
        for name in ["NVIDIA H200", "NVIDIA H100 80GB HBM3"] {
            assert_eq!(peaks(name), [Some(989.4), Some(989.4), Some(494.7), Some(66.9)], "{name}");
        }
        assert_eq!(peaks("NVIDIA A100-SXM4-80GB"), [Some(312.0), Some(312.0), Some(156.0), Some(19.5)]);
        for name in ["NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA L4", "emulation"] {
            assert_eq!(peaks(name), [None; 4], "{name}");
        }
    }
}

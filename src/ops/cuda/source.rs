//! Sources of kernels.

use super::Kind;

/// One source, compiled as a whole.
#[derive(Debug)]
pub struct Source {
    /// Unique name of the source.
    pub name: &'static str,
    /// Preprocessor definitions in front of the text.
    pub defines: &'static str,
    /// CUDA C++ without includes.
    pub text: &'static str,
    /// Names of the kernels.
    pub kernels: &'static [&'static str],
}

/// Concatenates two lists to one of N names.
pub const fn joined<const A: usize, const B: usize, const N: usize>(
    first: &[&'static str; A],
    second: &[&'static str; B],
) -> [&'static str; N] {
    assert!(A + B == N);
    let (mut all, mut i) = ([""; N], 0);
    while i < N {
        all[i] = if i < A { first[i] } else { second[i - A] };
        i += 1;
    }
    all
}

impl Source {
    /// The whole text for the GPU's compiler.
    pub fn for_gpu(&self) -> String {
        [include_str!("device.cuh"), self.defines, self.text].join("\n")
    }
}

/// Storage type of elements. Sums are always in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    F32,
    F16,
    Bf16,
}

impl From<Scalar> for Kind {
    fn from(scalar: Scalar) -> Kind {
        match scalar {
            Scalar::F32 => Kind::F32,
            Scalar::F16 => Kind::F16,
            Scalar::Bf16 => Kind::Bf16,
        }
    }
}

impl Scalar {
    /// Bytes per element.
    pub fn bytes(self) -> usize {
        Kind::from(self).bytes()
    }

    /// The source for this storage type, out of sources that are compiled once per storage type.
    pub fn source(self, sources: &'static [Source; 3]) -> &'static Source {
        match self {
            Scalar::F32 => &sources[0],
            Scalar::F16 => &sources[1],
            Scalar::Bf16 => &sources[2],
        }
    }
}

//! Sources of kernels.

use super::Kind;

/// One source, compiled as a whole.
#[derive(Debug)]
pub struct Source {
    /// Name that tells it from the others.
    pub name: &'static str,
    /// Definitions in front of the text.
    pub defines: &'static str,
    /// CUDA C++ without includes.
    pub text: &'static str,
    /// Its kernels.
    pub kernels: &'static [&'static str],
}

/// The names of both lists, of which there are N.
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
    /// The whole text for the compiler of a GPU.
    pub fn for_gpu(&self) -> String {
        [include_str!("device.cuh"), self.defines, self.text].join("\n")
    }
}

/// How elements lie in memory; sums are in f32 either way.
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

    /// Of sources that are compiled once per storage, its own.
    pub fn source(self, sources: &'static [Source; 3]) -> &'static Source {
        match self {
            Scalar::F32 => &sources[0],
            Scalar::F16 => &sources[1],
            Scalar::Bf16 => &sources[2],
        }
    }
}

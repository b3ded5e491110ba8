//! Reference numbers of `tests/golden` (f64, from an independent PyTorch implementation), for unit tests.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::Real;

/// One case's tensors.
pub struct Golden(Vec<u8>);

impl Golden {
    /// The case called `name`.
    pub fn load(name: &str) -> Self {
        // At run time the variable says where the repository is, in case the tests were built elsewhere.
        let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
        let path = Path::new(&root).join(format!("../tests/golden/{name}.safetensors"));
        Self(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// Names of the tensors.
    pub fn names(&self) -> Vec<String> {
        self.tensors().names().into_iter().map(String::from).collect()
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensors().tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).shape().to_vec()
    }

    /// Values of a floating-point tensor.
    pub fn get<E: Real>(&self, name: &str) -> Vec<E> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F64 => data.chunks_exact(8).map(|b| E::of(f64::from_le_bytes(b.try_into().unwrap()))).collect(),
            Dtype::F32 => {
                data.chunks_exact(4).map(|b| E::of(f32::from_le_bytes(b.try_into().unwrap()) as f64)).collect()
            }
            Dtype::F16 => {
                data.chunks_exact(2).map(|b| E::of(half::f16::from_le_bytes([b[0], b[1]]).to_f64())).collect()
            }
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Value of a floating-point scalar.
    pub fn scalar(&self, name: &str) -> f64 {
        self.get::<f64>(name)[0]
    }

    /// Values of an integer tensor.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensor.dtype(), Dtype::I64);
        tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// Values of a tensor [n, channels, h, w] as [n, h, w, channels].
    pub fn channels_last<E: Real>(&self, name: &str) -> Vec<E> {
        let [n, c, h, w] = self.shape(name)[..] else { panic!("{name} has not four axes") };
        channels_last(&self.get::<E>(name), [n, c, h, w])
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }
}

/// [n, channels, h, w] to [n, h, w, channels].
pub fn channels_last<E: Real>(values: &[E], [n, c, h, w]: [usize; 4]) -> Vec<E> {
    assert_eq!(values.len(), n * c * h * w);
    let at = |i: usize| {
        let (pixel, channel) = (i / c, i % c);
        let (image, pixel) = (pixel / (h * w), pixel % (h * w));
        values[(image * c + channel) * h * w + pixel]
    };
    (0..values.len()).map(at).collect()
}

/// Fails unless every value is within `tolerance` of the expected one, relative to the largest expected magnitude
/// (or to 1, if that is larger).
#[track_caller]
pub fn assert_close<E: Real>(what: &str, actual: &[E], expected: &[E], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0f64, |m, e| m.max(e.as_f64().abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let difference = (a.as_f64() - e.as_f64()).abs();
        assert!(difference <= tolerance * scale, "{what}[{i}]: {a:?} instead of {e:?}, off by {difference:e}");
    }
}

/// Tolerance for results that are exact up to rounding: f64 runs agree to 1e-10, f32 runs to `f32_tolerance`.
pub fn tolerance<E: Real>(f32_tolerance: f64) -> f64 {
    if size_of::<E>() == 8 { 1e-10 } else { f32_tolerance }
}

//! The GPUs that tests of kernels run on: the emulation, and `cuda:0` if there is one.

use half::{bf16, f16};

use super::{Buffer, Gpu, Kind, Scalar};

/// With this variable set, tests run on `cuda:0` alone, and fail if it is not usable.
const ONLY_CUDA: &str = "SNCLR_ONLY_CUDA";
/// With this variable set, tests fail if there is no emulation, instead of testing nothing.
const REQUIRED: &str = "SNCLR_REQUIRE_EMULATION";

/// Runs `test` on the emulation, in three orders of a block's threads, and twice on `cuda:0` if there is one. Fails if the result
/// depends on the order of threads or differs when repeated. `test` itself compares the result with a reference, and returns it.
pub fn on_every_gpu<T: PartialEq>(test: impl Fn(&Gpu) -> T) {
    let results: Vec<T> = [0, 1, 2].into_iter().filter_map(emulation).map(|gpu| test(&gpu)).collect();
    assert!(results.iter().all(|r| *r == results[0]), "the order of threads changes the result: a barrier is missing");
    if let Some(gpu) = nvidia() {
        assert!(test(&gpu) == test(&gpu), "{} does not repeat its result", gpu.name());
    }
}

/// A GPU for tests that take long: `cuda:0`, or the emulation in one order of threads. None if there is neither a GPU nor a
/// compiler.
pub fn one_gpu() -> Option<Gpu> {
    nvidia().or_else(|| emulation(2))
}

/// A buffer of `values` in the storage type `scalar`.
pub fn upload(gpu: &Gpu, scalar: Scalar, values: &[f32]) -> Buffer {
    match scalar {
        Scalar::F32 => gpu.upload(values),
        Scalar::F16 => gpu.upload(&values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>()),
        Scalar::Bf16 => gpu.upload(&values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>()),
    }
    .expect("a device that works")
}

/// The values of a buffer of floats.
pub fn read(buffer: &Buffer) -> Vec<f32> {
    match buffer.view().kind() {
        Kind::F16 => buffer.read::<f16>().expect("a device that works").into_iter().map(f16::to_f32).collect(),
        Kind::Bf16 => buffer.read::<bf16>().expect("a device that works").into_iter().map(bf16::to_f32).collect(),
        _ => buffer.read().expect("a device that works"),
    }
}

/// GPUs whose library computes products: the emulation with one, and `cuda:0` if there is one and the library is chosen.
pub fn with_library() -> Vec<Gpu> {
    let nvidia = nvidia().filter(|gpu| gpu.traits().library);
    emulation_of(2, true).into_iter().chain(nvidia).collect()
}

fn emulation(order: usize) -> Option<Gpu> {
    emulation_of(order, false)
}

fn emulation_of(order: usize, library: bool) -> Option<Gpu> {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let found = if is_set(ONLY_CUDA) { None } else { emulated(order, library) };
    assert!(found.is_some() || is_set(ONLY_CUDA) || !is_set(REQUIRED), "{REQUIRED} is set, but there is no emulation");
    found
}

#[cfg(target_arch = "x86_64")]
fn emulated(order: usize, library: bool) -> Option<Gpu> {
    use super::emulator::{ThreadOrder, emulated};
    let order = [ThreadOrder::Ascending, ThreadOrder::Descending, ThreadOrder::Scattered][order];
    emulated(order, library)
}

#[cfg(not(target_arch = "x86_64"))]
fn emulated(_order: usize, _library: bool) -> Option<Gpu> {
    None
}

#[cfg(feature = "cuda")]
fn nvidia() -> Option<Gpu> {
    match crate::ops::tensor::cuda::open(0) {
        Ok(cuda) => Some(crate::ops::tensor::cuda::gpu(&cuda).expect("a device that opens works")),
        Err(error) if std::env::var_os(ONLY_CUDA).is_some() => panic!("{error}"),
        Err(_) => None,
    }
}

#[cfg(not(feature = "cuda"))]
fn nvidia() -> Option<Gpu> {
    assert!(std::env::var_os(ONLY_CUDA).is_none(), "{ONLY_CUDA} is set, but this build has no feature `cuda`");
    None
}

//! The CUDA driver, on the stream of a device that others use too.

mod failure;
#[cfg(feature = "nccl")]
pub mod nccl;
mod pinned;

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::{CString, c_int},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::{
    driver::{CudaDevice, DriverError, result, sys},
    nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts},
};

use self::{
    failure::{explain, failed},
    pinned::Pinned,
};
use super::{Arg, Arriving, Driver, GpuError, Source, THREADS};

/// A usable GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub index: usize,
    pub name: String,
    /// Compute capability times ten, e.g. 90.
    pub capability: i32,
    /// Bytes.
    pub memory: usize,
}

/// All GPUs that can be used. Never panics, whatever the machine lacks.
///
/// # Errors
/// When there is no driver or no device.
pub fn devices() -> Result<Vec<Device>, GpuError> {
    let none = |error: DriverError| GpuError::NoDevice(explain(&error));
    result::init().map_err(none)?;
    let count = result::device::get_count().map_err(none)?;
    let device = |index: c_int| {
        let device = result::device::get(index)?;
        let mut name = [0; 128];
        // SAFETY: `device` is one of this driver's, and `name` holds as many bytes as are allowed.
        let (capability, memory) = unsafe {
            sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device).result()?;
            let major = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
            let minor = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
            let capability =
                10 * result::device::get_attribute(device, major)? + result::device::get_attribute(device, minor)?;
            (capability, result::device::total_mem(device)?)
        };
        let name = name.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
        Ok(Device { index: index as usize, name, capability, memory })
    };
    let devices: Result<Vec<Device>, DriverError> = (0..count).map(device).collect();
    match devices.map_err(none)? {
        devices if devices.is_empty() => Err(GpuError::NoDevice("the driver knows of none".into())),
        devices => Ok(devices),
    }
}

/// Bytes of the memory of this thread's device that are in use, by any process; None where the driver does not tell.
pub fn memory_in_use() -> Option<usize> {
    let (free, total) = result::mem_get_info().ok()?;
    Some(total - free)
}

/// Checks that the device with the number `index` can be used.
///
/// # Errors
/// When there is none, or it is too old.
pub fn check(index: usize) -> Result<(), GpuError> {
    let devices = devices()?;
    let Some(device) = devices.get(index) else {
        let there = devices.iter().map(|d| format!("cuda:{}", d.index)).collect::<Vec<_>>().join(", ");
        return Err(GpuError::NoDevice(format!("cuda:{index} is not there; there is {there}")));
    };
    if device.capability < 80 {
        let (major, minor) = (device.capability / 10, device.capability % 10);
        return Err(GpuError::NoDevice(format!(
            "cuda:{index} ({}) has compute capability {major}.{minor}; at least 8.0 is needed",
            device.name
        )));
    }
    Ok(())
}

/// A device as a driver of our kernels: same context, same stream.
#[derive(Debug)]
pub struct Nvidia {
    device: Arc<CudaDevice>,
    name: String,
    /// Architecture in NVRTC's terms, e.g. `compute_90`.
    architecture: &'static str,
    /// What copies from and to the host go through.
    pinned: Arc<Pinned>,
    /// Kernels of the sources that are compiled and loaded.
    loaded: Mutex<HashMap<&'static str, HashMap<&'static str, Function>>>,
}

/// A kernel's handle.
#[derive(Clone, Copy, Debug)]
struct Function(sys::CUfunction);

// SAFETY: the driver's handles may be used from any thread of the process.
unsafe impl Send for Function {}

impl Nvidia {
    /// The driver of a device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(device: Arc<CudaDevice>) -> Result<Self, GpuError> {
        let devices = devices()?;
        let found = devices.get(device.ordinal()).ok_or_else(|| GpuError::NoDevice("it has gone".into()))?;
        let _ = keep_memory(&device); // a device without it does the same, more slowly
        let architecture = if found.capability >= 90 { "compute_90" } else { "compute_80" };
        let name = found.name.clone();
        let pinned = Arc::new(Pinned::new(device.clone()));
        Ok(Self { device, name, architecture, pinned, loaded: Mutex::default() })
    }

    fn stream(&self) -> sys::CUstream {
        *self.device.cu_stream()
    }

    fn bind(&self) -> Result<(), GpuError> {
        self.device.bind_to_thread().map_err(failed("changing threads"))
    }

    /// The function of a kernel; its source is compiled when it is first used.
    fn function(&self, source: &'static Source, kernel: &str) -> Result<Function, GpuError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let functions = match loaded.entry(source.name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(self.compile(source)?),
        };
        functions
            .get(kernel)
            .copied()
            .ok_or_else(|| GpuError::Failed { what: kernel.into(), why: format!("{} has no such kernel", source.name) })
    }

    fn compile(&self, source: &'static Source) -> Result<HashMap<&'static str, Function>, GpuError> {
        let options = CompileOptions { arch: Some(self.architecture), ..CompileOptions::default() };
        let ptx = compile_ptx_with_opts(source.for_gpu(), options).map_err(|error| GpuError::Compile {
            name: source.name.into(),
            log: match error {
                CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
                other => format!("{other:?}"),
            },
        })?;
        let image = CString::new(ptx.to_src()).map_err(|_| GpuError::Compile {
            name: source.name.into(),
            log: "the compiler gave something else than text".into(),
        })?;
        self.bind()?;
        // SAFETY: the image is a text that ends with NUL; the module stays loaded as long as the process lives.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(failed("loading kernels"))?;
        let function = |name: &&'static str| {
            let symbol = CString::new(*name).expect("names of kernels have no NUL");
            // SAFETY: the module was loaded just now.
            let function = unsafe { result::module::get_function(module, symbol) }.map_err(failed(name))?;
            Ok((*name, Function(function)))
        };
        source.kernels.iter().map(function).collect()
    }
}

/// Lets the driver keep the memory of dfdx's tensors for the next ones. It would give it back whenever the host waits, and
/// fetch it anew in the next step.
fn keep_memory(device: &CudaDevice) -> Result<(), DriverError> {
    let (mut pool, mut most) = (std::ptr::null_mut(), u64::MAX);
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is this driver's, and the attribute's value a u64.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, *device.cu_device()).result()?;
        sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut most).cast()).result()
    }
}

impl Driver for Nvidia {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, GpuError> {
        self.bind()?;
        let memory = |error: DriverError| GpuError::Memory { bytes, why: explain(&error) };
        // SAFETY: the context is bound to this thread.
        unsafe { result::malloc_sync(bytes) }.map_err(memory)
    }

    unsafe fn free(&self, at: u64) {
        // A device that fails here has failed before and said so.
        if self.bind().is_ok() {
            // SAFETY: it came from `malloc_sync`, as the caller promises.
            let _ = unsafe { result::free_sync(at) };
        }
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: there are as many bytes, as the caller promises.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream()) }.map_err(failed("clearing memory"))
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), GpuError> {
        // Straight from `from`, which is no page-locked memory, the driver would wait for all work before.
        // SAFETY: there is room, as the caller promises.
        unsafe { self.pinned.upload(to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: there are as many bytes, as the caller promises.
        unsafe { result::memcpy_dtoh_sync(to, from) }.map_err(failed("copying from the GPU"))
    }

    unsafe fn download_later(&self, from: u64, bytes: usize) -> Result<Box<dyn Arriving>, GpuError> {
        // SAFETY: there are as many bytes, as the caller promises.
        Ok(Box::new(unsafe { Pinned::download(&self.pinned, from, bytes) }?))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: there are as many bytes, as the caller promises.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream()) }.map_err(failed("copying on the GPU"))
    }

    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: &str,
        grid: [usize; 3],
        args: &[Arg],
    ) -> Result<(), GpuError> {
        let Function(function) = self.function(source, kernel)?;
        self.bind()?;
        let [x, y, z] = grid.map(|n| n as u32);
        let (grid, block) = ((x, y, z), (THREADS as u32, 1, 1));
        let mut pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        // SAFETY: the arguments are those of the kernel, as the caller promises, and outlive the call, which copies them.
        unsafe { result::launch_kernel(function, grid, block, 0, self.stream(), &mut pointers) }.map_err(failed(kernel))
    }
}

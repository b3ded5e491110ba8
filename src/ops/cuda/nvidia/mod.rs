//! The CUDA driver as a backend, on the stream of a device that dfdx uses, too.

mod failure;
mod library;
#[cfg(feature = "nccl")]
pub mod nccl;
mod pinned;

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::{CString, c_char, c_int},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::{
    driver::{CudaDevice, DriverError, result, sys},
    nvrtc::{self, result::NvrtcError},
};

use self::{
    failure::{explain, failed},
    library::Library,
    pinned::Pinned,
};
use super::{Arg, Arriving, Driver, GpuError, Matrices, Product, Source, THREADS, Traits, compiled::kept};

/// A GPU that the driver knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub index: usize,
    pub name: String,
    /// Compute capability times ten, e.g. 90.
    pub capability: i32,
    /// Bytes.
    pub memory: usize,
}

/// All GPUs that the driver knows, including those that [`check`] refuses. Never panics, whatever the machine lacks.
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
        // SAFETY: `device` comes from this driver, which writes at most `name.len()` bytes to `name`.
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

/// Bytes of memory that any process uses on this thread's device. None if the driver does not report them.
pub fn memory_in_use() -> Option<usize> {
    let (free, total) = result::mem_get_info().ok()?;
    Some(total - free)
}

/// Checks that the device with the number `index` can be used.
///
/// # Errors
/// When there is no such device, or it is too old.
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

/// With this variable set, cuBLASLt computes matrix products.
const CUBLASLT: &str = "SNCLR_CUBLASLT";

/// Name and version of the library that computes matrix products, e.g. `cuBLASLt 130100` for 13.1.0. None if our kernels do.
pub fn library() -> Option<String> {
    std::env::var_os(CUBLASLT).map(|_| format!("cuBLASLt {}", library::version()))
}

/// A CUDA device as a [`Driver`] of our kernels, with the same context and stream.
#[derive(Debug)]
pub struct Nvidia {
    device: Arc<CudaDevice>,
    name: String,
    /// Architecture in NVRTC's terms, e.g. `compute_90a`.
    architecture: &'static str,
    traits: Traits,
    /// Page-locked memory for copies from and to the host.
    pinned: Arc<Pinned>,
    /// Functions of the sources that are compiled and loaded, by the names of source and kernel.
    loaded: Mutex<HashMap<&'static str, HashMap<&'static str, Function>>>,
    /// cuBLASLt, where the user has chosen it.
    library: Option<Library>,
}

/// A kernel's handle, and the bytes of dynamic shared memory that a launch has to request.
#[derive(Clone, Copy, Debug)]
struct Function {
    handle: sys::CUfunction,
    memory: u32,
}

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
        let _ = keep_memory(&device); // a device without memory pools works, too, but more slowly
        // Code for `compute_90a` runs only on compute capability 9.0, not on later ones.
        let (architecture, groups) = match found.capability {
            90 => ("compute_90a", true),
            91.. => ("compute_90", false),
            _ => ("compute_80", false),
        };
        let name = found.name.clone();
        let library = if library().is_some() { Some(Library::open(&device)?) } else { None };
        let pinned = Arc::new(Pinned::new(device.clone()));
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = device.attribute(count).map_err(failed("asking for the number of multiprocessors"))?;
        let traits = Traits { groups, multiprocessors: multiprocessors as usize, library: library.is_some() };
        Ok(Self { device, name, architecture, traits, pinned, loaded: Mutex::default(), library })
    }

    fn stream(&self) -> sys::CUstream {
        *self.device.cu_stream()
    }

    fn bind(&self) -> Result<(), GpuError> {
        self.device.bind_to_thread().map_err(failed("changing threads"))
    }

    /// The function of a kernel. Its source is compiled on first use.
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
        let image = translate(source, self.architecture)?;
        self.bind()?;
        // SAFETY: the image is a text that ends with NUL; the module stays loaded as long as the process lives.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(failed("loading kernels"))?;
        let function = |name: &&'static str| {
            let symbol = CString::new(*name).expect("names of kernels have no NUL");
            // SAFETY: the module was loaded just now.
            let handle = unsafe { result::module::get_function(module, symbol) }.map_err(failed(name))?;
            let memory = dynamic_memory(module, handle, name).map_err(failed(name))?;
            Ok((*name, Function { handle, memory }))
        };
        source.kernels.iter().filter(|name| self.traits.groups || !name.contains("_groups_")).map(function).collect()
    }
}

/// Bytes of dynamic shared memory that a kernel needs. Its module stores the number in a variable, which `TAKES` of `device.cuh`
/// defines; a kernel without one needs none. Also tells the driver that the kernel may use that much.
fn dynamic_memory(module: sys::CUmodule, kernel: sys::CUfunction, name: &str) -> Result<u32, DriverError> {
    let symbol = CString::new(format!("{name}_memory")).expect("names of kernels have no NUL");
    let (mut at, mut size, mut bytes) = (0, 0, 0i32);
    // SAFETY: the module is loaded, `kernel` belongs to it, and the variable of this name is an int.
    unsafe {
        let found = sys::cuModuleGetGlobal_v2(&mut at, &mut size, module, symbol.as_ptr());
        if found == sys::CUresult::CUDA_ERROR_NOT_FOUND {
            return Ok(0);
        }
        found.result()?;
        assert_eq!(size, size_of::<i32>(), "{name}_memory is an int");
        result::memcpy_dtoh_sync(std::slice::from_mut(&mut bytes), at)?;
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        sys::cuFuncSetAttribute(kernel, most, bytes).result()?;
    }
    Ok(bytes as u32)
}

/// The folder of compiled kernels: `snclr/kernels` in the user's cache folder. None if neither `XDG_CACHE_HOME` nor `HOME` is an
/// absolute path.
fn folder_of_kernels() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(caches.join("snclr").join("kernels"))
}

/// Translates a source to PTX, the language of the driver's compiler. The PTX is cached for later processes, as the driver caches
/// the code that it compiles from it.
fn translate(source: &Source, architecture: &str) -> Result<CString, GpuError> {
    let failed = |log: String| GpuError::Compile { name: source.name.into(), log };
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are to an int.
    let _ = unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
    let text = source.for_gpu();
    let all = format!("NVRTC {major}.{minor}, {architecture}\n{text}");
    let ptx = kept(folder_of_kernels().as_deref(), &all, || compile_ptx(&text, architecture).map_err(failed))?;
    CString::new(ptx).map_err(|_| failed("the compiler gave something else than text".into()))
}

/// The PTX that NVRTC compiles from a text, or its error log.
fn compile_ptx(text: &str, architecture: &str) -> Result<Vec<u8>, String> {
    // PTX and log end with NUL.
    let bytes =
        |text: Vec<c_char>| text.into_iter().map(|c| c as u8).take_while(|byte| *byte != 0).collect::<Vec<u8>>();
    let code = |error: NvrtcError| format!("{error:?}");
    let program = nvrtc::result::create_program(text).map_err(code)?;
    // Without the second option, generic lambdas would be host functions.
    let options = [format!("--gpu-architecture={architecture}"), "--device-as-default-execution-space".to_owned()];
    // SAFETY: the program was made just now, and is destroyed once at the end.
    unsafe {
        let result = match nvrtc::result::compile_program(program, &options) {
            Ok(()) => nvrtc::result::get_ptx(program).map(bytes).map_err(code),
            Err(error) => Err(match nvrtc::result::get_program_log(program) {
                Ok(log) => String::from_utf8_lossy(&bytes(log)).into_owned(),
                Err(_) => code(error),
            }),
        };
        let _ = nvrtc::result::destroy_program(program);
        result
    }
}

/// Lets the driver keep freed memory of dfdx's tensors for later tensors. Otherwise it would release the memory whenever the host
/// waits, and allocate it again in the next step.
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

    fn traits(&self) -> Traits {
        self.traits
    }

    fn allocate(&self, bytes: usize) -> Result<u64, GpuError> {
        self.bind()?;
        let memory = |error: DriverError| GpuError::Memory { bytes, why: explain(&error) };
        // SAFETY: the context is bound to this thread.
        unsafe { result::malloc_sync(bytes) }.map_err(memory)
    }

    unsafe fn free(&self, at: u64) {
        // A device that fails here has failed before, and that error was reported.
        if self.bind().is_ok() {
            // SAFETY: the address came from `allocate`, which calls `malloc_sync`, as the caller promises.
            let _ = unsafe { result::free_sync(at) };
        }
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: the device has as many bytes as are accessed, as the caller promises.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream()) }.map_err(failed("clearing memory"))
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), GpuError> {
        // `from` is not page-locked. If the driver copied directly from it, it would wait for all earlier work.
        // SAFETY: the device has room for `from` at `to`, as the caller promises.
        unsafe { self.pinned.upload(to, from) }
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: the device has as many bytes as are accessed, as the caller promises.
        unsafe { result::memcpy_dtoh_sync(to, from) }.map_err(failed("copying from the GPU"))
    }

    unsafe fn download_later(&self, from: u64, bytes: usize) -> Result<Box<dyn Arriving>, GpuError> {
        // SAFETY: the device has as many bytes as are accessed, as the caller promises.
        Ok(Box::new(unsafe { Pinned::download(&self.pinned, from, bytes) }?))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        self.bind()?;
        // SAFETY: the device has as many bytes as are accessed, as the caller promises.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream()) }.map_err(failed("copying on the GPU"))
    }

    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: &str,
        grid: [usize; 3],
        args: &[Arg],
    ) -> Result<(), GpuError> {
        let Function { handle, memory } = self.function(source, kernel)?;
        self.bind()?;
        let [x, y, z] = grid.map(|n| n as u32);
        let (grid, block) = ((x, y, z), (THREADS as u32, 1, 1));
        let mut pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        // SAFETY: the arguments are those of the kernel, as the caller promises, and outlive the call, which copies them.
        unsafe { result::launch_kernel(handle, grid, block, memory, self.stream(), &mut pointers) }
            .map_err(failed(kernel))
    }

    unsafe fn multiply(&self, product: Product, at: Matrices<u64>) -> Result<(), GpuError> {
        let Some(library) = &self.library else {
            return Err(GpuError::Failed { what: "a product".into(), why: format!("{CUBLASLT} is not set") });
        };
        self.bind()?;
        // SAFETY: the device has the matrices, as the caller promises.
        unsafe { library.multiply(product, at, self.stream()) }
    }
}

//! Runs kernels on the CPU for tests: the same sources, compiled as C++, with fibers as threads (see `host.hpp`).
//!
//! The emulation checks indices, sums, barriers and launch code. It cannot check speed, or effects that only hardware has.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
};

use libloading::Library;

use super::{Arg, Arriving, Driver, Gpu, GpuError, Source, Traits};

/// `emulate` of `host.hpp`: kernel, grid, arguments, order of threads. Returns an error text or null.
type Emulate = unsafe extern "C" fn(*const c_char, *const u32, *const *mut c_void, c_int) -> *const c_char;

/// Order in which the threads of a block run between two barriers. Results must not depend on it.
#[derive(Clone, Copy, Debug)]
pub enum ThreadOrder {
    Ascending = 0,
    Descending = 1,
    Scattered = 2,
}

#[derive(Debug)]
struct Emulator(ThreadOrder);

/// An emulated GPU. None if there is no C++ compiler; a warning on stderr then says so.
pub fn emulated(order: ThreadOrder) -> Option<Gpu> {
    static COMPILER: OnceLock<bool> = OnceLock::new();
    let found = *COMPILER.get_or_init(|| {
        let found = Command::new("c++").arg("--version").output().is_ok_and(|output| output.status.success());
        if !found {
            eprintln!("warning: no C++ compiler (Debian's package g++): CUDA kernels are not run");
        }
        found
    });
    found.then(|| Gpu::new(Emulator(order)))
}

/// The entry point of a source's kernels. The source is compiled on first use. The lock lets one kernel run at a time.
fn entry(source: &'static Source) -> Result<&'static Mutex<Emulate>, GpuError> {
    static LOADED: OnceLock<Mutex<HashMap<&'static str, &'static Mutex<Emulate>>>> = OnceLock::new();
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(entry) = loaded.get(source.name) {
        return Ok(entry);
    }
    let dir = tempfile::tempdir().expect("a temporary folder"); // may be removed once the library is loaded
    let library = compile(source, dir.path())?;
    // SAFETY: the library is ours and runs nothing when it is loaded.
    let library = Box::leak(Box::new(unsafe { Library::new(library) }.expect("a library that loads")));
    // SAFETY: `emulate` has this type, and the library stays loaded.
    let emulate = *unsafe { library.get::<Emulate>(b"emulate") }.expect("the library's entry");
    let entry: &'static Mutex<Emulate> = Box::leak(Box::new(Mutex::new(emulate)));
    loaded.insert(source.name, entry);
    Ok(entry)
}

fn compile(source: &Source, dir: &Path) -> Result<PathBuf, GpuError> {
    let (text, library) = (dir.join(format!("{}.cpp", source.name)), dir.join(format!("{}.so", source.name)));
    let table: String =
        source.kernels.iter().map(|name| format!("    {{\"{name}\", Caller<&{name}>::run}},\n")).collect();
    let table = format!("const Named KERNELS[] = {{\n{table}    {{nullptr, nullptr}},\n}};\n");
    let whole = [include_str!("host.hpp"), source.defines, source.text, &table].join("\n");
    std::fs::write(&text, whole).expect("a file in the temporary folder");
    // Optimised, without fused multiply-add and without reordering of sums.
    let flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-w"];
    // With AVX2 and F16C the code multiplies eight values at a time and converts halves in hardware: the same bits, faster.
    let units = [("-mavx2", is_x86_feature_detected!("avx2")), ("-mf16c", is_x86_feature_detected!("f16c"))];
    let units = units.iter().filter(|(_, found)| *found).map(|(flag, _)| flag);
    let output =
        Command::new("c++").args(flags).args(units).arg(&text).arg("-o").arg(&library).output().expect("c++ runs");
    match output.status.success() {
        true => Ok(library),
        false => Err(GpuError::Compile {
            name: source.name.into(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
    }
}

/// Bytes that have already been copied: the emulation finishes its work before a call returns.
struct Copied(Vec<u8>);

impl Arriving for Copied {
    fn wait(self: Box<Self>, to: &mut [u8]) -> Result<(), GpuError> {
        to.copy_from_slice(&self.0);
        Ok(())
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        "emulation".into()
    }

    fn traits(&self) -> Traits {
        // One order runs without groups, so that tests run both code paths, which must give the same bits.
        Traits { groups: !matches!(self.0, ThreadOrder::Descending), multiprocessors: 1 }
    }

    fn allocate(&self, bytes: usize) -> Result<u64, GpuError> {
        // Fills the memory with NaNs, so that tests notice values that are read before they are written.
        let memory = vec![[0xffu8; 64]; bytes.div_ceil(64) + 8].leak();
        Ok(memory.as_ptr() as u64 / 256 * 256 + 256)
    }

    unsafe fn free(&self, _at: u64) {}

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError> {
        // SAFETY: the memory belongs to this process, and is as long as the caller promises.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), GpuError> {
        // SAFETY: the memory belongs to this process, and is as long as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), GpuError> {
        // SAFETY: the memory belongs to this process, and is as long as the caller promises.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn download_later(&self, from: u64, bytes: usize) -> Result<Box<dyn Arriving>, GpuError> {
        let mut values = vec![0; bytes];
        // SAFETY: as the caller promises.
        unsafe { self.download(from, &mut values) }?;
        Ok(Box::new(Copied(values)))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        // SAFETY: the memory belongs to this process, and is as long as the caller promises.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: &str,
        grid: [usize; 3],
        args: &[Arg],
    ) -> Result<(), GpuError> {
        let entry = entry(source)?.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, grid) = (CString::new(kernel).expect("no NUL"), grid.map(|n| n as u32));
        let pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        // SAFETY: the arguments are those of the kernel, as the caller promises.
        let complaint = unsafe { entry(name.as_ptr(), grid.as_ptr(), pointers.as_ptr(), self.0 as c_int) };
        if complaint.is_null() {
            return Ok(());
        }
        // SAFETY: the text is a string literal of the emulation.
        let why = unsafe { CStr::from_ptr(complaint) }.to_string_lossy().into_owned();
        Err(GpuError::Failed { what: kernel.into(), why })
    }
}

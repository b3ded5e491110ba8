//! Runs kernels on the CPU for tests: the same sources, compiled as C++, with fibers as threads (see `host.hpp`).
//!
//! The emulation checks indices, sums, barriers and launch code. It cannot check speed, or effects that only hardware has.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_void},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
};

use half::{bf16, f16};
use libloading::Library;

use super::{Arg, Arriving, Driver, Gpu, GpuError, Kind, Matrices, Product, Source, Traits, compiled::kept};

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
struct Emulator {
    order: ThreadOrder,
    /// Whether the device has a library for products.
    library: bool,
}

/// An emulated GPU, with or without a library for products. None if there is no C++ compiler; a warning on stderr then says so.
pub fn emulated(order: ThreadOrder, library: bool) -> Option<Gpu> {
    compiler().map(|_| Gpu::new(Emulator { order, library }))
}

/// The C++ compiler's name and version, if there is one.
fn compiler() -> Option<&'static str> {
    static VERSION: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let found = Command::new("c++").arg("--version").output().ok().filter(|output| output.status.success());
        if found.is_none() {
            eprintln!("warning: no C++ compiler (Debian's package g++): CUDA kernels are not run");
        }
        found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    VERSION.get_or_init(find).as_deref()
}

/// The entry points of the copies of a source's library. A copy runs one kernel at a time, because its memory is static. There are
/// as many copies as processors, so that tests do not wait for each other.
type Copies = &'static [Mutex<Emulate>];

/// The copies of a source's library. The first caller compiles it. Callers for other sources do not wait for that.
fn copies(source: &'static Source) -> Result<Copies, GpuError> {
    type Slot = &'static Mutex<Option<Copies>>;
    static SLOTS: OnceLock<Mutex<HashMap<&'static str, Slot>>> = OnceLock::new();
    let slot: Slot = {
        let mut slots = SLOTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(source.name).or_insert_with(|| Box::leak(Box::default()))
    };
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(copies) = *slot {
        return Ok(copies);
    }
    let library = compile(source)?;
    let dir = tempfile::tempdir().expect("a temporary folder"); // may be removed once the copies are loaded
    let load = |copy: usize| {
        // The loader recognises a library by its inode, so each copy needs a file of its own.
        let path = dir.path().join(format!("{copy}.so"));
        std::fs::write(&path, &library).expect("a file in the temporary folder");
        // SAFETY: the library is ours and runs nothing when it is loaded.
        let library = Box::leak(Box::new(unsafe { Library::new(path) }.expect("a library that loads")));
        // SAFETY: `emulate` has this type, and the library stays loaded.
        Mutex::new(*unsafe { library.get::<Emulate>(b"emulate") }.expect("the library's entry"))
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let loaded: Copies = Vec::leak((0..processors).map(load).collect());
    *slot = Some(loaded);
    Ok(loaded)
}

/// The library of a source. It is kept beside the test program, for its next start and for processes that tests start.
fn compile(source: &Source) -> Result<Vec<u8>, GpuError> {
    let table: String =
        source.kernels.iter().map(|name| format!("    {{\"{name}\", Caller<&{name}>::run}},\n")).collect();
    let table = format!("const Named KERNELS[] = {{\n{table}    {{nullptr, nullptr}},\n}};\n");
    let whole = [include_str!("host.hpp"), source.defines, source.text, &table].join("\n");
    // Optimised, without fused multiply-add and without reordering of sums.
    let mut flags = vec!["-std=c++17", "-O3", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-w"];
    // With AVX2 and F16C the code multiplies eight values at a time and converts halves in hardware: the same bits, faster.
    flags.extend(is_x86_feature_detected!("avx2").then_some("-mavx2"));
    flags.extend(is_x86_feature_detected!("f16c").then_some("-mf16c"));
    let folder = std::env::current_exe().expect("a program").with_file_name("emulated-kernels");
    let all = format!("{}{}\n{whole}", compiler().expect("a compiler"), flags.join(" "));
    kept(Some(&folder), &all, || {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (text, library) = (dir.path().join(format!("{}.cpp", source.name)), dir.path().join("library.so"));
        std::fs::write(&text, whole).expect("a file in the temporary folder");
        let output = Command::new("c++").args(flags).arg(&text).arg("-o").arg(&library).output().expect("c++ runs");
        match output.status.success() {
            true => Ok(std::fs::read(&library).expect("the library")),
            false => Err(GpuError::Compile {
                name: source.name.into(),
                log: String::from_utf8_lossy(&output.stderr).into_owned(),
            }),
        }
    })
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
        Traits { groups: !matches!(self.order, ThreadOrder::Descending), multiprocessors: 1, library: self.library }
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
        let copies = copies(source)?;
        let free = copies.iter().find_map(|copy| copy.try_lock().ok());
        let entry = free.unwrap_or_else(|| copies[0].lock().unwrap_or_else(PoisonError::into_inner));
        let (name, grid) = (CString::new(kernel).expect("no NUL"), grid.map(|n| n as u32));
        let pointers: Vec<_> = args.iter().map(Arg::pointer).collect();
        // SAFETY: the arguments are those of the kernel, as the caller promises.
        let complaint = unsafe { entry(name.as_ptr(), grid.as_ptr(), pointers.as_ptr(), self.order as c_int) };
        if complaint.is_null() {
            return Ok(());
        }
        // SAFETY: the text is a string literal of the emulation.
        let why = unsafe { CStr::from_ptr(complaint) }.to_string_lossy().into_owned();
        Err(GpuError::Failed { what: kernel.into(), why })
    }

    /// By the definition, element by element.
    unsafe fn multiply(&self, product: Product, at: Matrices<u64>) -> Result<(), GpuError> {
        assert!(self.library, "this emulation has a library");
        let Product { m, n, k, transposed, factors, result, count, .. } = product;
        // SAFETY: the memory belongs to this process, and has the elements of the product, as the caller promises.
        let load = |at: u64, kind: Kind, i: usize| unsafe {
            match kind {
                Kind::F16 => (at as *const f16).add(i).read().to_f32(),
                Kind::Bf16 => (at as *const bf16).add(i).read().to_f32(),
                Kind::F32 => (at as *const f32).add(i).read(),
                _ => unreachable!("factors and results are floats"),
            }
        };
        // SAFETY: as above.
        let store = |at: u64, i: usize, value: f32| unsafe {
            match result {
                Kind::F16 => (at as *mut f16).add(i).write(f16::from_f32(value)),
                Kind::Bf16 => (at as *mut bf16).add(i).write(bf16::from_f32(value)),
                Kind::F32 => (at as *mut f32).add(i).write(value),
                _ => unreachable!("factors and results are floats"),
            }
        };
        for i in 0..count * n * m {
            let (which, column, row) = (i / (n * m), i / m % n, i % m);
            let a = |l: usize| which * m * k + if transposed[0] { row * k + l } else { l * m + row };
            let b = |l: usize| which * k * n + if transposed[1] { l * n + column } else { column * k + l };
            let mut sum = 0.0;
            for l in 0..k {
                sum += load(at.a, factors, a(l)) * load(at.b, factors, b(l));
            }
            let [bias, added] = [(at.bias, row), (at.added, i)].map(|(at, i)| at.map_or(0.0, |at| load(at, result, i)));
            store(at.d, i, sum + bias + added);
        }
        Ok(())
    }
}

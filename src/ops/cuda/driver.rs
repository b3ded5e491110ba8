//! A GPU as launch code sees it: memory that is handed back and used again, copies, and launches in order.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use super::Source;
use crate::ops::later::Later;

/// What a GPU could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    #[error("no CUDA device: {0}")]
    NoDevice(String),
    #[error("the GPU's memory cannot hold another {bytes} bytes: {why}")]
    Memory { bytes: usize, why: String },
    #[error("the GPU failed at {what}: {why}")]
    Failed { what: String, why: String },
    #[error("the kernels of {name} do not compile:\n{log}")]
    Compile { name: String, log: String },
}

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// An address on the device.
    At(u64),
    Int(i32),
    Float(f32),
    Double(f64),
    /// A struct of ints.
    Ints([i32; 10]),
}

impl Arg {
    /// A count.
    ///
    /// # Panics
    /// When it does not fit an int.
    pub fn count(n: usize) -> Self {
        Arg::Int(i32::try_from(n).expect("counts on the GPU fit an int"))
    }

    /// Where the value lies.
    pub(super) fn pointer(&self) -> *mut std::ffi::c_void {
        match self {
            Arg::At(value) => value as *const u64 as *mut _,
            Arg::Int(value) => value as *const i32 as *mut _,
            Arg::Float(value) => value as *const f32 as *mut _,
            Arg::Double(value) => value as *const f64 as *mut _,
            Arg::Ints(value) => value as *const [i32; 10] as *mut _,
        }
    }
}

/// What a [`Gpu`] stands on. Work is done in the order of the calls; only `download` waits for it, and memory of the host
/// may be used again as soon as a call returns.
pub trait Driver: Debug + Send + Sync {
    /// What the device calls itself.
    fn name(&self) -> String;
    fn allocate(&self, bytes: usize) -> Result<u64, GpuError>;
    fn free(&self, at: u64);
    fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError>;
    fn upload(&self, to: u64, from: &[u8]) -> Result<(), GpuError>;
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), GpuError>;
    /// Has so many bytes copied to the host when their turn comes.
    fn download_later(&self, from: u64, bytes: usize) -> Result<Box<dyn Arriving>, GpuError>;
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError>;
    fn launch(&self, source: &'static Source, kernel: &str, grid: [usize; 3], args: &[Arg]) -> Result<(), GpuError>;
}

/// Bytes on their way to the host.
pub trait Arriving {
    /// Waits for them.
    fn wait(self: Box<Self>, to: &mut [u8]) -> Result<(), GpuError>;
}

/// A GPU and its memory. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    driver: Box<dyn Driver>,
    /// Memory of earlier use: address and bytes.
    free: Mutex<Vec<(u64, usize)>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (at, _) in self.free.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.driver.free(at);
        }
    }
}

impl Gpu {
    /// A GPU behind `driver`.
    pub fn new(driver: impl Driver + 'static) -> Self {
        Gpu(Arc::new(Inner { driver: Box::new(driver), free: Mutex::default() }))
    }

    /// What the device calls itself.
    pub fn name(&self) -> String {
        self.0.driver.name()
    }

    /// A buffer of `bytes` bytes whose values are unspecified. Work in order makes it safe to use memory again that earlier
    /// work may still be reading.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn take(&self, bytes: usize) -> Result<Buffer, GpuError> {
        let room = bytes.max(1).next_multiple_of(512);
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |size: usize| size >= room && size <= 2 * room;
        let best = (0..free.len()).filter(|i| fits(free[*i].1)).min_by_key(|i| free[*i].1);
        let (at, room) = match best {
            Some(i) => free.swap_remove(i),
            None => match self.0.driver.allocate(room) {
                Ok(at) => (at, room),
                Err(_) => {
                    // What is free but of other sizes may be what is lacking.
                    free.drain(..).for_each(|(at, _)| self.0.driver.free(at));
                    (self.0.driver.allocate(room)?, room)
                }
            },
        };
        Ok(Buffer { gpu: self.clone(), at, bytes, room })
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn zeros(&self, bytes: usize) -> Result<Buffer, GpuError> {
        let buffer = self.take(bytes)?;
        self.0.driver.zero(buffer.at, bytes)?;
        Ok(buffer)
    }

    /// A buffer of `values`.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn upload<T: Plain>(&self, values: &[T]) -> Result<Buffer, GpuError> {
        let buffer = self.take(size_of_val(values))?;
        self.0.driver.upload(buffer.at, bytes_of(values))?;
        Ok(buffer)
    }

    /// Copies `bytes` bytes from one address to another.
    ///
    /// # Errors
    /// When the device fails.
    pub fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        self.0.driver.copy(from, to, bytes)
    }

    /// The `len` values at an address. Waits for all work before.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read<T: Plain>(&self, from: u64, len: usize) -> Result<Vec<T>, GpuError> {
        let mut values = vec![T::default(); len];
        self.0.driver.download(from, bytes_of_mut(&mut values))?;
        Ok(values)
    }

    /// The `len` values that are at an address when the work before has been done. Does not wait, unless for the values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_later<T: Plain>(&self, from: u64, len: usize) -> Result<Later<Vec<T>>, GpuError> {
        let arriving = self.0.driver.download_later(from, len * size_of::<T>())?;
        Ok(Later::new(move || {
            let mut values = vec![T::default(); len];
            arriving.wait(bytes_of_mut(&mut values))?;
            Ok(values)
        }))
    }

    /// Overwrites what lies at an address.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write<T: Plain>(&self, to: u64, values: &[T]) -> Result<(), GpuError> {
        self.0.driver.upload(to, bytes_of(values))
    }

    /// Sets `bytes` bytes at an address to zero.
    ///
    /// # Errors
    /// When the device fails.
    pub fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError> {
        self.0.driver.zero(at, bytes)
    }

    /// Runs a kernel on a grid of blocks.
    ///
    /// # Errors
    /// When it does not compile, or the device fails.
    pub fn launch(
        &self,
        source: &'static Source,
        kernel: &str,
        grid: [usize; 3],
        args: &[Arg],
    ) -> Result<(), GpuError> {
        self.0.driver.launch(source, kernel, grid, args)
    }
}

/// Memory of a GPU, handed back when dropped.
#[derive(Debug)]
pub struct Buffer {
    gpu: Gpu,
    at: u64,
    bytes: usize,
    room: usize,
}

impl Buffer {
    /// Its address.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// As an argument of a kernel.
    pub fn arg(&self) -> Arg {
        Arg::At(self.at)
    }

    /// All values. Waits for all work before.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read<T: Plain>(&self) -> Result<Vec<T>, GpuError> {
        self.gpu.read(self.at, self.bytes / size_of::<T>())
    }

    /// All values, when the work before has been done. Does not wait, unless for the values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_later<T: Plain>(&self) -> Result<Later<Vec<T>>, GpuError> {
        self.gpu.read_later(self.at, self.bytes / size_of::<T>())
    }

    /// A copy of it.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn try_clone(&self) -> Result<Buffer, GpuError> {
        let copy = self.gpu.take(self.bytes)?;
        self.gpu.copy(self.at, copy.at, self.bytes)?;
        Ok(copy)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gpu.0.free.lock().unwrap_or_else(PoisonError::into_inner).push((self.at, self.room));
    }
}

/// Values that are their bytes: no padding, every pattern valid.
pub trait Plain: Copy + Default + private::Sealed + 'static {}

mod private {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($t:ty),*) => {$(
        impl private::Sealed for $t {}
        impl Plain for $t {}
    )*};
}
plain!(u8, u16, i32, u32, i64, u64, f32, f64);

fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: T has no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: T has no padding, and every pattern of bytes is a value of it.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

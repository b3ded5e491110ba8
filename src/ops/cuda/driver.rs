//! The GPU as launch code uses it: memory that is reused, copies, and launches, all done in order.

use std::{
    fmt::Debug,
    marker::PhantomData,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytemuck::Pod;

use super::{Matrices, Product, Source};
use crate::ops::pending::Pending;

/// An error of a GPU.
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

/// Type of the elements of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    U8,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    I64,
    U64,
    F64,
}

impl Kind {
    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Kind::U8 => 1,
            Kind::F16 | Kind::Bf16 => 2,
            Kind::I32 | Kind::U32 | Kind::F32 => 4,
            Kind::I64 | Kind::U64 | Kind::F64 => 8,
        }
    }
}

/// A host type for the elements of a buffer.
pub trait Element: Pod + Send {
    const KIND: Kind;
}

macro_rules! elements {
    ($($t:ty: $kind:ident),*) => {$(
        impl Element for $t {
            const KIND: Kind = Kind::$kind;
        }
    )*};
}
elements!(u8: U8, half::f16: F16, half::bf16: Bf16, i32: I32, u32: U32, f32: F32, i64: I64, u64: U64, f64: F64);

/// A kernel's argument.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// Memory on the device, or null.
    At(Address),
    Int(i32),
    Float(f32),
    Double(f64),
    /// A struct of up to ten ints. A kernel reads as many as its struct has.
    Ints([i32; 10]),
}

/// An address on the device. Only a [`View`] or a [`Buffer`] gives one.
#[derive(Clone, Copy, Debug)]
pub struct Address(u64);

impl Arg {
    /// A struct of the ints `values`, ten at most.
    ///
    /// # Panics
    /// When there are more than ten, or one of them does not fit an int.
    pub fn ints(values: &[usize]) -> Self {
        let mut ints = [0; 10];
        for (int, value) in ints[..values.len()].iter_mut().zip(values) {
            *int = i32::try_from(*value).expect("sizes fit an int");
        }
        Arg::Ints(ints)
    }

    /// A count.
    ///
    /// # Panics
    /// When `n` does not fit an int.
    pub fn count(n: usize) -> Self {
        Arg::Int(i32::try_from(n).expect("counts on the GPU fit an int"))
    }

    /// A view of at least `len` elements of a kind, or null.
    ///
    /// # Panics
    /// When the view is of another kind or has fewer elements.
    pub fn optional(view: Option<View>, kind: impl Into<Kind>, len: usize) -> Self {
        view.map_or(Arg::At(Address(0)), |view| view.arg(kind, len))
    }

    /// Pointer to the argument's value.
    pub fn pointer(&self) -> *mut std::ffi::c_void {
        match self {
            Arg::At(Address(value)) => value as *const u64 as *mut _,
            Arg::Int(value) => value as *const i32 as *mut _,
            Arg::Float(value) => value as *const f32 as *mut _,
            Arg::Double(value) => value as *const f64 as *mut _,
            Arg::Ints(value) => value as *const [i32; 10] as *mut _,
        }
    }
}

/// Properties of a device by which kernels are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Whether tensor cores can work for groups of four warps (wgmma).
    pub groups: bool,
    /// Number of multiprocessors. A grid with fewer blocks leaves some of the device idle.
    pub multiprocessors: usize,
    /// Whether a library computes [products](Product).
    pub library: bool,
}

/// The backend of a [`Gpu`]. It does work in the order of the calls. Only `download` waits for the work; host memory may be
/// reused as soon as a call returns.
pub trait Driver: Debug + Send + Sync {
    /// Name of the device.
    fn name(&self) -> String;

    /// Properties by which kernels are chosen.
    fn traits(&self) -> Traits;

    /// Allocates memory and returns its address.
    fn allocate(&self, bytes: usize) -> Result<u64, GpuError>;

    /// Frees memory.
    ///
    /// # Safety
    /// `at` must come from `allocate`, and must not be used again.
    unsafe fn free(&self, at: u64);

    /// Sets bytes to zero.
    ///
    /// # Safety
    /// The device must have `bytes` bytes at `at`.
    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError>;

    /// Copies bytes from the host to the device.
    ///
    /// # Safety
    /// The device must have room for `from` at `to`.
    unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), GpuError>;

    /// Copies bytes from the device to the host. Waits for all earlier work.
    ///
    /// # Safety
    /// The device must have as many bytes at `from` as `to` has.
    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), GpuError>;

    /// Queues a copy of `bytes` bytes to the host, behind all earlier work.
    ///
    /// # Safety
    /// The device must have `bytes` bytes at `from`.
    unsafe fn download_later(&self, from: u64, bytes: usize) -> Result<Box<dyn Arriving>, GpuError>;

    /// Copies bytes within the device.
    ///
    /// # Safety
    /// The device must have `bytes` bytes at both addresses.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError>;

    /// Launches a kernel on a grid of blocks.
    ///
    /// # Safety
    /// As for [`Gpu::launch`].
    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: &str,
        grid: [usize; 3],
        args: &[Arg],
    ) -> Result<(), GpuError>;

    /// Computes products with the device's library.
    ///
    /// # Safety
    /// The device must have the elements that the product reads and writes at these addresses, which are multiples of 16.
    unsafe fn multiply(&self, product: Product, at: Matrices<u64>) -> Result<(), GpuError>;
}

/// Bytes that are being copied to the host.
pub trait Arriving: Send {
    /// Waits until the bytes have arrived, and writes them to `to`.
    fn wait(self: Box<Self>, to: &mut [u8]) -> Result<(), GpuError>;
}

/// A GPU and its memory. Clones share both.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    driver: Box<dyn Driver>,
    /// Memory that was used before and is free now: address and bytes.
    free: Mutex<Vec<(u64, usize)>>,
    /// The first error of a place that cannot return a [`GpuError`].
    noted: Mutex<Option<GpuError>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (at, _) in self.free.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: the memory came from the driver, and its buffer was dropped.
            unsafe { self.driver.free(at) };
        }
    }
}

impl Gpu {
    /// A GPU with the backend `driver`.
    pub fn new(driver: impl Driver + 'static) -> Self {
        Gpu(Arc::new(Inner { driver: Box::new(driver), free: Mutex::default(), noted: Mutex::default() }))
    }

    pub(super) fn driver(&self) -> &dyn Driver {
        &*self.0.driver
    }

    /// Name of the device.
    pub fn name(&self) -> String {
        self.0.driver.name()
    }

    /// Properties by which kernels are chosen.
    pub fn traits(&self) -> Traits {
        self.0.driver.traits()
    }

    /// Records an error at a place that cannot return a [`GpuError`]. Only the first error is kept, because it is the cause of
    /// later ones.
    pub fn note(&self, error: GpuError) {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Takes the recorded error, if there is one.
    pub fn take_noted(&self) -> Option<GpuError> {
        self.0.noted.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A buffer of `len` elements whose values are unspecified. It may reuse memory that earlier work is still reading. This is
    /// safe, because the device does its work in order.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn take(&self, kind: impl Into<Kind>, len: usize) -> Result<Buffer, GpuError> {
        let kind = kind.into();
        let room = (len * kind.bytes()).max(1).next_multiple_of(512);
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |size: usize| size >= room && size <= 2 * room;
        let best = (0..free.len()).filter(|i| fits(free[*i].1)).min_by_key(|i| free[*i].1);
        let (at, room) = match best {
            Some(i) => free.swap_remove(i),
            None => match self.0.driver.allocate(room) {
                Ok(at) => (at, room),
                Err(_) => {
                    // Frees memory of other sizes: it may be the memory that is lacking.
                    // SAFETY: the memory came from the driver, and its buffer was dropped.
                    free.drain(..).for_each(|(at, _)| unsafe { self.0.driver.free(at) });
                    (self.0.driver.allocate(room)?, room)
                }
            },
        };
        Ok(Buffer { gpu: self.clone(), at, kind, len, room })
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn zeros(&self, kind: impl Into<Kind>, len: usize) -> Result<Buffer, GpuError> {
        let buffer = self.take(kind, len)?;
        self.zero(buffer.view())?;
        Ok(buffer)
    }

    /// A buffer with a copy of `values`.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<Buffer, GpuError> {
        let buffer = self.take(T::KIND, values.len())?;
        self.write(buffer.view(), values)?;
        Ok(buffer)
    }

    /// Copies all elements of a view to another one.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the views differ in kind or length.
    pub fn copy(&self, from: View, to: View) -> Result<(), GpuError> {
        assert_eq!((from.kind, from.len), (to.kind, to.len), "a copy is as long as what it is of");
        // SAFETY: both views have as many bytes as are copied.
        unsafe { self.0.driver.copy(from.at, to.at, from.bytes()) }
    }

    /// Reads the elements of a view. Waits for all earlier work.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the view is of another kind.
    pub fn read<T: Element>(&self, from: View) -> Result<Vec<T>, GpuError> {
        let mut values = vec![T::zeroed(); from.of::<T>().len];
        // SAFETY: the view has as many elements of this type as `values`.
        unsafe { self.0.driver.download(from.at, bytemuck::cast_slice_mut(&mut values)) }?;
        Ok(values)
    }

    /// Reads the bytes of a view of any kind. Waits for all earlier work.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_bytes(&self, from: View) -> Result<Vec<u8>, GpuError> {
        let mut bytes = vec![0; from.bytes()];
        // SAFETY: the view has as many bytes as `bytes`.
        unsafe { self.0.driver.download(from.at, &mut bytes) }?;
        Ok(bytes)
    }

    /// Overwrites the bytes of a view of any kind.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the view has another number of bytes.
    pub fn write_bytes(&self, to: View, bytes: &[u8]) -> Result<(), GpuError> {
        assert_eq!(to.bytes(), bytes.len(), "bytes for every element");
        // SAFETY: the view has as many bytes as `bytes`.
        unsafe { self.0.driver.upload(to.at, bytes) }
    }

    /// Reads the elements that a view has after all earlier work. The call does not wait; [`Pending::wait`] does.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the view is of another kind.
    pub fn read_later<T: Element>(&self, from: View) -> Result<Pending<Vec<T>>, GpuError> {
        let len = from.of::<T>().len;
        // SAFETY: the view has `len` elements of this type.
        let arriving = unsafe { self.0.driver.download_later(from.at, from.bytes()) }?;
        Ok(Pending::new(move || {
            let mut values = vec![T::zeroed(); len];
            arriving.wait(bytemuck::cast_slice_mut(&mut values))?;
            Ok(values)
        }))
    }

    /// Overwrites the elements of a view.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the view is of another kind, or has another number of elements.
    pub fn write<T: Element>(&self, to: View, values: &[T]) -> Result<(), GpuError> {
        assert_eq!(to.of::<T>().len, values.len(), "values for every element");
        // SAFETY: the view has as many elements of this type as `values`.
        unsafe { self.0.driver.upload(to.at, bytemuck::cast_slice(values)) }
    }

    /// Sets the elements of a view to zero.
    ///
    /// # Errors
    /// When the device fails.
    pub fn zero(&self, view: View) -> Result<(), GpuError> {
        // SAFETY: the view has `view.bytes()` bytes.
        unsafe { self.0.driver.zero(view.at, view.bytes()) }
    }

    /// Runs a kernel on a grid of blocks.
    ///
    /// # Errors
    /// When the kernel does not compile, or the device fails.
    ///
    /// # Safety
    /// The arguments must be those that the kernel's source names, and each view must be as long as the memory that the kernel
    /// reads and writes through it.
    pub unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: &str,
        grid: [usize; 3],
        args: &[Arg],
    ) -> Result<(), GpuError> {
        // SAFETY: as the caller promises.
        unsafe { self.0.driver.launch(source, kernel, grid, args) }
    }
}

/// A buffer of GPU memory. Its memory can be reused once it is dropped.
#[derive(Debug)]
pub struct Buffer {
    gpu: Gpu,
    at: u64,
    kind: Kind,
    len: usize,
    /// Capacity in bytes.
    room: usize,
}

impl Buffer {
    /// A view of all elements.
    pub fn view(&self) -> View<'_> {
        View { at: self.at, kind: self.kind, len: self.len, buffer: PhantomData }
    }

    /// The buffer as an argument of a kernel that uses all elements.
    pub fn arg(&self) -> Arg {
        Arg::At(Address(self.at))
    }

    /// Reads all values. Waits for all earlier work.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the elements are of another kind.
    pub fn read<T: Element>(&self) -> Result<Vec<T>, GpuError> {
        self.gpu.read(self.view())
    }

    /// Reads the values after all earlier work. The call does not wait; [`Pending::wait`] does.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the elements are of another kind.
    pub fn read_later<T: Element>(&self) -> Result<Pending<Vec<T>>, GpuError> {
        self.gpu.read_later(self.view())
    }

    /// A buffer of the same kind and length, whose values are unspecified.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn take_alike(&self) -> Result<Buffer, GpuError> {
        self.gpu.take(self.kind, self.len)
    }

    /// A copy of the buffer.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn try_clone(&self) -> Result<Buffer, GpuError> {
        let copy = self.take_alike()?;
        self.gpu.copy(self.view(), copy.view())?;
        Ok(copy)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gpu.0.free.lock().unwrap_or_else(PoisonError::into_inner).push((self.at, self.room));
    }
}

/// Consecutive elements of a buffer. A view corresponds to a `&Cell` on the host: several views may refer to the same elements,
/// and kernels may write through any of them, because the device does its work in order.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    at: u64,
    kind: Kind,
    len: usize,
    buffer: PhantomData<&'a Buffer>,
}

impl<'a> View<'a> {
    /// Elements of memory that no [`Buffer`] owns.
    ///
    /// # Safety
    /// There must be `len` elements of this kind at `at`, on the same device, as long as the view is used.
    pub unsafe fn foreign(at: u64, kind: Kind, len: usize) -> Self {
        View { at, kind, len, buffer: PhantomData }
    }

    /// Number of elements.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether the view has no elements.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Type of the elements.
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// A view of the elements in `range`.
    ///
    /// # Panics
    /// When the range is not within the view.
    pub fn part(self, range: Range<usize>) -> View<'a> {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        View { at: self.at + (range.start * self.kind.bytes()) as u64, len: range.len(), ..self }
    }

    /// Whether the first element is at a multiple of `bytes` bytes.
    pub fn is_aligned(self, bytes: u64) -> bool {
        self.at.is_multiple_of(bytes)
    }

    /// The view as an argument of a kernel that uses the first `len` elements, of a kind.
    ///
    /// # Panics
    /// When the elements are of another kind, or there are fewer.
    pub fn arg(self, kind: impl Into<Kind>, len: usize) -> Arg {
        let kind = kind.into();
        assert!(self.kind == kind && len <= self.len, "{len} {kind:?} wanted, {} {:?} given", self.len, self.kind);
        Arg::At(Address(self.at))
    }

    fn of<T: Element>(self) -> Self {
        assert_eq!(self.kind, T::KIND, "elements of another kind");
        self
    }

    /// Bytes of all elements.
    pub fn bytes(self) -> usize {
        self.len * self.kind.bytes()
    }

    /// Address of the first element.
    pub(in crate::ops::cuda) fn address(self) -> u64 {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::ops::cuda::testing::one_gpu;

    #[test]
    fn views_stay_within_their_buffer_and_keep_its_type() {
        let Some(gpu) = one_gpu() else { return };
        let buffer = gpu.upload(&[1.0f32, 2.0, 3.0, 4.0]).unwrap();
        let part = buffer.view().part(1..3);
        assert_eq!(gpu.read::<f32>(part).unwrap(), [2.0, 3.0]);
        gpu.write(part, &[5.0f32, 6.0]).unwrap();
        gpu.copy(buffer.view().part(0..2), buffer.view().part(2..4)).unwrap();
        assert_eq!(buffer.read::<f32>().unwrap(), [1.0, 5.0, 1.0, 5.0]);
        fn refused<T>(what: &str, work: impl Fn() -> T) {
            assert!(catch_unwind(AssertUnwindSafe(work)).is_err(), "{what}");
        }
        refused("elements beyond the buffer", || buffer.view().part(2..5));
        refused("elements beyond a part", || part.part(0..3));
        refused("another type is read", || gpu.read::<i32>(part));
        refused("more is written than there is", || gpu.write(part, &[0.0f32; 3]));
        refused("a copy of another length", || gpu.copy(part, buffer.view()));
        refused("a kernel that uses more", || part.arg(Kind::F32, 3));
        refused("a kernel that uses another type", || part.arg(Kind::F16, 2));
        assert_eq!(buffer.read::<f32>().unwrap(), [1.0, 5.0, 1.0, 5.0]);
    }
}

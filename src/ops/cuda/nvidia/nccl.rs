//! Exchanges between ranks by NCCL: from one GPU's memory to another's, on the stream of the device that computes.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::{
    driver::CudaDevice,
    nccl::{
        result::{self, NcclError, NcclStatus},
        sys,
    },
};

use super::failure::failed;
use crate::ops::cuda::{Gpu, GpuError, View, Wire};

/// NCCL's unique id, by which the ranks find each other.
pub type Id = [u8; 128];

/// The data type of all exchanges: bytes, whatever the type of the elements.
const BYTES: sys::ncclDataType_t = sys::ncclDataType_t::ncclUint8;

/// Creates a new id. The first rank creates it for all ranks.
///
/// # Errors
/// When NCCL finds no network.
pub fn id() -> Result<Id, GpuError> {
    let id = result::get_uniqueid().map_err(refused("finding a network for ranks"))?;
    Ok(id.internal.map(|byte| byte as u8))
}

/// A group of ranks, each with its own GPU.
#[derive(Debug)]
pub struct Nccl {
    device: Arc<CudaDevice>,
    size: usize,
    communicator: Mutex<Communicator>,
}

#[derive(Debug)]
struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL takes calls for a communicator from any thread, one at a time. All go through the lock of `Nccl::communicator`.
unsafe impl Send for Communicator {}

/// Converts a failure of NCCL at `what` to our error.
fn refused(what: &str) -> impl FnOnce(NcclError) -> GpuError {
    |NcclError(code)| {
        // SAFETY: both functions return null or a NUL-terminated text of NCCL's own. The last error takes no communicator: null
        // is allowed.
        let [why, more] = unsafe { [sys::ncclGetErrorString(code), sys::ncclGetLastError(std::ptr::null_mut())] }
            .map(|text| unsafe { of(text) });
        GpuError::Failed { what: what.into(), why: if more.is_empty() { why } else { format!("{why}: {more}") } }
    }
}

/// # Safety
/// `text` must be null or point to a NUL-terminated text.
unsafe fn of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

impl Nccl {
    /// Joins the ranks of `id`. Blocks until all `size` ranks have joined.
    ///
    /// # Errors
    /// When NCCL cannot reach the other ranks, or two ranks have the same GPU.
    pub fn join(device: Arc<CudaDevice>, [rank, size]: [usize; 2], id: Id) -> Result<Self, GpuError> {
        device.bind_to_thread().map_err(failed("changing threads"))?;
        let [ranks, own] = [size, rank].map(|n| n as c_int);
        let mut communicator = std::ptr::null_mut();
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        // SAFETY: the communicator is written to a local variable, for the device that is bound to this thread.
        let joined = unsafe { result::comm_init_rank(&mut communicator, ranks, id, own) };
        joined.map_err(refused("joining the other ranks by NCCL"))?;
        Ok(Self { device, size, communicator: Mutex::new(Communicator(communicator)) })
    }

    /// Queues an NCCL call on the device's stream, behind its work so far.
    fn queue(
        &self,
        what: &str,
        call: impl FnOnce(sys::ncclComm_t, sys::cudaStream_t) -> Result<NcclStatus, NcclError>,
    ) -> Result<(), GpuError> {
        self.device.bind_to_thread().map_err(failed("changing threads"))?;
        let communicator = self.communicator.lock().unwrap_or_else(PoisonError::into_inner);
        call(communicator.0, (*self.device.cu_stream()).cast()).map(drop).map_err(refused(what))
    }
}

impl Wire for Nccl {
    fn all_gather(&self, _: &Gpu, own: View, all: View) -> Result<(), GpuError> {
        assert_eq!(own.bytes() * self.size, all.bytes(), "room for what every rank has");
        let (from, to) = (own.address() as *const c_void, all.address() as *mut c_void);
        self.queue("gathering from all ranks", |communicator, stream| {
            // SAFETY: both views are of this device and have the lengths that were checked above, and the device does its work in
            // order.
            unsafe { result::all_gather(from, to, own.bytes(), BYTES, communicator, stream) }
        })
    }

    fn all_to_all(&self, _: &Gpu, send: View, receive: View) -> Result<(), GpuError> {
        let piece = send.bytes() / self.size;
        assert_eq!([piece * self.size, send.bytes()], [send.bytes(), receive.bytes()], "a piece for every rank");
        self.queue("exchanging with all ranks", |communicator, stream| {
            result::group_start()?;
            let exchanged = (0..self.size).try_for_each(|rank| {
                let at = |view: View| (view.address() as usize + rank * piece) as *mut c_void;
                let peer = rank as c_int;
                // SAFETY: each piece is within its view, the views are of this device, and the device does its work in order.
                unsafe {
                    result::send(at(send), piece, BYTES, peer, communicator, stream)?;
                    result::recv(at(receive), piece, BYTES, peer, communicator, stream)?;
                }
                Ok(())
            });
            // The group must end even after a failure. Otherwise later NCCL calls would become part of it.
            let ended = result::group_end();
            exchanged.and(ended)
        })
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let communicator = self.communicator.get_mut().unwrap_or_else(PoisonError::into_inner).0;
        if self.device.bind_to_thread().is_ok() && self.device.synchronize().is_ok() {
            // SAFETY: the communicator is not used again, and all its work has been done. No caller could receive an error here.
            let _ = unsafe { result::comm_destroy(communicator) };
        }
    }
}

//! Page-locked host memory. Copies from and to it run in the order of the device's work, and the host does not wait.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaDevice, result, sys};

use super::failure::failed;
use crate::ops::cuda::{Arriving, GpuError};

/// Smallest block in bytes. Block sizes are powers of two, so that few different sizes are needed.
const LEAST: usize = 4096;

/// A pool of blocks that were used before. A block is used again only after its copy has ended.
#[derive(Debug)]
pub struct Pinned {
    device: Arc<CudaDevice>,
    free: Mutex<Vec<Block>>,
}

#[derive(Debug)]
struct Block {
    at: *mut u8,
    room: usize,
    /// Event that is recorded behind the last copy of the block.
    ended: sys::CUevent,
}

// SAFETY: memory and events of the driver may be used from any thread of the process.
unsafe impl Send for Block {}

/// A copy to the host that is under way.
pub struct Download {
    pinned: Arc<Pinned>,
    /// The block that receives the copy, until `drop` returns it to the pool.
    block: Option<Block>,
}

impl Pinned {
    /// An empty pool, for copies in the order of the work of `device`.
    pub fn new(device: Arc<CudaDevice>) -> Self {
        Self { device, free: Mutex::default() }
    }

    /// Queues a copy of `from` to an address of the device. `from` may change as soon as the call returns.
    ///
    /// # Errors
    /// When memory runs out or the device fails.
    ///
    /// # Safety
    /// The device must have room for `from` at `to`.
    pub unsafe fn upload(&self, to: u64, from: &[u8]) -> Result<(), GpuError> {
        let block = self.take(from.len())?;
        // SAFETY: the block has room for `from`, and no copy is under way in it. The device has room at `to`, as the caller
        // promises.
        let copied = unsafe {
            let bytes = std::slice::from_raw_parts_mut(block.at, from.len());
            bytes.copy_from_slice(from);
            result::memcpy_htod_async(to, bytes, *self.device.cu_stream())
        };
        let recorded = self.record(&block);
        self.give(block);
        copied.map_err(failed("copying to the GPU")).and(recorded)
    }

    /// Queues a copy of `bytes` bytes from an address of the device to the host.
    ///
    /// # Errors
    /// When memory runs out or the device fails.
    ///
    /// # Safety
    /// The device must have `bytes` bytes at `from`.
    pub unsafe fn download(pinned: &Arc<Self>, from: u64, bytes: usize) -> Result<Download, GpuError> {
        let block = pinned.take(bytes)?;
        // SAFETY: the block has room for `bytes` bytes. The device has as many at `from`, as the caller promises.
        let copied = unsafe {
            let bytes = std::slice::from_raw_parts_mut(block.at, bytes);
            result::memcpy_dtoh_async(bytes, from, *pinned.device.cu_stream())
        };
        let recorded = pinned.record(&block);
        let download = Download { pinned: pinned.clone(), block: Some(block) };
        copied.map_err(failed("copying from the GPU")).and(recorded)?;
        Ok(download)
    }

    fn take(&self, bytes: usize) -> Result<Block, GpuError> {
        self.device.bind_to_thread().map_err(failed("changing threads"))?;
        let room = bytes.next_power_of_two().max(LEAST);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the event lives as long as its block.
        let ended = |block: &Block| unsafe { sys::cuEventQuery(block.ended) } == sys::CUresult::CUDA_SUCCESS;
        if let Some(known) = free.iter().position(|block| block.room == room && ended(block)) {
            return Ok(free.swap_remove(known));
        }
        let (mut at, mut event) = (std::ptr::null_mut(), std::ptr::null_mut());
        let memory =
            |error| GpuError::Memory { bytes: room, why: format!("page-locked memory of the host: {error:?}") };
        let flags =
            sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 | sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: both functions write to local variables.
        unsafe {
            sys::cuMemAllocHost_v2(&mut at, room).result().map_err(memory)?;
            sys::cuEventCreate(&mut event, flags).result().map_err(failed("creating an event"))?;
        }
        Ok(Block { at: at.cast(), room, ended: event })
    }

    fn record(&self, block: &Block) -> Result<(), GpuError> {
        // SAFETY: event and stream are of this device.
        unsafe { result::event::record(block.ended, *self.device.cu_stream()) }.map_err(failed("recording an event"))
    }

    fn give(&self, block: Block) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(block);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.device.bind_to_thread().is_err() {
            return; // the device has failed before, and that error was reported
        }
        for block in self.free.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: memory and event came from the driver, nothing else uses them, and `cuEventSynchronize` waits for a copy
            // that is still under way.
            unsafe {
                let _ = sys::cuEventSynchronize(block.ended).result();
                let _ = sys::cuMemFreeHost(block.at.cast()).result();
                let _ = result::event::destroy(block.ended);
            }
        }
    }
}

impl Arriving for Download {
    fn wait(self: Box<Self>, to: &mut [u8]) -> Result<(), GpuError> {
        let block = self.block.as_ref().expect("it is there until the drop");
        self.pinned.device.bind_to_thread().map_err(failed("changing threads"))?;
        // SAFETY: the event belongs to the block. After it, the copy of as many bytes as `to` has into the block has ended.
        unsafe {
            sys::cuEventSynchronize(block.ended).result().map_err(failed("waiting for a copy"))?;
            std::ptr::copy_nonoverlapping(block.at, to.as_mut_ptr(), to.len());
        }
        Ok(())
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.block.take().into_iter().for_each(|block| self.pinned.give(block));
    }
}

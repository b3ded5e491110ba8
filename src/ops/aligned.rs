//! The program's allocator: the system's, with memory of any size that kernels work on at the start of a cache line.
//!
//! The system aligns to 16 bytes; a vector of 64 bytes would then always lie in two cache lines, and take two accesses.

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;
/// Bytes from which on memory is aligned to lines; less would waste too much of it.
const LEAST: usize = 1024;

struct Aligned;

#[global_allocator]
static ALLOCATOR: Aligned = Aligned;

fn aligned(layout: Layout) -> Layout {
    if layout.size() < LEAST { layout } else { layout.align_to(LINE).unwrap_or(layout) }
}

// SAFETY: the system's allocator does the work; a block is taken and given back with the same layout, since that follows from
// the caller's. Reallocation is the trait's: a new block, a copy, and the old one back.
unsafe impl GlobalAlloc for Aligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc(aligned(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc_zeroed(aligned(layout)) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, aligned(layout)) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn vectors_of_any_kind_begin_a_cache_line() {
        let at = |values: &[f32]| values.as_ptr() as usize % super::LINE;
        for n in [256, 257, 5000, 1 << 20] {
            let mut grown = Vec::with_capacity(1);
            (0..n).for_each(|i| grown.push(i as f32));
            assert_eq!([at(&vec![1.0; n]), at(&vec![0.0; n]), at(&grown)], [0; 3], "{n}");
            assert!(grown.iter().enumerate().all(|(i, value)| *value == i as f32));
        }
    }
}

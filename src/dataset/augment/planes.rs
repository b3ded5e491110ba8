//! The working image of a thread: three planes of bytes, and the buffers that the steps share.

use std::cell::RefCell;

use super::resize::Resizer;

/// Buffers that grow to the largest image a thread has seen and stay.
#[derive(Default)]
pub(super) struct Scratch {
    pub resizer: Resizer,
    /// Interleaved RGB between resizing and the planes.
    pub resized: Vec<u8>,
    pub planes: Planes,
    pub blur: BlurBuffers,
}

/// What a blur works in.
#[derive(Default)]
pub(super) struct BlurBuffers {
    pub turned: Vec<u8>,
    pub other: Vec<u8>,
    pub sums: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs `work` with this thread's buffers. `work` must not call back here.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(work)
}

/// A square RGB image, plane by plane: the loops over it need no shuffling of bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Planes {
    pub side: usize,
    /// Red, green, blue: `side * side` bytes each, rows from the top.
    pub bytes: Vec<u8>,
}

impl Planes {
    /// Takes the square at (`left`, `top`) of interleaved RGB pixels that are `width` wide.
    pub fn load(&mut self, pixels: &[u8], width: usize, left: usize, top: usize, side: usize) {
        self.side = side;
        self.bytes.resize(3 * side * side, 0);
        let [red, green, blue] = self.split_mut();
        for y in 0..side {
            let row = &pixels[3 * ((top + y) * width + left)..][..3 * side];
            let range = y * side..(y + 1) * side;
            let planes = red[range.clone()].iter_mut().zip(&mut green[range.clone()]).zip(&mut blue[range]);
            for (pixel, ((r, g), b)) in row.chunks_exact(3).zip(planes) {
                (*r, *g, *b) = (pixel[0], pixel[1], pixel[2]);
            }
        }
    }

    /// Red, green and blue.
    pub fn split(&self) -> [&[u8]; 3] {
        let plane = self.side * self.side;
        let (red, rest) = self.bytes.split_at(plane);
        let (green, blue) = rest.split_at(plane);
        [red, green, blue]
    }

    /// Red, green and blue.
    pub fn split_mut(&mut self) -> [&mut [u8]; 3] {
        let plane = self.side * self.side;
        let (red, rest) = self.bytes.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        [red, green, blue]
    }
}

//! A thread's working image as three planes of bytes.

/// Working memory of a blur.
#[derive(Default)]
pub(super) struct BlurBuffers {
    pub turned: Vec<u8>,
    pub other: Vec<u8>,
    pub sums: Vec<u32>,
}

/// An RGB image, plane by plane, so that loops over it need not rearrange bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Planes {
    pub width: usize,
    /// The planes red, green and blue, of equal length; rows from the top.
    pub bytes: Vec<u8>,
}

impl Planes {
    /// Changes the size to `width` x `height` pixels, whose colours are unspecified.
    pub fn resize(&mut self, width: usize, height: usize) {
        self.width = width;
        self.bytes.resize(3 * width * height, 0);
    }

    /// The pixels as interleaved RGB bytes.
    pub fn interleaved(&self) -> Vec<u8> {
        let [red, green, blue] = self.split();
        red.iter().zip(green).zip(blue).flat_map(|((&r, &g), &b)| [r, g, b]).collect()
    }

    /// Red, green and blue.
    pub fn split(&self) -> [&[u8]; 3] {
        let (red, rest) = self.bytes.split_at(self.bytes.len() / 3);
        let (green, blue) = rest.split_at(rest.len() / 2);
        [red, green, blue]
    }

    /// Red, green and blue.
    pub fn split_mut(&mut self) -> [&mut [u8]; 3] {
        let plane = self.bytes.len() / 3;
        let (red, rest) = self.bytes.split_at_mut(plane);
        let (green, blue) = rest.split_at_mut(plane);
        [red, green, blue]
    }
}

//! The working image of a thread: three planes of bytes.

/// What a blur works in.
#[derive(Default)]
pub(super) struct BlurBuffers {
    pub turned: Vec<u8>,
    pub other: Vec<u8>,
    pub sums: Vec<u32>,
}

/// An RGB image, plane by plane: the loops over it need no shuffling of bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Planes {
    pub width: usize,
    /// Red, green, blue: as many bytes each, rows from the top.
    pub bytes: Vec<u8>,
}

impl Planes {
    /// Makes room for `width` x `height` pixels, of any colour.
    pub fn resize(&mut self, width: usize, height: usize) {
        self.width = width;
        self.bytes.resize(3 * width * height, 0);
    }

    /// Pixels side by side, as image files have them.
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

//! A rectangular part of an image.

/// A box in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

impl CropBox {
    /// The box of a whole image of this width and height.
    pub fn whole((width, height): (u32, u32)) -> CropBox {
        CropBox { left: 0, top: 0, width, height }
    }

    /// The smallest box around both boxes.
    pub fn around(self, other: CropBox) -> CropBox {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        CropBox { left, top, width: right - left, height: bottom - top }
    }

    /// Whether `self` contains all of `other`.
    pub fn holds(self, other: CropBox) -> bool {
        self.around(other) == self
    }
}

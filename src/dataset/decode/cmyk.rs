//! Converts CMYK to RGB.

/// RGB of cyan, magenta, yellow and black inks, converted as in Pillow.
#[inline(always)]
pub fn rgb(inks: [u8; 3], black: u8) -> [u8; 3] {
    let white = 255 - u32::from(black);
    let under = |ink: u8| {
        let t = u32::from(ink) * white + 128;
        (white - ((t + (t >> 8)) >> 8)) as u8
    };
    [under(inks[0]), under(inks[1]), under(inks[2])]
}

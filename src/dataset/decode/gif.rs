//! Decodes GIF: the first frame, as Pillow shows it.

use std::{fmt, iter::repeat};

use gif::{ColorOutput, DecodeOptions};
use image::RgbImage;

/// Decodes the first frame. A frame that extends beyond the canvas enlarges it. Pixels outside the frame get the frame's
/// transparent colour, or colour 0 if it has none. Colours beyond the palette are black.
///
/// Errors: a short reason for people, or an error of `check`, which is called with width and height.
pub fn decode(bytes: &[u8], check: impl Fn(u32, u32) -> Result<(), String>) -> Result<RgbImage, String> {
    let said = |error: &dyn fmt::Display| format!("GIF: {error}");
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // `check` limits the size before memory is allocated.
    options.set_memory_limit(gif::MemoryLimit::Unlimited);
    let mut decoder = options.read_info(bytes).map_err(|error| said(&error))?;
    let frame = decoder.next_frame_info().map_err(|error| said(&error))?.ok_or_else(|| said(&"it holds no image"))?;
    let [left, top, across, down] = [frame.left, frame.top, frame.width, frame.height].map(u32::from);
    let outside = frame.transparent.unwrap_or(0);
    let (width, height) = (u32::from(decoder.width()).max(left + across), u32::from(decoder.height()).max(top + down));
    check(width, height)?;
    let mut indices = vec![0; across as usize * down as usize];
    decoder.read_into_buffer(&mut indices).map_err(|error| said(&error))?;
    let colors = decoder.palette().map_err(|error| said(&error))?.as_chunks().0;
    let palette: Vec<[u8; 3]> = colors.iter().copied().chain(repeat([0; 3])).take(256).collect();
    let mut image = RgbImage::from_pixel(width, height, image::Rgb(palette[usize::from(outside)]));
    for (index, (x, y)) in indices.into_iter().zip((0..down).flat_map(|y| (0..across).map(move |x| (x, y)))) {
        image.put_pixel(left + x, top + y, image::Rgb(palette[usize::from(index)]));
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use gif::{Encoder, Frame};

    use super::*;

    const COLORS: [u8; 12] = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120];
    const OWN: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13];

    /// A GIF with a frame of two pixels at (1, 1) of a canvas.
    fn file(canvas: (u16, u16), own: bool, transparent: Option<u8>, indices: [u8; 2]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, canvas.0, canvas.1, &COLORS).unwrap();
        let palette = own.then(|| OWN.to_vec());
        let buffer = Cow::Borrowed(&indices[..]);
        let frame = Frame { left: 1, top: 1, width: 2, height: 1, transparent, palette, buffer, ..Frame::default() };
        encoder.write_frame(&frame).unwrap();
        drop(encoder);
        bytes
    }

    /// The size of a GIF, its colour outside the frame (asserted to be uniform), and the two colours of the frame.
    fn seen(bytes: &[u8]) -> ((u32, u32), [u8; 3], [[u8; 3]; 2]) {
        let image = decode(bytes, |_, _| Ok(())).unwrap();
        let outside = image.get_pixel(0, 0).0;
        let others = image.enumerate_pixels().filter(|(x, y, _)| *y != 1 || ![1, 2].contains(x));
        assert!(others.into_iter().all(|(_, _, pixel)| pixel.0 == outside));
        (image.dimensions(), outside, [image.get_pixel(1, 1).0, image.get_pixel(2, 1).0])
    }

    #[test]
    fn what_a_frame_does_not_reach_is_as_in_pillow() {
        // The expected colours are those that Pillow 13 reads.
        let frame = [[40, 50, 60], [70, 80, 90]];
        assert_eq!(seen(&file((4, 3), false, None, [1, 2])), ((4, 3), [10, 20, 30], frame));
        assert_eq!(seen(&file((4, 3), false, Some(2), [1, 2])), ((4, 3), [70, 80, 90], frame));
        assert_eq!(seen(&file((4, 3), false, Some(9), [1, 2])), ((4, 3), [0, 0, 0], frame));
        assert_eq!(seen(&file((4, 3), true, None, [1, 2])), ((4, 3), [1, 2, 3], [[4, 5, 6], [7, 8, 9]]));
        assert_eq!(seen(&file((2, 1), false, None, [1, 2])), ((3, 2), [10, 20, 30], frame));
        assert_eq!(seen(&file((4, 3), false, None, [1, 7])), ((4, 3), [10, 20, 30], [[40, 50, 60], [0, 0, 0]]));
    }

    #[test]
    fn a_canvas_of_too_many_pixels_takes_no_memory() {
        let bytes = file((u16::MAX, u16::MAX), false, None, [0, 1]);
        let error = decode(&bytes, |width, height| Err(format!("{width} x {height}"))).unwrap_err();
        assert_eq!(error, "65535 x 65535");
    }
}

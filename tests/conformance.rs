//! Public suites of images, beside what Pillow and the suites' own references make of them: `SNCLR_CONFORMANCE` names a folder
//! with an `expected.csv` (path, outcome, format, width, height, rgb_sha256, rgb_grid4, reference); without it nothing is read.

use std::{collections::BTreeMap, fs, path::PathBuf};

use image::RgbImage;
use sha2::{Digest, Sha256};
use snclr::dataset::Sample;

/// The rows of `expected.csv` whose path begins with one of `suites`, by column, with the bytes of the file.
fn rows(suites: &[&str]) -> Vec<(BTreeMap<String, String>, Vec<u8>)> {
    let Some(root) = std::env::var_os("SNCLR_CONFORMANCE").map(PathBuf::from) else { return vec![] };
    let mut table = csv::Reader::from_path(root.join("expected.csv")).expect("expected.csv");
    let rows: Vec<BTreeMap<String, String>> = table.deserialize().map(|row| row.expect("a row")).collect();
    let wanted = rows.into_iter().filter(|row| suites.iter().any(|suite| row["path"].starts_with(suite)));
    wanted
        .map(|row| (fs::read(root.join(&row["path"])).expect("a file"), row))
        .map(|(bytes, row)| (row, bytes))
        .collect()
}

fn decoded(bytes: Vec<u8>) -> Result<RgbImage, String> {
    Sample { bytes, path: None, label: None }.image()
}

/// Largest difference from the picture that the suite gives as right; None without one of the same size.
fn from_reference(row: &BTreeMap<String, String>, image: &RgbImage) -> Option<u8> {
    let path = PathBuf::from(std::env::var_os("SNCLR_CONFORMANCE")?).join(&row["reference"]);
    let right = decoded(fs::read(path).ok()?).ok().filter(|right| right.dimensions() == image.dimensions())?;
    right.iter().zip(image.iter()).map(|(a, b)| a.abs_diff(*b)).max()
}

fn hash(image: &RgbImage) -> String {
    Sha256::digest(image.as_raw()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Largest difference of the mean colours of 4 x 4 cells; None where Pillow gives none.
fn from_grid(row: &BTreeMap<String, String>, image: &RgbImage) -> Option<u8> {
    if row["rgb_grid4"].is_empty() {
        return None;
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    let span = |cell: usize, size: usize| {
        let start = (cell * size / 4).min(size - 1);
        start..((cell + 1) * size / 4).max(start + 1)
    };
    let mut most = 0;
    for cell in 0..16 {
        let (rows, columns) = (span(cell / 4, height), span(cell % 4, width));
        let count = (rows.len() * columns.len()) as u64;
        for channel in 0..3 {
            let values = rows.clone().flat_map(|y| columns.clone().map(move |x| (x, y)));
            let sum: u64 = values.map(|(x, y)| image.get_pixel(x as u32, y as u32).0[channel] as u64).sum();
            let at = 6 * cell + 2 * channel;
            let expected = u8::from_str_radix(&row["rgb_grid4"][at..at + 2], 16).expect("hex");
            most = most.max(expected.abs_diff(((2 * sum + count) / (2 * count)) as u8));
        }
    }
    Some(most)
}

#[test]
fn lossless_formats_come_to_the_same_pixels() {
    let mut wrong = Vec::new();
    for (row, bytes) in rows(&["png/", "bmp/", "pnm/", "gif/", "webp/"]) {
        let (path, expected) = (&row["path"], &row["rgb_sha256"]);
        let may_be_refused =
            path.contains("/lenient/") || ["bmp/rgb24rle24.bmp", "png/xcsn0g01.png"].contains(&path.as_str());
        match decoded(bytes) {
            Err(reason) if row["outcome"] == "ok" && !may_be_refused => wrong.push(format!("{path}: {reason}")),
            // Hidden colours and the canvas of a GIF are the decoder's own affair where the suite's reference agrees.
            Ok(image) if !expected.is_empty() && hash(&image) != *expected => {
                let lossy = path.starts_with("webp/lossy") || path.ends_with("large-gif-anim-combine.gif");
                if from_reference(&row, &image) != Some(0) && !lossy {
                    wrong.push(format!("{path}: other pixels"));
                }
            }
            Ok(_) if row["path"].contains("/bad/") => wrong.push(format!("{path}: decoded")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn jpeg_is_right_or_refused_by_name() {
    let mut wrong = Vec::new();
    for (row, bytes) in rows(&["jpeg/reftest/", "jpeg/libjpeg-turbo/", "exif/"]) {
        match decoded(bytes) {
            Err(reason) if reason.contains("which is not decoded") => {}
            // Pillow fills in what its entropy data lack.
            Err(_) if row["path"] == "jpeg/reftest/partial_progressive.jpg" => {}
            Err(reason) => wrong.push(format!("{}: {reason}", row["path"])),
            Ok(image) => {
                let differences = [from_grid(&row, &image), from_reference(&row, &image)];
                // Some files have neither, nor what Pillow makes of them.
                let mut known = differences.into_iter().flatten().peekable();
                let near = known.peek().is_none() || known.any(|most| most <= 3);
                let size = [image.width(), image.height()].map(|side| side.to_string());
                if !near || size != [row["width"].clone(), row["height"].clone()] {
                    wrong.push(format!("{}: other pixels", row["path"]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// No panic, and an end.
#[test]
fn damaged_files_are_decoded_or_refused() {
    for (_, bytes) in rows(&["jpeg/crashtest/", "tiff/", "gif/regression/", "bmp/bad/", "webp/regression/"]) {
        let _ = decoded(bytes);
    }
}

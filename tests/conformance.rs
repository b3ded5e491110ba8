//! Compares the decoders on public image suites with Pillow and with the suites' reference images. `SNCLR_CONFORMANCE` names a
//! folder with an `expected.csv` (path, outcome, format, width, height, rgb_sha256, reference). Without it, no suite is read.

use std::{collections::BTreeMap, fs, path::PathBuf};

use image::RgbImage;
use sha2::{Digest, Sha256};
use snclr::dataset::Sample;

/// The rows of `expected.csv` whose path starts with one of `suites`: the values by column name, and the bytes of the file.
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

/// The largest difference of a sample from the suite's reference image. None if there is no reference of the same size.
fn from_reference(row: &BTreeMap<String, String>, image: &RgbImage) -> Option<u8> {
    let path = PathBuf::from(std::env::var_os("SNCLR_CONFORMANCE")?).join(&row["reference"]);
    let right = decoded(fs::read(path).ok()?).ok().filter(|right| right.dimensions() == image.dimensions())?;
    right.iter().zip(image.iter()).map(|(a, b)| a.abs_diff(*b)).max()
}

fn hash(image: &RgbImage) -> String {
    Sha256::digest(image.as_raw()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn formats_come_to_the_same_pixels() {
    let mut wrong = Vec::new();
    for (row, bytes) in rows(&["png/", "bmp/", "pnm/", "gif/", "webp/"]) {
        let (path, expected) = (&row["path"], &row["rgb_sha256"]);
        let may_be_refused =
            path.contains("/lenient/") || ["bmp/rgb24rle24.bmp", "png/xcsn0g01.png"].contains(&path.as_str());
        match decoded(bytes) {
            Err(reason) if row["outcome"] == "ok" && !may_be_refused => wrong.push(format!("{path}: {reason}")),
            // The pixels may differ from Pillow's (in colours that alpha hides) if they equal the suite's reference.
            Ok(image)
                if !expected.is_empty() && hash(&image) != *expected && from_reference(&row, &image) != Some(0) =>
            {
                wrong.push(format!("{path}: other pixels"));
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
            // This file's entropy-coded data are incomplete, and Pillow fills in the missing pixels.
            Err(_) if row["path"] == "jpeg/reftest/partial_progressive.jpg" => {}
            Err(reason) => wrong.push(format!("{}: {reason}", row["path"])),
            Ok(image) => {
                // A file that Pillow cannot read is compared with its reference image, if it has one.
                let near = match row["rgb_sha256"].as_str() {
                    "" => from_reference(&row, &image).is_none_or(|most| most <= 3),
                    expected => hash(&image) == expected,
                };
                let size = [image.width(), image.height()].map(|side| side.to_string());
                if !near || size != [row["width"].clone(), row["height"].clone()] {
                    wrong.push(format!("{}: other pixels", row["path"]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Skips the pixels of signed samples, because no standard says which colours they are. The unit tests of the decoder compare the
/// samples of all files.
#[test]
fn tiff_is_right_or_refused_by_name() {
    let mut wrong = Vec::new();
    for (row, bytes) in rows(&["tiff/"]) {
        let (path, expected) = (&row["path"], &row["rgb_sha256"]);
        match decoded(bytes) {
            Err(reason) if reason.contains("which is not decoded") => {}
            Err(reason) => wrong.push(format!("{path}: {reason}")),
            Ok(image) => {
                let known = !expected.is_empty() && !row["raw_dtype"].starts_with("int");
                if known && hash(&image) != *expected {
                    wrong.push(format!("{path}: other pixels"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Decodes mutations of the suites' files and of the repository's own: bytes changed, ends cut off, parts repeated.
#[test]
#[ignore = "scripts/soak.sh runs it"]
fn soak_mutations_end_without_a_panic() {
    let folders = ["tests/golden/jpeg", "tests/golden/tiff", "tests/golden/augment"];
    let own = folders.map(|folder| fs::read_dir(folder).expect("a folder"));
    let own = own.into_iter().flatten().map(|entry| fs::read(entry.expect("an entry").path()).expect("a file"));
    let suites =
        rows(&["jpeg/", "png/", "tiff/", "webp/", "bmp/", "gif/", "pnm/", "exif/"]).into_iter().map(|(_, b)| b);
    let files: Vec<Vec<u8>> = own.chain(suites).filter(|bytes| (4..200_000).contains(&bytes.len())).collect();
    let mut state = 1u64;
    let mut below = |bound: usize| {
        // Knuth's linear congruential generator. Its upper bits are the random ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..10_000 {
        let mut bytes = files[below(files.len())].clone();
        for _ in 0..=below(4) {
            let at = below(bytes.len());
            match below(4) {
                0 => bytes[at] ^= 1 << below(8),
                1 => bytes[at] = [0, 0xff, 0x7f, 0x80][below(4)],
                2 => bytes.truncate(at.max(2)),
                _ => {
                    let (from, count) = (below(bytes.len()), below(32));
                    let part = bytes[from..(from + count).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
        match decoded(bytes) {
            Ok(_) => passed += 1,
            Err(_) => refused += 1,
        }
    }
    println!("{passed} of 10,000 mutations of {} files are decoded, {refused} refused", files.len());
    assert!(passed > 0 && refused > 0);
}

/// Decoding damaged files ends without a panic.
#[test]
fn damaged_files_are_decoded_or_refused() {
    for (_, bytes) in rows(&["jpeg/crashtest/", "tiff/", "gif/regression/", "bmp/bad/", "webp/regression/"]) {
        let _ = decoded(bytes);
    }
}

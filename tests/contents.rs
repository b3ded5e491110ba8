//! `snclr data` and `snclr views`: a report of the images of a spec, and the views of them that training would see.

mod common;

use std::{collections::BTreeSet, fs, io::Cursor, path::Path};

use common::{Scratch, TINY, lines, text};
use expect_test::expect;
use image::{
    ImageFormat, Rgb, RgbImage,
    codecs::jpeg::JpegEncoder,
    imageops::{self, FilterType},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// A random picture: a colour gradient, and shapes of random place, size and colour on it.
fn picture(random: &mut ChaCha8Rng) -> RgbImage {
    let (width, height) = (random.random_range(70..220), random.random_range(70..220));
    let mut color = || [0; 3].map(|_: u8| random.random_range(0..=255u8));
    let (from, to) = (color(), color());
    let mix = |a: u8, b: u8, share: f32| (a as f32 + (b as f32 - a as f32) * share) as u8;
    let mut image = RgbImage::from_fn(width, height, |x, y| {
        let share = (x + y) as f32 / (width + height) as f32;
        Rgb(std::array::from_fn(|c| mix(from[c], to[c], share)))
    });
    for _ in 0..random.random_range(8..20) {
        let (x, y) = (random.random_range(0..width) as i64, random.random_range(0..height) as i64);
        let (w, h) = (random.random_range(4..width / 2) as i64, random.random_range(4..height / 2) as i64);
        let (round, color) = (random.random_bool(0.5), Rgb([0; 3].map(|_: u8| random.random_range(0..=255u8))));
        for (px, py, pixel) in image.enumerate_pixels_mut() {
            let (dx, dy) = ((px as i64 - x) as f32 / w as f32, (py as i64 - y) as f32 / h as f32);
            let within = if round { dx * dx + dy * dy < 0.25 } else { dx.abs().max(dy.abs()) < 0.5 };
            if within {
                *pixel = color;
            }
        }
    }
    image
}

fn jpeg(image: &RgbImage, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(image).unwrap();
    bytes
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A near duplicate of the picture, as an encoded file: compressed, resized, cropped, or with another brightness.
fn near(image: &RgbImage, kind: usize, random: &mut ChaCha8Rng) -> Vec<u8> {
    let (width, height) = image.dimensions();
    let resized = |share: f32| {
        let length = |length: u32| (length as f32 * share) as u32;
        imageops::resize(image, length(width), length(height), FilterType::CatmullRom)
    };
    match kind % 5 {
        0 => jpeg(image, random.random_range(30..80)),
        1 => encoded(&resized(random.random_range(0.5..0.9)), ImageFormat::Png),
        2 => jpeg(&resized(random.random_range(1.2..2.0)), 85),
        3 => {
            let share = random.random_range(0.91..0.99);
            let (w, h) = ((width as f32 * share) as u32, (height as f32 * share) as u32);
            let (x, y) = (random.random_range(0..=width - w), random.random_range(0..=height - h));
            encoded(&imageops::crop_imm(image, x, y, w, h).to_image(), ImageFormat::Png)
        }
        _ => {
            let (scale, shift) = (random.random_range(0.7..1.2), random.random_range(-15.0..15.0));
            let mut image = image.clone();
            image.iter_mut().for_each(|v| *v = (*v as f32 * scale + shift).clamp(0.0, 255.0) as u8);
            jpeg(&image, 90)
        }
    }
}

/// [`TINY`] with images in folders.
fn spec(train: &str, test: &str) -> String {
    let line = |line: &str| match line.starts_with("data:") {
        true => format!("data: {{format: image_folder, train: {train}, test: {test}}}"),
        false => line.to_owned(),
    };
    TINY.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The names of the two images of each pair in a list.
fn pairs(list: &Value) -> BTreeSet<[String; 2]> {
    let name = |image: &Value| format!("{}/{}", text(&image["split"]), text(&image["image"]));
    let pair = |pair: &Value| {
        let mut names = [name(&pair["images"][0]), name(&pair["images"][1])];
        names.sort();
        names
    };
    list["pairs"].as_array().expect("pairs").iter().map(pair).collect()
}

fn sorted(a: &str, b: &str) -> [String; 2] {
    let mut pair = [a.to_owned(), b.to_owned()];
    pair.sort();
    pair
}

#[test]
fn planted_duplicates_are_found_among_pictures_that_are_none() {
    let scratch = Scratch::new();
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let (mut exact, mut near_ones) = (BTreeSet::new(), BTreeSet::new());
    for i in 0..600usize {
        let image = picture(&mut random);
        let class = ["cat", "dog"][i % 2];
        let name = format!("train/{class}/{i:03}.png");
        let bytes = encoded(&image, ImageFormat::Png);
        scratch.write(&name, &bytes);
        // Every third image has a duplicate, exact or near, in the same split or the other, in the same class or the other.
        let again = format!("{}/{}/again{i:03}.png", ["train", "test"][i / 3 % 2], ["cat", "dog"][i / 2 % 2]);
        if i % 15 == 0 {
            scratch.write(&again, &bytes);
            exact.insert(sorted(&name, &again));
        } else if i % 3 == 0 {
            scratch.write(&again, near(&image, i / 3, &mut random));
            near_ones.insert(sorted(&name, &again));
        }
    }
    scratch.write("photos.yaml", spec("train", "test"));
    let found = scratch.json("data photos.yaml --json");
    assert_eq!(pairs(&found["exact_duplicates"]), exact);
    let near = pairs(&found["near_duplicates"]);
    let missed: Vec<_> = near_ones.difference(&near).collect();
    assert!(missed.is_empty(), "{} of {} missed: {missed:?}", missed.len(), near_ones.len());
    let right = near.intersection(&near_ones).count();
    assert!(right as f64 >= 0.95 * near.len() as f64, "{right} of {} are right", near.len());
    let both = |pairs: &BTreeSet<[String; 2]>| {
        pairs.iter().filter(|[a, b]| a.starts_with("test") != b.starts_with("test")).count()
    };
    assert_eq!(found["exact_duplicates"]["both_splits"], both(&exact));
    assert!(
        both(&near_ones) > 20 && found["near_duplicates"]["both_splits"].as_u64().unwrap() >= both(&near_ones) as u64
    );
    assert!(found["near_duplicates"]["two_classes"].as_u64().unwrap() > 20);
    // `snclr data` left the artifact of the data stage, so a run need not read the images again.
    let plan = scratch.json("plan photos.yaml --json");
    assert_eq!((&plan["stages"][0]["stage"], &plan["stages"][0]["status"]), (&json!("data"), &json!("cached")));
}

#[test]
fn what_is_in_a_data_set_is_counted() {
    let scratch = Scratch::new();
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for i in 0..6 {
        let image = imageops::resize(&picture(&mut random), 40 + 10 * i, 50, FilterType::Triangle);
        scratch
            .write(&format!("train/{}/{i}.png", ["cat", "dog"][usize::from(i > 1)]), encoded(&image, ImageFormat::Png));
        scratch.write(&format!("test/dog/{i}.jpg"), jpeg(&picture(&mut random), 80));
    }
    let grey = image::DynamicImage::ImageRgb8(picture(&mut random)).into_luma16();
    let mut bytes = Cursor::new(Vec::new());
    grey.write_to(&mut bytes, ImageFormat::Png).unwrap();
    scratch.write("train/cat/grey.png", bytes.into_inner());
    scratch.write("train/cat/plain.png", encoded(&RgbImage::from_pixel(60, 60, Rgb([9; 3])), ImageFormat::Png));
    scratch.write("train/cat/broken.png", &encoded(&picture(&mut random), ImageFormat::Png)[..300]);
    scratch.write("train/cat/notes.txt", "no image");
    scratch.write("photos.yaml", spec("train", "test"));
    let finished = scratch.run("data photos.yaml -o page/data.html");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    expect![[r#"
        warning: a run of this spec would stop: stage data: cannot read image `train/cat/broken.png`: PNG: unexpected end of file (`data.on_error: skip` leaves such images out)
        warning: skipped `train/cat/broken.png`: PNG: unexpected end of file
        warning: data.train: 1 image skipped: 1 PNG
        warning: data.train: 1 file left out that is no image: 1 *.txt
    "#]]
    .assert_eq(&lines(&finished.stderr, "warning:"));
    for row in [
        ["images", "8", "6"],
        ["unreadable", "1 PNG", "0"],
        ["other files", "1 *.txt", "0"],
        ["formats", "8 PNG", "6 JPEG"],
        ["images of a class", "4", "6"],
        ["classes", "2", "1"],
    ] {
        let is_row = |line: &str| line.split(['│', '┆']).map(str::trim).filter(|cell| !cell.is_empty()).eq(row);
        assert!(finished.stdout.lines().any(is_row), "{row:?}\n{}", finished.stdout);
    }
    assert!(finished.stdout.contains("7 RGB, 1 grey of 16 bits"), "{}", finished.stdout);
    assert!(finished.stdout.contains("1 image almost without contrast"), "{}", finished.stdout);
    assert!(finished.stdout.contains("wrote page/data.html"), "{}", finished.stdout);
    let page = fs::read_to_string(scratch.path("page/data.html")).unwrap();
    assert!(page.contains("data:image/jpeg;base64,"));

    let found = scratch.json("data photos.yaml --json");
    let train = &found["splits"][0];
    assert_eq!((&train["images"], &train["unreadable"]), (&json!(8), &json!({ "PNG": 1 })));
    assert_eq!(train["classes"], json!([{ "class": "cat", "images": 4 }, { "class": "dog", "images": 4 }]));
    assert_eq!(found["plain"], 1);
    assert_eq!(scratch.run("data nowhere.yaml").code, 2);
    let sets = scratch.run("data photos.yaml --similarity 0.9");
    assert_eq!(sets.code, 2, "{}", sets.stderr);
}

#[test]
fn an_encoder_finds_what_it_takes_for_the_same() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json");
    let mut random = ChaCha8Rng::seed_from_u64(8);
    for i in 0..24 {
        let image = picture(&mut random);
        scratch.write(&format!("train/cat/{i:02}.png"), encoded(&image, ImageFormat::Png));
        if i < 6 {
            scratch.write(&format!("test/cat/{i:02}.jpg"), jpeg(&image, 90));
        }
    }
    scratch.write("photos.yaml", spec("train", "test"));
    let found = scratch.json("data photos.yaml --encoder tiny --similarity 0.97 --json");
    let expected = (0..6).map(|i| sorted(&format!("test/cat/{i:02}.jpg"), &format!("train/cat/{i:02}.png")));
    let embedded = pairs(&found["near_by_embedding"]);
    assert!(expected.clone().all(|pair| embedded.contains(&pair)), "{embedded:?}");
    assert!(scratch.json("data photos.yaml --json").get("near_by_embedding").is_none());
}

#[test]
fn a_contact_sheet_shows_the_views_of_training() {
    let scratch = Scratch::new();
    let small =
        TINY.replace("  view2:", "  local_crops: {count: 2, size: 8, view: {random_resized_crop: {}}}\n  view2:");
    scratch.write("small.yaml", &small);
    let finished = scratch.run("views small.yaml --images 3 -o sheet.png");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    assert!(finished.stdout.starts_with(
        "wrote sheet.png\ncolumns: image, view 1, view 2, small 1, small 2; as in epoch 0\nrows: sample "
    ));
    let size = |path: &Path| image::open(path).unwrap().into_rgb8().dimensions();
    assert_eq!(size(&scratch.path("sheet.png")), (5 * 20 + 4, 3 * 20 + 4));
    let first = fs::read(scratch.path("sheet.png")).unwrap();
    scratch.run("views small.yaml --images 3 -o again.png --threads 1");
    assert_eq!(fs::read(scratch.path("again.png")).unwrap(), first);
    scratch.run("views small.yaml --images 3 -o later.png --epoch 1");
    assert_ne!(fs::read(scratch.path("later.png")).unwrap(), first);
    expect![[r#"
        error: sheet.jpg: the name must end in .png, the only format
    "#]]
    .assert_eq(&scratch.run("views small.yaml -o sheet.jpg").stderr);
}

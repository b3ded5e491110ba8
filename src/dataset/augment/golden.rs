//! Compares every deterministic step with Pillow's own output (tests/golden/augment/make_fixtures.py).

use image::{RgbImage, imageops};
use safetensors::SafeTensors;

use super::{
    AugmentationsConfig, EvalTransform, EvalTransformConfig,
    blur::gaussian_blur,
    color,
    hue::hue,
    planes::{BlurBuffers, Planes},
    resize::{Resizer, Target},
};
use crate::dataset::{CropBox, Part};

const FIXTURES: &[u8] = include_bytes!("../../../tests/golden/augment/pillow.safetensors");

fn load(name: &str) -> RgbImage {
    let fixtures = SafeTensors::deserialize(FIXTURES).unwrap();
    let tensor = fixtures.tensor(name).unwrap();
    let shape = tensor.shape();
    RgbImage::from_raw(shape[1] as u32, shape[0] as u32, tensor.data().to_vec()).unwrap()
}

/// Arguments and expected picture of each case of an operation.
fn cases(operation: &str) -> Vec<(Vec<f64>, RgbImage)> {
    let fixtures = SafeTensors::deserialize(FIXTURES).unwrap();
    let names = fixtures.names();
    let mut cases = Vec::new();
    for (name, arguments) in names.iter().filter_map(|name| Some((name, name.strip_prefix(&format!("{operation}/"))?)))
    {
        let arguments = arguments.split(',').filter(|a| !a.is_empty()).map(|a| a.parse().unwrap()).collect();
        cases.push((arguments, load(name)));
    }
    assert!(!cases.is_empty(), "no case of {operation}");
    cases
}

/// Asserts that no byte differs by more than `tolerance`; the message says how many bytes differ.
fn check(what: &str, arguments: &[f64], found: &[u8], expected: &[u8], tolerance: u8) {
    assert_eq!(found.len(), expected.len());
    let most = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    let off = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    assert!(most <= tolerance, "{what} {arguments:?}: {off} of {} bytes differ, by {most} at most", found.len());
}

/// Runs a step on planes; it must equal Pillow's byte by byte.
fn exact(operation: &str, picture: &str, step: impl Fn(&mut Planes, &[f64])) {
    let image = load(picture);
    for (arguments, expected) in cases(operation) {
        let mut planes = Planes::default();
        planes.resize(image.width() as usize, image.height() as usize);
        for (i, pixel) in image.pixels().enumerate() {
            planes.split_mut().into_iter().zip(pixel.0).for_each(|(plane, value)| plane[i] = value);
        }
        step(&mut planes, &arguments);
        check(operation, &arguments, &planes.interleaved(), &expected, 0);
    }
}

#[test]
fn enhancements_equal_pillow() {
    exact("brightness", "small", |planes, a| color::brightness(planes, a[0] as f32));
    exact("contrast", "small", |planes, a| color::contrast(planes, a[0] as f32));
    exact("saturation", "small", |planes, a| color::saturation(planes, a[0] as f32));
    exact("grayscale", "many", |planes, _| color::grayscale(planes));
    exact("solarize", "small", |planes, a| color::solarize(planes, a[0] as u8));
}

#[test]
fn hue_equals_pillow() {
    exact("hue", "many", |planes, a| hue(planes, a[0]));
}

#[test]
fn blur_equals_pillow() {
    exact("gaussian_blur", "small", |planes, a| gaussian_blur(planes, a[0] as f32, &mut BlurBuffers::default()));
}

#[test]
fn cropping_and_resizing_equal_pillow() {
    let image = Part::from(load("wide"));
    for (arguments, expected) in cases("resize") {
        let arguments: Vec<u32> = arguments.iter().map(|a| *a as u32).collect();
        let [left, top, width, height, to_width, to_height] = arguments[..] else { panic!("{arguments:?}") };
        let mut out = Planes::default();
        let part = CropBox { left, top, width, height };
        // Buffers that held a larger part before must not change the result.
        let mut resizer = Resizer::default();
        for size in [(67, 59), (to_width, to_height)] {
            resizer.crop_resize(&image, part, Target::whole(size.0, size.1), &mut out);
        }
        check("resize", &[left, top, width, height].map(f64::from), &out.interleaved(), &expected, 0);
        // A box of the result must equal the same box cut out of the whole result.
        let shown = CropBox { left: to_width / 3, top: to_height / 2, width: to_width.div_ceil(3), height: 1 };
        let target = Target { size: (to_width, to_height), shown };
        resizer.crop_resize(&image, part, target, &mut out);
        let cut = imageops::crop_imm(&expected, shown.left, shown.top, shown.width, shown.height).to_image();
        check("box", &[left, top, width, height].map(f64::from), &out.interleaved(), &cut, 0);
    }
}

#[test]
fn evaluation_sees_the_centre() {
    let view = serde_json::json!({ "random_resized_crop": {} });
    let config = serde_json::json!({ "size": 16, "view1": view, "view2": view });
    let config: AugmentationsConfig = serde_json::from_value(config).unwrap();
    let image = Part::from(load("wide"));
    for (arguments, expected) in cases("eval") {
        let [resize, size] = arguments[..] else { panic!("{arguments:?}") };
        let eval = EvalTransformConfig { resize: Some(resize as u32) };
        let config = AugmentationsConfig { size: size as u32, eval, ..config.clone() };
        let mut out = vec![0.0; 3 * (size * size) as usize];
        EvalTransform::new(&config.of_evaluation()).apply(&image, &mut out);
        let byte = |(i, value): (usize, &f32)| ((value * config.std[i % 3] + config.mean[i % 3]) * 255.0).round() as u8;
        let bytes: Vec<u8> = out.iter().enumerate().map(byte).collect();
        check("eval", &arguments, &bytes, &expected, 0);
    }
}

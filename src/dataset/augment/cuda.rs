//! Augmentation on a GPU. The CPU decodes the images and draws their views, with the same code as for its own views. The device
//! resizes, changes and normalises. The views are bit-identical to those of the CPU.

use rayon::prelude::*;

use super::{
    blur::BoxBlur,
    filters::{Filters, columns_first},
    hue,
    jitter::Change,
    pipeline::{Drawn, Pipeline},
};
use crate::{
    dataset::{CropBox, Part},
    ops::cuda::{Arg, Buffer, Gpu, GpuError, Kind, Scalar, Source, View},
};

const KERNELS: &[&str] = &["resize_first", "augment"];
const TEXT: &str = concat!(include_str!("../../ops/cuda/storage.cuh"), include_str!("augment.cu"));

/// The kernels, compiled once per storage type of the views.
pub static SOURCES: [Source; 3] = [
    Source { name: "augment_f32", defines: "#define STORAGE 0", text: TEXT, kernels: KERNELS },
    Source { name: "augment_f16", defines: "#define STORAGE 1", text: TEXT, kernels: KERNELS },
    Source { name: "augment_bf16", defines: "#define STORAGE 2", text: TEXT, kernels: KERNELS },
];

/// The most bytes of device memory for the images of one pass. A single image may need more.
const PASS_BYTES: usize = 256 << 20;
/// Blocks per image of the kernel `resize_first`.
const BLOCKS: usize = 16;

/// The part of an image that its views show, and the drawn values of each view.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Interleaved RGB rows of the smallest box around the parts of all views.
    pixels: Vec<u8>,
    around: CropBox,
    views: Vec<Drawn>,
}

impl Piece {
    /// Copies the box `around` out of `image`, which must contain it.
    pub fn new(image: &Part, views: Vec<Drawn>, around: CropBox) -> Piece {
        let (rows, stride) = image.rows(around);
        let row = |y: usize| &rows[stride * y..][..3 * around.width as usize];
        let pixels = (0..around.height as usize).flat_map(|y| row(y).iter().copied()).collect();
        Piece { pixels, around, views }
    }

    /// Bytes that the piece takes on the device, including the working memory of its largest view.
    fn bytes(&self, pipelines: &[Pipeline]) -> usize {
        let view = |(view, pipeline): (&Drawn, &Pipeline)| {
            let side = pipeline.size as usize;
            resized_first(view.part, pipeline.size) + 6 * side * side
        };
        self.pixels.len() + self.views.iter().zip(pipelines).map(view).max().unwrap_or(0)
    }
}

/// Bytes of a part after it has been resized along the first of its axes.
fn resized_first(part: CropBox, side: u32) -> usize {
    let other = if columns_first(part, (side, side)) { part.width } else { part.height };
    3 * side as usize * other as usize
}

/// The images of a batch, ready for the device.
#[derive(Clone, Debug)]
pub struct Pieces {
    images: usize,
    pipelines: Vec<Pipeline>,
    passes: Vec<Pass>,
}

/// Images that go through the device together.
#[derive(Clone, Debug)]
struct Pass {
    images: usize,
    pixels: Vec<u8>,
    views: Vec<Views>,
}

/// One view of each image of a pass, in the form that the kernels read.
#[derive(Clone, Debug, Default)]
struct Views {
    /// `View`s of augment.cu.
    records: Vec<u32>,
    /// Per image, where its piece starts, and where its result of `resize_first` starts.
    places: Vec<u64>,
    /// Weights of columns and rows.
    weights: Vec<i32>,
    /// Bytes that `resize_first` writes for all images.
    resized: usize,
}

impl Pieces {
    /// Packs images, whose views were drawn for `pipelines`, into passes.
    pub fn new(pipelines: &[Pipeline], pieces: &[Piece]) -> Pieces {
        let mut passes: Vec<&[Piece]> = Vec::new();
        let mut rest = pieces;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |piece: &&Piece| {
                bytes += piece.bytes(pipelines);
                bytes <= PASS_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (pass, others) = rest.split_at(count);
            passes.push(pass);
            rest = others;
        }
        let passes = passes.into_iter().map(|pieces| Pass::new(pipelines, pieces)).collect();
        Pieces { images: pieces.len(), pipelines: pipelines.to_vec(), passes }
    }

    /// Number of images.
    pub fn count(&self) -> usize {
        self.images
    }

    /// Height and width in pixels of each pipeline's views.
    pub fn sizes(&self) -> impl Iterator<Item = usize> {
        self.pipelines.iter().map(|pipeline| pipeline.size as usize)
    }

    /// Runs the pipelines. Returns one tensor [images, size, size, 3] on the device per pipeline: the normalised views.
    ///
    /// # Errors
    /// When the device fails.
    pub fn augment(&self, gpu: &Gpu, scalar: Scalar) -> Result<Vec<Buffer>, GpuError> {
        let values = |pipeline: &Pipeline| 3 * (pipeline.size as usize).pow(2);
        let out: Result<Vec<Buffer>, _> =
            self.pipelines.iter().map(|p| gpu.take(scalar, self.images * values(p))).collect();
        let (out, mut done) = (out?, 0);
        for pass in &self.passes {
            let pixels = gpu.upload(&pass.pixels)?;
            for ((pipeline, views), out) in self.pipelines.iter().zip(&pass.views).zip(&out) {
                let to = out.view().part(done * values(pipeline)..(done + pass.images) * values(pipeline));
                views.run(gpu, scalar, pipeline, pass.images, &pixels, to)?;
            }
            done += pass.images;
        }
        Ok(out)
    }
}

impl Pass {
    fn new(pipelines: &[Pipeline], pieces: &[Piece]) -> Pass {
        let mut pixels = vec![0; pieces.iter().map(|piece| piece.pixels.len()).sum()];
        let (mut starts, mut places, mut rest) = (Vec::new(), Vec::new(), &mut pixels[..]);
        let mut start = 0;
        for piece in pieces {
            let (place, others) = rest.split_at_mut(piece.pixels.len());
            starts.push(start);
            places.push(place);
            (rest, start) = (others, start + piece.pixels.len() as u64);
        }
        pieces.par_iter().zip(places).for_each(|(piece, place)| place.copy_from_slice(&piece.pixels));
        let views = pipelines.par_iter().enumerate().map(|(i, pipeline)| {
            let mut views = Views::default();
            for (piece, start) in pieces.iter().zip(&starts) {
                views.push(&piece.views[i], piece.around, *start, pipeline.size);
            }
            views
        });
        let views = views.collect();
        Pass { images: pieces.len(), pixels, views }
    }
}

impl Views {
    /// Adds the view of an image whose piece covers the box `around` and starts at `start`.
    fn push(&mut self, view: &Drawn, around: CropBox, start: u64, side: u32) {
        let part = view.part;
        let (down, along) = (Filters::new(part.height, side), Filters::new(part.width, side));
        let down_at = self.weights.len() as u32;
        self.weights.extend(&down.values);
        let along_at = self.weights.len() as u32;
        self.weights.extend(&along.values);
        self.records.extend([
            3 * around.width,
            part.left - around.left,
            part.top - around.top,
            part.width,
            part.height,
        ]);
        self.records.extend([down_at, along_at, down.window as u32, along.window as u32]);
        self.records.push(columns_first(part, (side, side)).into());
        let changes = view.changes.map(|change| match change {
            None => (0, 0.0),
            Some(Change::Brightness(factor)) => (1, factor as f32),
            Some(Change::Contrast(factor)) => (2, factor as f32),
            Some(Change::Saturation(factor)) => (3, factor as f32),
            Some(Change::Hue(turns)) => (4, f32::from(hue::shift(turns))),
        });
        self.records.extend(changes.map(|(kind, _)| kind));
        self.records.extend(changes.map(|(_, factor)| factor.to_bits()));
        let blur = view.sigma.and_then(BoxBlur::of);
        let threshold = view.threshold.map_or(256, u32::from);
        self.records.push(view.grayscale.into());
        self.records.extend(blur.map_or([u32::MAX, 0, 0], |b| [b.whole, b.weight, b.far_weight]));
        self.records.extend([threshold, view.mirrored.into()]);
        self.places.extend([start, self.resized as u64]);
        self.resized += resized_first(part, side);
    }

    fn run(
        &self,
        gpu: &Gpu,
        scalar: Scalar,
        pipeline: &Pipeline,
        images: usize,
        pixels: &Buffer,
        out: View,
    ) -> Result<(), GpuError> {
        let (source, side) = (scalar.source(&SOURCES), pipeline.size as usize);
        let (records, places) = (gpu.upload(&self.records)?, gpu.upload(&self.places)?);
        let (weights, normalised) = (gpu.upload(&self.weights)?, gpu.upload(pipeline.normalize.values())?);
        let (views, side_arg) = ([records.arg(), places.arg(), weights.arg()], Arg::count(side));
        let resized = gpu.take(Kind::U8, self.resized)?;
        let args = [&views[..], &[pixels.arg(), side_arg, resized.arg()]].concat();
        // SAFETY: `Pass::new` built records, places and weights for exactly these `images`, so the places lie within `pixels` and
        // `resized`, and the indices of weights lie within `weights`.
        unsafe { gpu.launch(source, "resize_first", [images, BLOCKS, 1], &args) }?;
        let values = images * 3 * side * side;
        let (bytes, other) = (gpu.take(Kind::U8, values)?, gpu.take(Kind::U8, values)?);
        let rest = [resized.arg(), side_arg, normalised.arg(), bytes.arg(), other.arg(), out.arg(scalar, values)];
        // SAFETY: as above; `bytes`, `other` and `out` hold `values` elements, which is `side` x `side` pixels per image, and
        // `normalised` has 3 x 256 values.
        unsafe { gpu.launch(source, "augment", [images, 1, 1], &[&views[..], &rest].concat()) }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use image::RgbImage;
    use rand_chacha::ChaCha8Rng;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        dataset::augment::{AugmentationsConfig, draw_all},
        ops::{
            cuda::testing::on_every_gpu,
            random::{Purpose, stream},
        },
    };

    fn pipelines(size: u32, views: [&Value; 2]) -> Vec<Pipeline> {
        let config = json!({ "size": size, "view1": views[0], "view2": views[1] });
        let config: AugmentationsConfig = serde_json::from_value(config).unwrap();
        [&config.view1, &config.view2].map(|view| Pipeline::new(view, size, [&config.mean, &config.std])).into()
    }

    /// Pictures of very different sizes, noise and colours in them.
    fn pictures() -> Vec<RgbImage> {
        [(40, 30), (1, 1), (16, 16), (97, 13), (21, 64), (8, 70)]
            .into_iter()
            .enumerate()
            .map(|(i, (width, height))| {
                RgbImage::from_fn(width, height, |x, y| {
                    let noise = (x * 7919 + y * 104_729 + i as u32 * 31) % 65_537;
                    image::Rgb([noise as u8, (x * 9) as u8, (noise >> 8) as u8 / 2 + (y * 3) as u8 / 2])
                })
            })
            .collect()
    }

    fn random(sample: usize, view: usize) -> ChaCha8Rng {
        stream(3, Purpose::Augment, 1, sample as u64, view as u32)
    }

    /// The CPU's views of all pictures, one tensor per pipeline.
    fn expected(pictures: &[RgbImage], pipelines: &[Pipeline]) -> Vec<Vec<f32>> {
        let view = |(v, pipeline): (usize, &Pipeline)| {
            let len = 3 * (pipeline.size as usize).pow(2);
            let mut out = vec![0.0; pictures.len() * len];
            for (i, (picture, out)) in pictures.iter().zip(out.chunks_exact_mut(len)).enumerate() {
                let drawn = pipeline.draw(picture.dimensions(), &mut random(i, v));
                pipeline.make(&drawn, &picture.clone().into(), out);
            }
            out
        };
        pipelines.iter().enumerate().map(view).collect()
    }

    fn pieces(pictures: &[RgbImage], pipelines: &[Pipeline]) -> Vec<Piece> {
        let piece = |(i, picture): (usize, &RgbImage)| {
            let (views, around) = draw_all(pipelines.iter(), picture.dimensions(), |view| random(i, view));
            Piece::new(&picture.clone().into(), views, around)
        };
        pictures.iter().enumerate().map(piece).collect()
    }

    /// Asserts that the device's views of all pictures are bit-identical to the CPU's.
    fn same(pictures: &[RgbImage], pipelines: &[Pipeline]) {
        let expected = expected(pictures, pipelines);
        let pieces = Pieces::new(pipelines, &pieces(pictures, pipelines));
        on_every_gpu(|gpu| {
            let found = pieces.augment(gpu, Scalar::F32).unwrap();
            let found: Vec<Vec<f32>> = found.iter().map(|view| view.read().unwrap()).collect();
            for (view, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let off = found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
                if let Some(i) = off {
                    let len = expected.len() / pictures.len();
                    panic!("view {view} of picture {}, value {}: {} not {}", i / len, i % len, found[i], expected[i]);
                }
            }
            found
        });
    }

    /// Runs one operation at a time on every picture, without the others.
    #[test]
    fn every_operation_gives_the_cpus_bytes() {
        let jitter = |name: &str, strength: f32| {
            let mut jitter = json!({ "p": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0 });
            jitter[name] = strength.into();
            json!({ "color_jitter": jitter })
        };
        let operations = [
            json!({}),
            jitter("brightness", 0.8),
            jitter("contrast", 0.8),
            jitter("saturation", 0.8),
            jitter("hue", 0.5),
            json!({ "grayscale": { "p": 1.0 } }),
            json!({ "gaussian_blur": { "p": 1.0, "sigma": [0.1, 2.0] } }),
            json!({ "gaussian_blur": { "p": 1.0, "sigma": [3.0, 9.0] } }),
            json!({ "solarize": { "p": 1.0, "threshold": 100 } }),
            json!({ "horizontal_flip": { "p": 1.0 } }),
        ];
        for pair in operations.chunks(2) {
            let views = [&pair[0], &pair[1]].map(|steps| {
                let mut steps = steps.clone();
                steps["random_resized_crop"] = json!({ "scale": [0.1, 1.0] });
                steps
            });
            same(&pictures(), &pipelines(16, [&views[0], &views[1]]));
        }
    }

    #[test]
    fn a_whole_pipeline_gives_the_cpus_bytes() {
        let view = json!({
            "random_resized_crop": {},
            "color_jitter": { "p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1 },
            "grayscale": { "p": 0.2 },
            "gaussian_blur": { "p": 0.5 },
            "solarize": { "p": 0.2 },
            "horizontal_flip": { "p": 0.5 }
        });
        let pictures: Vec<RgbImage> = pictures().into_iter().cycle().take(24).collect();
        same(&pictures, &pipelines(24, [&view, &view]));
    }

    /// A grid of 49 x 49 x 49 colours: in each channel, every 16th value and the two after it, and 255.
    #[test]
    fn every_colour_is_shifted_as_on_the_cpu() {
        let colours: Vec<u8> = (0..=255).filter(|v| v % 16 < 3 || *v == 255).collect();
        let n = colours.len();
        let picture = RgbImage::from_fn(343, 343, |x, y| {
            let i = (x + 343 * y) as usize % (n * n * n);
            image::Rgb([colours[i / n / n], colours[i / n % n], colours[i % n]])
        });
        let jitter = json!({ "p": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.5 });
        let view =
            json!({ "random_resized_crop": { "scale": [1.0, 1.0], "ratio": [1.0, 1.0] }, "color_jitter": jitter });
        same(&[picture], &pipelines(343, [&view, &view]));
    }

    #[test]
    fn half_precision_is_the_nearest_and_large_images_go_in_several_passes() {
        let view = json!({ "random_resized_crop": {} });
        let (pictures, pipelines) = (pictures(), pipelines(16, [&view, &view]));
        let expected = expected(&pictures, &pipelines);
        let all = pieces(&pictures, &pipelines);
        let (first, second) = all.split_at(2);
        let passes = vec![Pass::new(&pipelines, first), Pass::new(&pipelines, second)];
        let pieces = Pieces { images: all.len(), pipelines, passes };
        on_every_gpu(|gpu| {
            let found = pieces.augment(gpu, Scalar::F16).unwrap();
            let found: Vec<Vec<f16>> = found.iter().map(|view| view.read().unwrap()).collect();
            for (found, expected) in found.iter().zip(&expected) {
                assert!(found.iter().zip(expected).all(|(f, e)| *f == f16::from_f32(*e)));
            }
            found
        });
    }

    #[test]
    fn a_pass_holds_what_there_is_room_for() {
        let view = json!({ "random_resized_crop": { "scale": [1.0, 1.0], "ratio": [1.0, 1.0] } });
        let pipelines = pipelines(16, [&view, &view]);
        let (views, around) = draw_all(pipelines.iter(), (6000, 6000), |view| random(0, view));
        let piece = Piece::new(&RgbImage::new(6000, 6000).into(), views, around);
        assert_eq!(piece.pixels.len(), 108_000_000);
        let pieces = Pieces::new(&pipelines, &[piece.clone(), piece.clone(), piece]);
        assert_eq!(pieces.passes.iter().map(|pass| pass.images).collect::<Vec<_>>(), [2, 1]);
    }
}

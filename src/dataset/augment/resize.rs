//! Bilinear resizing with antialiasing. The bytes equal those of Pillow's `Image.resize(…, BILINEAR)` of a crop.

#[cfg(target_arch = "x86_64")]
use pulp::{bytemuck::cast, x86::V3};

use super::{
    filters::{BITS, Filters, columns_first},
    planes::Planes,
};
#[cfg(target_arch = "x86_64")]
use crate::ops::simd::avx2;
use crate::{
    dataset::{CropBox, Part},
    ops::simd::vectorized,
};

/// Bytes of a row that are mixed at once.
const CHUNK: usize = 64;

/// Resizes parts of images. Its buffers grow to the largest size needed and are kept.
#[derive(Default)]
pub(super) struct Resizer {
    /// The result of the first of the two passes.
    between: Vec<u8>,
    #[cfg(target_arch = "x86_64")]
    fours: Fours,
}

/// The size that a part is resized to, and the box of the result that is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub size: (u32, u32),
    pub shown: CropBox,
}

impl Target {
    /// A target that wants all of `width` x `height` pixels.
    pub fn whole(width: u32, height: u32) -> Target {
        Target { size: (width, height), shown: CropBox::whole((width, height)) }
    }

    /// The weights for columns and rows, and the box of the image that they read.
    fn filters(self, part: CropBox) -> ([Filters; 2], CropBox) {
        let Target { size: (width, height), shown } = self;
        let (mut across, mut down) = (Filters::new(part.width, width), Filters::new(part.height, height));
        let columns = across.only(shown.left..shown.left + shown.width);
        let rows = down.only(shown.top..shown.top + shown.height);
        let (left, top) = (part.left + columns.start, part.top + rows.start);
        ([across, down], CropBox { left, top, width: columns.len() as u32, height: rows.len() as u32 })
    }

    /// The box of the image that is read to resize a part of it.
    pub fn reads(self, part: CropBox) -> CropBox {
        self.filters(part).1
    }
}

/// Rows of bytes.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// Starts at the first byte of the first row.
    bytes: &'a [u8],
    /// Bytes from row to row.
    stride: usize,
    /// Bytes used of a row.
    length: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(self, y: usize) -> &'a [u8] {
        &self.bytes[self.stride * y..][..self.length]
    }
}

impl Resizer {
    /// Resizes a part of `image` into `planes`. Pixels outside the part have no influence on the result, since torchvision crops
    /// first.
    pub fn crop_resize(&mut self, image: &Part, part: CropBox, target: Target, planes: &mut Planes) {
        let ([across, down], read) = target.filters(part);
        let (bytes, stride) = image.rows(read);
        let source = Rows { bytes, stride, length: 3 * read.width as usize };
        let (width, height) = (across.len(), down.len());
        planes.resize(width, height);
        if columns_first(part, target.size) {
            self.between.resize(source.length * height, 0);
            resize_columns(source, &down, &mut self.between);
            let between = std::mem::take(&mut self.between);
            let source = Rows { bytes: &between, stride: source.length, length: source.length };
            self.resize_rows(source, &across, planes.split_mut());
            self.between = between;
        } else {
            let plane = width * read.height as usize;
            let mut between = std::mem::take(&mut self.between);
            between.resize(3 * plane, 0);
            let (red, rest) = between.split_at_mut(plane);
            let (green, blue) = rest.split_at_mut(plane);
            self.resize_rows(source, &across, [red, green, blue]);
            for (between, out) in between.chunks_exact(plane).zip(planes.split_mut()) {
                resize_columns(Rows { bytes: between, stride: width, length: width }, &down, out);
            }
            self.between = between;
        }
    }

    /// Resizes rows of interleaved pixels to their new width, and splits them into planes. `source` must have as many rows as the
    /// planes.
    fn resize_rows(&mut self, source: Rows, filters: &Filters, out: [&mut [u8]; 3]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = avx2() {
            self.fours.set(filters);
            return self.fours.resize_rows(simd, source, filters.len(), out);
        }
        resize_rows(source, filters, out);
    }
}

/// Added to a sum before its fraction is dropped.
const HALF: i32 = 1 << (BITS - 1);

/// Drops the fraction of a sum and clamps it to a byte. Weights that were rounded up may add up to more than 1.
#[inline(always)]
fn round(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Does the same as [`Resizer::resize_rows`], on any CPU.
fn resize_rows(source: Rows, filters: &Filters, [red, green, blue]: [&mut [u8]; 3]) {
    let width = filters.len();
    let rows = red.chunks_exact_mut(width).zip(green.chunks_exact_mut(width)).zip(blue.chunks_exact_mut(width));
    for (y, ((red, green), blue)) in rows.enumerate() {
        let row = source.row(y);
        for (x, (first, weights)) in filters.iter().enumerate() {
            let mut sums = [HALF; 3];
            for (pixel, &weight) in row[3 * first..].chunks_exact(3).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += weight * i32::from(value);
                }
            }
            [red[x], green[x], blue[x]] = sums.map(round);
        }
    }
}

/// Weights for four target pixels at a time, in pairs of source pixels. AVX2 multiplies and adds pairs of 16-bit numbers, so each
/// weight is split into two halves.
#[cfg(target_arch = "x86_64")]
#[derive(Default)]
struct Fours {
    /// Pairs of source pixels per target pixel, the same for all. Surplus source pixels have weight 0.
    pairs: usize,
    /// Byte offset in a row where each target pixel's source starts.
    starts: Vec<[u32; 4]>,
    /// Per four target pixels and pair of source pixels, four vectors: the upper and the lower halves of the weights of target
    /// pixels 0 and 2, then those of target pixels 1 and 3.
    weights: Vec<[[i16; 16]; 4]>,
    /// Copy of a row, with padding behind it.
    row: Vec<u8>,
}

#[cfg(target_arch = "x86_64")]
impl Fours {
    /// Bits of the lower half of a weight.
    const LOWER: u32 = 11;
    /// Bytes that are loaded for a pair of source pixels.
    const LOAD: usize = 16;

    fn set(&mut self, filters: &Filters) {
        let most = filters.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        self.pairs = most.div_ceil(2);
        let fours = filters.len().div_ceil(4);
        self.starts.clear();
        self.starts.resize(fours, [0; 4]);
        self.weights.clear();
        self.weights.resize(fours * self.pairs, [[0; 16]; 4]);
        for (x, (first, weights)) in filters.iter().enumerate() {
            self.starts[x / 4][x % 4] = 3 * first as u32;
            let pairs = &mut self.weights[x / 4 * self.pairs..][..self.pairs];
            for (pair, weights) in pairs.iter_mut().zip(weights.chunks(2)) {
                let [upper, lower] = &mut pair[2 * (x % 2)..][..2] else { unreachable!("two of four") };
                for (i, &weight) in weights.iter().enumerate() {
                    for color in 0..4 {
                        let place = 8 * (x % 4 / 2) + 2 * color + i;
                        upper[place] = (weight >> Self::LOWER) as i16;
                        lower[place] = (weight & ((1 << Self::LOWER) - 1)) as i16;
                    }
                }
            }
        }
    }

    fn resize_rows(&mut self, simd: V3, source: Rows, width: usize, out: [&mut [u8]; 3]) {
        simd.vectorize(
            #[inline(always)]
            || match self.pairs {
                1 => self.resize_rows_by::<1>(simd, source, width, out),
                2 => self.resize_rows_by::<2>(simd, source, width, out),
                3 => self.resize_rows_by::<3>(simd, source, width, out),
                _ => self.resize_rows_by::<0>(simd, source, width, out),
            },
        );
    }

    /// Resizes rows with `PAIRS` pairs per target pixel, a number that the compiler knows. With 0, `self.pairs` is read instead.
    #[inline(always)]
    fn resize_rows_by<const PAIRS: usize>(
        &mut self,
        simd: V3,
        source: Rows,
        width: usize,
        [red, green, blue]: [&mut [u8]; 3],
    ) {
        let pairs = if PAIRS == 0 { self.pairs } else { PAIRS };
        let Fours { starts, weights, row: padded, .. } = self;
        // Spreads two pixels to pairs of 16-bit numbers: both reds, both greens, both blues, and zeros.
        const SPREAD: [i8; 16] = [0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1];
        // Regroups four pixels of four bytes into four reds, four greens and four blues.
        const PLANES: [i8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1];
        let (avx, avx2) = (simd.avx, simd.avx2);
        let spread = cast([SPREAD; 2]);
        let half = avx._mm256_set1_epi32(HALF);
        // The load of the last pair reads beyond the pixels that count, so this many bytes must follow.
        let room = 6 * pairs + Self::LOAD;
        for y in 0..red.len() / width {
            let mut row = &source.bytes[source.stride * y..];
            if row.len() < source.length + room {
                padded.clear();
                padded.extend_from_slice(&row[..source.length]);
                padded.resize(source.length + room, 0);
                row = padded;
            }
            for (four, (starts, weights)) in starts.iter().zip(weights.chunks_exact(pairs)).enumerate() {
                let source = |start: u32| &row[start as usize..][..room];
                let &[a, b, c, d] = starts;
                let sources = [source(a), source(b), source(c), source(d)];
                let mut sums = [avx._mm256_setzero_si256(); 4];
                for (pair, weights) in weights[..pairs].iter().enumerate() {
                    let load = |i: usize| {
                        cast(*sources[i][6 * pair..].first_chunk::<{ Self::LOAD }>().expect("there is room"))
                    };
                    for i in 0..2 {
                        let values = avx._mm256_set_m128i(load(i + 2), load(i));
                        let values = avx2._mm256_shuffle_epi8(values, spread);
                        for half in 2 * i..2 * i + 2 {
                            let product = avx2._mm256_madd_epi16(values, cast(weights[half]));
                            sums[half] = avx2._mm256_add_epi32(sums[half], product);
                        }
                    }
                }
                let whole = |upper, lower| {
                    let upper = avx2._mm256_slli_epi32::<{ Self::LOWER as i32 }>(upper);
                    let sum = avx2._mm256_add_epi32(avx2._mm256_add_epi32(upper, lower), half);
                    avx2._mm256_srli_epi32::<{ BITS as i32 }>(sum)
                };
                let words = avx2._mm256_packus_epi32(whole(sums[0], sums[1]), whole(sums[2], sums[3]));
                let bytes: [[u64; 2]; 2] = cast(avx2._mm256_packus_epi16(words, words));
                let bytes = simd.ssse3._mm_shuffle_epi8(cast([bytes[0][0], bytes[1][0]]), cast(PLANES));
                let [reds, greens, blues, _]: [[u8; 4]; 4] = cast(bytes);
                let at = width * y + 4 * four;
                put(&mut red[at..], reds);
                put(&mut green[at..], greens);
                put(&mut blue[at..], blues);
            }
        }
    }
}

/// Writes four pixels at the start of the rest of a plane. Surplus pixels at the end of a row are overwritten by the next row; at
/// the end of the plane they are dropped.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn put(plane: &mut [u8], four: [u8; 4]) {
    match plane.first_chunk_mut() {
        Some(bytes) => *bytes = four,
        None => plane.iter_mut().zip(four).for_each(|(to, from)| *to = from),
    }
}

/// Mixes rows to a new height. The rows of `out` have no gaps between them.
fn resize_columns(source: Rows, filters: &Filters, out: &mut [u8]) {
    vectorized(
        #[inline(always)]
        || {
            for ((first, weights), out) in filters.iter().zip(out.chunks_exact_mut(source.length)) {
                let (chunks, rest) = out.as_chunks_mut::<CHUNK>();
                let whole = CHUNK * chunks.len();
                for (i, out) in chunks.iter_mut().enumerate() {
                    *out = mix(source, first, weights, CHUNK * i);
                }
                // The last chunk may overlap the one before.
                if let Some(last) = source.length.checked_sub(CHUNK).filter(|_| !rest.is_empty()) {
                    rest.copy_from_slice(&mix::<CHUNK>(source, first, weights, last)[whole - last..]);
                } else {
                    for (i, out) in rest.iter_mut().enumerate() {
                        [*out] = mix(source, first, weights, i);
                    }
                }
            }
        },
    );
}

/// Weighted sums of `N` bytes from byte `start` on, over the rows from `first` on, one row per weight.
#[inline(always)]
fn mix<const N: usize>(source: Rows, first: usize, weights: &[i32], start: usize) -> [u8; N] {
    let mut sums = [HALF; N];
    for (y, &weight) in (first..).zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(&source.row(y)[start..][..N]) {
            *sum += weight * i32::from(value);
        }
    }
    let mut bytes = [0; N];
    for (byte, sum) in bytes.iter_mut().zip(sums) {
        *byte = round(sum);
    }
    bytes
}

/// Resizes the whole of `image` to `width` x `height` interleaved RGB pixels; its aspect ratio is not kept.
pub fn shrink(image: &Part, width: u32, height: u32) -> Vec<u8> {
    let whole = CropBox::whole(image.size());
    let mut planes = Planes::default();
    Resizer::default().crop_resize(image, whole, Target::whole(width, height), &mut planes);
    planes.interleaved()
}

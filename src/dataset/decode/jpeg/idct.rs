//! The inverse cosine transform of libjpeg's slow integer method, to the bit.

use super::blocks::Block;

const BITS: u32 = 13;
/// Fraction bits that are kept between the two passes.
const BETWEEN: u32 = 2;

/// One pass: transforms eight values for each of `LANES`, and shifts the results right by `shift` bits with rounding. Input
/// values from index `SOME` on are 0. In damaged files values may exceed 32 bits; they wrap around, and the result is arbitrary.
#[inline(always)]
fn pass<const SOME: usize, const LANES: usize>(v: &[[i32; LANES]; SOME], shift: u32) -> [[i32; LANES]; 8] {
    let mut done = [[0; LANES]; 8];
    for lane in 0..LANES {
        let v = |at: usize| if at < SOME { v[at][lane] } else { 0 };
        let sum = |a: usize, b: usize| v(a).wrapping_add(v(b));
        let add = |a: i32, b: i32| a.wrapping_add(b);
        let times = |value: i32, factor: i32| value.wrapping_mul(factor);
        let half = 1 << (shift - 1);
        // The even part, with the half for the rounding.
        let z1 = times(sum(2, 6), 4433);
        let (t2, t3) = (add(z1, times(v(6), -15137)), add(z1, times(v(2), 6270)));
        let t0 = add(sum(0, 4) << BITS, half);
        let t1 = add(v(0).wrapping_sub(v(4)) << BITS, half);
        let even = [add(t0, t3), add(t1, t2), t1.wrapping_sub(t2), t0.wrapping_sub(t3)];
        // The odd part.
        let z5 = times(add(sum(7, 3), sum(5, 1)), 9633);
        let (z1, z2) = (times(sum(7, 1), -7373), times(sum(5, 3), -20995));
        let (z3, z4) = (add(times(sum(7, 3), -16069), z5), add(times(sum(5, 1), -3196), z5));
        let odd = [
            add(add(times(v(1), 12299), z1), z4),
            add(add(times(v(3), 25172), z2), z3),
            add(add(times(v(5), 16819), z2), z4),
            add(add(times(v(7), 2446), z1), z3),
        ];
        for i in 0..4 {
            done[i][lane] = add(even[i], odd[i]) >> shift;
            done[7 - i][lane] = even[i].wrapping_sub(odd[i]) >> shift;
        }
    }
    done
}

/// Both passes over a block with nothing but zeros right of and below its first `SOME` columns and rows.
#[inline(always)]
fn both<const SOME: usize>(coefficients: &Block, quantizers: &Block) -> [[u8; 8]; 8] {
    let mut values = [[0; SOME]; SOME];
    for (y, row) in values.iter_mut().enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            *value = i32::from(coefficients[8 * y + x].wrapping_mul(quantizers[8 * y + x]));
        }
    }
    let columns = pass(&values, BITS - BETWEEN);
    let mut turned = [[0; 8]; SOME];
    for (x, row) in turned.iter_mut().enumerate() {
        for (y, value) in row.iter_mut().enumerate() {
            *value = columns[y][x];
        }
    }
    let rows = pass(&turned, BITS + BETWEEN + 3);
    // The result is transposed as bytes, which fill fewer registers than 32-bit numbers.
    let mut bytes = [[0; 8]; 8];
    for (row, bytes) in rows.iter().zip(&mut bytes) {
        for (value, byte) in row.iter().zip(bytes) {
            *byte = value.wrapping_add(128).clamp(0, 255) as u8;
        }
    }
    let mut samples = [[0; 8]; 8];
    for (y, row) in samples.iter_mut().enumerate() {
        for (x, sample) in row.iter_mut().enumerate() {
            *sample = bytes[x][y];
        }
    }
    samples
}

/// The samples of a block, row by row. Each coefficient is multiplied by the quantizer at the same place.
#[inline(always)]
pub fn block(coefficients: &Block, quantizers: &Block) -> [[u8; 8]; 8] {
    let any = |places: &[i16]| places.iter().fold(0, |any, &value| any | value) != 0;
    if any(&coefficients[1..]) {
        let right = coefficients[..32].chunks_exact(8).fold(0, |any, row| any | row[4] | row[5] | row[6] | row[7]);
        return match right != 0 || any(&coefficients[32..]) {
            true => both::<8>(coefficients, quantizers),
            false => both::<4>(coefficients, quantizers),
        };
    }
    // A block with only its first coefficient: both passes reduce to one formula.
    let value = i32::from(coefficients[0].wrapping_mul(quantizers[0]));
    [[(((value + 4) >> 3) + 128).clamp(0, 255) as u8; 8]; 8]
}

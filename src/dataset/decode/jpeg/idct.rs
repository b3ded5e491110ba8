//! The inverse cosine transform of libjpeg's slow integer method, to the bit.

use std::num::Wrapping;

const BITS: usize = 13;
/// Bits kept beyond whole numbers between the two passes.
const BETWEEN: usize = 2;

/// Damaged files can go beyond it; what comes of them then is their own affair.
type Value = Wrapping<i32>;

/// Eight values, transformed and rounded off by `shift` bits.
#[inline(always)]
fn pass(v: [Value; 8], shift: usize) -> [Value; 8] {
    let times = |value: Value, factor: i32| value * Wrapping(factor);
    // The even part.
    let z1 = times(v[2] + v[6], 4433);
    let (t2, t3) = (z1 - times(v[6], 15137), z1 + times(v[2], 6270));
    let (t0, t1) = ((v[0] + v[4]) << BITS, (v[0] - v[4]) << BITS);
    let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
    // The odd part.
    let z5 = times(v[7] + v[3] + v[5] + v[1], 9633);
    let (z1, z2) = (times(v[7] + v[1], -7373), times(v[5] + v[3], -20995));
    let (z3, z4) = (times(v[7] + v[3], -16069) + z5, times(v[5] + v[1], -3196) + z5);
    let odd = [
        times(v[1], 12299) + z1 + z4,
        times(v[3], 25172) + z2 + z3,
        times(v[5], 16819) + z2 + z4,
        times(v[7], 2446) + z1 + z3,
    ];
    let half = Wrapping(1 << (shift - 1));
    let mut done = [Wrapping(0); 8];
    for i in 0..4 {
        done[i] = (even[i] + odd[i] + half) >> shift;
        done[7 - i] = (even[i] - odd[i] + half) >> shift;
    }
    done
}

/// All columns of a block at once; the result is turned, so that the next pass has its rows as columns.
#[inline(always)]
fn columns(v: &[[Value; 8]; 8], shift: usize) -> [[Value; 8]; 8] {
    let mut done = [[Wrapping(0); 8]; 8];
    for x in 0..8 {
        let column = pass([v[0][x], v[1][x], v[2][x], v[3][x], v[4][x], v[5][x], v[6][x], v[7][x]], shift);
        for y in 0..8 {
            done[y][x] = column[y];
        }
    }
    let mut turned = [[Wrapping(0); 8]; 8];
    for y in 0..8 {
        for x in 0..8 {
            turned[x][y] = done[y][x];
        }
    }
    turned
}

/// Samples of a block, row by row: `coefficients`, each multiplied by its place in `quantizers`.
#[inline(always)]
pub fn block(coefficients: &[i16; 64], quantizers: &[u16; 64]) -> [[u8; 8]; 8] {
    let sample = |value: Value| (value.0.wrapping_add(128)).clamp(0, 255) as u8;
    let value = |at: usize| Wrapping(i32::from(coefficients[at])) * Wrapping(i32::from(quantizers[at]));
    if coefficients[1..].iter().fold(0, |any, &c| any | c) == 0 {
        // Both passes together, where there is one value alone.
        return [[sample((value(0) + Wrapping(4)) >> 3); 8]; 8];
    }
    let mut values = [[Wrapping(0); 8]; 8];
    for (y, row) in values.iter_mut().enumerate() {
        for (x, found) in row.iter_mut().enumerate() {
            *found = value(8 * y + x);
        }
    }
    let values = columns(&columns(&values, BITS - BETWEEN), BITS + BETWEEN + 3);
    let mut samples = [[0; 8]; 8];
    for y in 0..8 {
        for x in 0..8 {
            samples[y][x] = sample(values[y][x]);
        }
    }
    samples
}

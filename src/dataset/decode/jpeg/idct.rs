//! The inverse cosine transform of libjpeg's slow integer method, to the bit.

const BITS: u32 = 13;
/// Bits kept beyond whole numbers between the two passes.
const BETWEEN: u32 = 2;

/// Eight values, transformed and rounded off by `shift` bits.
fn pass(v: [i64; 8], shift: u32) -> [i64; 8] {
    // The even part.
    let z1 = (v[2] + v[6]) * 4433;
    let (t2, t3) = (z1 - v[6] * 15137, z1 + v[2] * 6270);
    let (t0, t1) = ((v[0] + v[4]) << BITS, (v[0] - v[4]) << BITS);
    let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
    // The odd part.
    let z5 = (v[7] + v[3] + v[5] + v[1]) * 9633;
    let (z1, z2) = ((v[7] + v[1]) * -7373, (v[5] + v[3]) * -20995);
    let (z3, z4) = ((v[7] + v[3]) * -16069 + z5, (v[5] + v[1]) * -3196 + z5);
    let odd = [v[1] * 12299 + z1 + z4, v[3] * 25172 + z2 + z3, v[5] * 16819 + z2 + z4, v[7] * 2446 + z1 + z3];
    let round = |x: i64| (x + (1 << (shift - 1))) >> shift;
    std::array::from_fn(|i| match i {
        0..4 => round(even[i] + odd[i]),
        _ => round(even[7 - i] - odd[7 - i]),
    })
}

/// Samples of a block: `coefficients` row by row, each multiplied by its place in `quantizers`.
pub fn block(coefficients: &[i16; 64], quantizers: &[u16; 64]) -> [u8; 64] {
    let mut between = [0; 64];
    for x in 0..8 {
        let column = std::array::from_fn(|y| coefficients[8 * y + x] as i64 * quantizers[8 * y + x] as i64);
        for (y, value) in pass(column, BITS - BETWEEN).into_iter().enumerate() {
            between[8 * y + x] = value;
        }
    }
    let mut samples = [0; 64];
    for y in 0..8 {
        let row = std::array::from_fn(|x| between[8 * y + x]);
        for (x, value) in pass(row, BITS + BETWEEN + 3).into_iter().enumerate() {
            samples[8 * y + x] = (value + 128).clamp(0, 255) as u8;
        }
    }
    samples
}

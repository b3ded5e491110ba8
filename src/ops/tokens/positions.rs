//! Fixed 2-D sine-cosine positions (MoCo-v3), and their interpolation to grids of another size.

use crate::ops::Real;

/// The largest wavelength is 2 pi times this value.
const TEMPERATURE: f64 = 10_000.0;
/// The parameter a of cubic convolution, as in torch.
const CUBIC: f64 = -0.75;

/// Positions [1 + grid * grid, width]: zeros for the class token, then [sin y, cos y, sin x, cos x] of each patch in
/// reading order, a quarter of the width each, at frequencies that fall from 1 to nearly 1 / 10000.
pub fn sin_cos<E: Real>(grid: usize, width: usize) -> Vec<E> {
    assert!(width.is_multiple_of(4), "a quarter of the width for each part");
    let quarter = width / 4;
    let frequency = |i: usize| libm::pow(TEMPERATURE, -(i as f64) / quarter as f64);
    let mut positions = vec![E::zero(); (1 + grid * grid) * width];
    for (i, token) in positions.chunks_exact_mut(width).skip(1).enumerate() {
        for (half, at) in token.chunks_exact_mut(2 * quarter).zip([i / grid, i % grid]) {
            for c in 0..quarter {
                let (sin, cos) = libm::sincos(at as f64 * frequency(c));
                half[c] = E::of(sin);
                half[quarter + c] = E::of(cos);
            }
        }
    }
    positions
}

/// Positions [1 + h * w, width] for another grid, by torch's bicubic interpolation without antialiasing, as in DINO (but with the
/// exact ratio of the sizes, which DINO offsets by 0.1 patches). The class token's position does not change.
pub fn interpolate<E: Real>(positions: &[E], grid: usize, [h, w]: [usize; 2], width: usize) -> Vec<E> {
    let (rows, columns) = (filters(grid, h), filters(grid, w));
    let mut out = positions[..width].to_vec();
    out.reserve(h * w * width);
    for row in &rows {
        for column in &columns {
            for c in 0..width {
                let at = |y: usize, x: usize| positions[(1 + y * grid + x) * width + c].as_f64();
                let value = row.iter().map(|(y, wy)| wy * column.iter().map(|(x, wx)| wx * at(*y, *x)).sum::<f64>());
                out.push(E::of(value.sum()));
            }
        }
    }
    out
}

/// For each of `to` cells along an axis, its four source cells out of `from` cells, with their weights. The border cell stands in
/// for cells beyond the border.
fn filters(from: usize, to: usize) -> Vec<[(usize, f64); 4]> {
    let near = |t: f64| ((CUBIC + 2.0) * t - (CUBIC + 3.0)) * t * t + 1.0;
    let far = |t: f64| ((CUBIC * t - 5.0 * CUBIC) * t + 8.0 * CUBIC) * t - 4.0 * CUBIC;
    let of_cell = |i: usize| {
        let source = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let (first, t) = (source.floor(), source - source.floor());
        let weights = [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)];
        std::array::from_fn(|k| {
            let cell = (first + k as f64 - 1.0).clamp(0.0, from as f64 - 1.0);
            (cell as usize, weights[k])
        })
    };
    (0..to).map(of_cell).collect()
}

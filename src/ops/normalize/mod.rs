//! Scales rows to unit length: y = x / max(|x|, 1e-12).

pub mod cuda;

use super::Real;

/// Lower bound of norms, as in torch's `F.normalize`.
const EPS: f64 = 1e-12;

/// Scales each row of x [rows, dim] to unit length, in place.
pub fn normalize_rows<E: Real>(x: &mut [E], dim: usize) {
    for row in x.chunks_exact_mut(dim) {
        let inverse = E::of(1.0 / norm(row));
        for v in row {
            *v *= inverse;
        }
    }
}

/// Length of a row, at least 1e-12.
pub fn norm<E: Real>(row: &[E]) -> f64 {
    row.iter().map(|v| v.as_f64() * v.as_f64()).sum::<f64>().sqrt().max(EPS)
}

/// Adds to gx, the gradient of x, from gy, the gradient of y = x / |x|: gx += (gy - y (y . gy)) / |x|.
pub fn normalize_backward<E: Real>([x, y, gy]: [&[E]; 3], dim: usize, gx: &mut [E]) {
    let rows = gx.chunks_exact_mut(dim).zip(gy.chunks_exact(dim)).zip(x.chunks_exact(dim)).zip(y.chunks_exact(dim));
    for (((gx, gy), x), y) in rows {
        let along = E::of(y.iter().zip(gy).map(|(y, g)| y.as_f64() * g.as_f64()).sum::<f64>());
        let inverse = E::of(1.0 / norm(x));
        for c in 0..dim {
            gx[c] += (gy[c] - y[c] * along) * inverse;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_row_stays_zero() {
        let mut x = [0.0f32, 0.0, 3.0, 4.0];
        normalize_rows(&mut x, 2);
        assert_eq!(x, [0.0, 0.0, 0.6, 0.8]);
    }
}

//! The first two principal components of a set of vectors.

use nalgebra::DMatrix;

/// Coordinates [n] of `rows` [n, dim] on their two principal axes. An axis points towards the vector that is farthest along it,
/// so that its sign is defined.
pub fn project(rows: &[f32], dim: usize) -> Vec<[f64; 2]> {
    if rows.is_empty() {
        return Vec::new();
    }
    let n = rows.len() / dim;
    let mut x = DMatrix::from_row_iterator(n, dim, rows.iter().map(|v| *v as f64));
    for mut column in x.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
    }
    // Both Gram matrices have the same eigenvalues: take the smaller one.
    let columns = if dim <= n {
        let eigen = (x.transpose() * &x).symmetric_eigen();
        largest(&eigen.eigenvalues).map(|axis| axis.map(|i| &x * eigen.eigenvectors.column(i)))
    } else {
        let eigen = (&x * x.transpose()).symmetric_eigen();
        largest(&eigen.eigenvalues)
            .map(|axis| axis.map(|i| eigen.eigenvectors.column(i) * eigen.eigenvalues[i].max(0.0).sqrt()))
    };
    let columns = columns.map(|column| {
        let column: Vec<f64> = column.map_or(vec![0.0; n], |column| column.iter().copied().collect());
        let farthest = column.iter().copied().fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
        let sign = if farthest < 0.0 { -1.0 } else { 1.0 };
        column.into_iter().map(|v| sign * v).collect::<Vec<f64>>()
    });
    (0..n).map(|i| [columns[0][i], columns[1][i]]).collect()
}

/// Indices of the two largest values.
fn largest(values: &nalgebra::DVector<f64>) -> [Option<usize>; 2] {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    [order.first().copied(), order.get(1).copied()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_come_by_their_spread_and_with_one_sign() {
        // The spread along (0, 1, 0) is larger than along (1, 0, 0). The third coordinate is constant.
        let rows = [1.0, 0.0, 5.0, -1.0, 0.0, 5.0, 0.0, -4.0, 5.0, 0.5, 4.5, 5.0];
        let points = project(&rows, 3);
        let farthest =
            |axis: usize| points.iter().map(|p| p[axis]).fold(0.0f64, |a, b| if b.abs() > a.abs() { b } else { a });
        assert!(farthest(0) > 4.0 && farthest(1) > 0.9);
        assert!((points[2][0] - points[3][0]).abs() > 8.0);
        // Fewer vectors than dimensions: the other Gram matrix, the same distances.
        let wide: Vec<f32> = rows.chunks(3).flat_map(|row| row.iter().copied().chain([0.0; 7])).collect();
        for (a, b) in points.iter().zip(project(&wide, 10)) {
            assert!((a[0] - b[0]).abs() < 1e-9 && (a[1] - b[1]).abs() < 1e-9, "{a:?} {b:?}");
        }
    }

    #[test]
    fn one_vector_and_none_have_a_place() {
        assert_eq!(project(&[1.0, 2.0], 2), [[0.0, 0.0]]);
        assert_eq!(project(&[3.0, 4.0], 1), [[0.5, 0.0], [-0.5, 0.0]]);
        assert!(project(&[], 4).is_empty());
    }
}

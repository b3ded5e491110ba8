//! Sums over rows on a GPU. Addresses are of the device; sums are f32.

use crate::ops::cuda::{Arg, Gpu, GpuError, Kind, Scalar, Source, View, one_each};

const KERNELS: &[&str] = &["column_sums", "add_parts"];
const TEXT: &str = include_str!("columns.cu");

/// The kernels, once per storage.
pub static SOURCES: [Source; 2] = [
    Source { name: "columns_f32", defines: "#define HALF 0", text: TEXT, kernels: KERNELS },
    Source { name: "columns_f16", defines: "#define HALF 1", text: TEXT, kernels: KERNELS },
];

/// Blocks that sums over rows are taken by, at most. Fixed, since sums are taken per block.
const BLOCKS: usize = 1024;
/// Fewest rows in a block's part.
const PART_ROWS: usize = 64;

/// Rows per part of a matrix, and the grid of blocks that have 32 columns of a part each.
pub fn parts(rows: usize, columns: usize) -> (usize, [usize; 3]) {
    let across = columns.div_ceil(32);
    let wanted = (BLOCKS / across).max(1).min(rows.div_ceil(PART_ROWS));
    let part_rows = rows.div_ceil(wanted);
    (part_rows, [across, rows.div_ceil(part_rows), 1])
}

/// sums [columns] += the sum of the rows of x [rows, columns].
///
/// # Errors
/// When the device fails.
pub fn add_column_sums(
    gpu: &Gpu,
    scalar: Scalar,
    x: View,
    [rows, columns]: [usize; 2],
    sums: View,
) -> Result<(), GpuError> {
    let (part_rows, grid) = parts(rows, columns);
    let values = gpu.take(Kind::F32, grid[1] * columns)?;
    let x = x.arg(scalar, rows * columns);
    let [rows, width, part_rows] = [rows, columns, part_rows].map(Arg::count);
    let args = [x, rows, width, part_rows, values.arg()];
    // SAFETY: x has as many rows, and `values` a row for each part.
    unsafe { gpu.launch(scalar.source(&SOURCES), "column_sums", grid, &args) }?;
    add_parts(gpu, values.view(), [grid[1], columns], sums.part(0..columns))
}

/// sums += every one of `count` parts, which lie `stride` values apart, in order.
///
/// # Errors
/// When the device fails.
pub fn add_parts(gpu: &Gpu, parts: View, [count, stride]: [usize; 2], sums: View) -> Result<(), GpuError> {
    let columns = sums.len();
    let parts = parts.arg(Kind::F32, count.saturating_sub(1) * stride + columns);
    let [count, stride, width] = [count, stride, columns].map(Arg::count);
    let args = [parts, count, stride, width, sums.arg(Kind::F32, columns)];
    // SAFETY: the last of the parts ends within them.
    unsafe { gpu.launch(&SOURCES[0], "add_parts", one_each(columns), &args) }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::ops::{
        columns,
        cuda::testing::{on_every_gpu, upload},
        golden::assert_close,
    };

    #[test]
    fn sums_agree_with_the_cpus() {
        // Several parts, the last of them short, and columns that fill no block.
        let (rows, width) = (701, 37);
        let x: Vec<f32> = (0..rows * width).map(|i| f16::to_f32(f16::from_f32((i as f32 * 0.37).sin()))).collect();
        let mut expected = vec![0.5; width];
        columns::add_column_sums(&x, 1, &mut expected);
        on_every_gpu(|gpu| {
            [Scalar::F32, Scalar::F16].map(|scalar| {
                let x = upload(gpu, scalar, &x);
                let sums = gpu.upload(&vec![0.5f32; width]).unwrap();
                add_column_sums(gpu, scalar, x.view(), [rows, width], sums.view()).unwrap();
                let found: Vec<f32> = sums.read().unwrap();
                // Sums of 701 values of magnitude 1 in another order.
                assert_close(&format!("{scalar:?}"), &found, &expected, 1e-5);
                found
            })
        });
    }
}

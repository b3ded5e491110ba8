//! Sums over rows on a GPU. Addresses are of the device; sums are f32.

use crate::ops::cuda::{Arg, Gpu, GpuError, Scalar, Source, one_each};

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
    x: u64,
    [rows, columns]: [usize; 2],
    sums: u64,
) -> Result<(), GpuError> {
    let (part_rows, grid) = parts(rows, columns);
    let values = gpu.take(grid[1] * columns * 4)?;
    let [rows, width, part_rows] = [rows, columns, part_rows].map(Arg::count);
    gpu.launch(scalar.source(&SOURCES), "column_sums", grid, &[Arg::At(x), rows, width, part_rows, values.arg()])?;
    add_parts(gpu, values.at(), [grid[1], columns], columns, sums)
}

/// sums [columns] += every one of `count` parts, which lie `stride` values apart, in order.
///
/// # Errors
/// When the device fails.
pub fn add_parts(
    gpu: &Gpu,
    parts: u64,
    [count, stride]: [usize; 2],
    columns: usize,
    sums: u64,
) -> Result<(), GpuError> {
    let [count, stride, width] = [count, stride, columns].map(Arg::count);
    gpu.launch(&SOURCES[0], "add_parts", one_each(columns), &[Arg::At(parts), count, stride, width, Arg::At(sums)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        columns,
        cuda::testing::{from_half, on_every_gpu, to_half},
        golden::assert_close,
    };

    #[test]
    fn sums_agree_with_the_cpus() {
        // Several parts, the last of them short, and columns that fill no block.
        let (rows, width) = (701, 37);
        let x: Vec<f32> = (0..rows * width).map(|i| from_half(to_half((i as f32 * 0.37).sin()))).collect();
        let mut expected = vec![0.5; width];
        columns::add_column_sums(&x, 1, &mut expected);
        let half: Vec<u16> = x.iter().map(|v| to_half(*v)).collect();
        on_every_gpu(|gpu| {
            let (wide, narrow) = (gpu.upload(&x).unwrap(), gpu.upload(&half).unwrap());
            [(Scalar::F32, wide), (Scalar::F16, narrow)].map(|(scalar, x)| {
                let sums = gpu.upload(&vec![0.5f32; width]).unwrap();
                add_column_sums(gpu, scalar, x.at(), [rows, width], sums.at()).unwrap();
                let found: Vec<f32> = sums.read().unwrap();
                // Sums of 701 values of magnitude 1 in another order.
                assert_close(&format!("{scalar:?}"), &found, &expected, 1e-5);
                found
            })
        });
    }
}

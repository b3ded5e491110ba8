//! Sums over rows on a GPU. Matrices are in device memory; sums are f32.

use crate::ops::{
    cuda::{Arg, Gpu, GpuError, Kind, Scalar, Source, View},
    parts::Tiles,
};

const KERNELS: &[&str] = &["column_sums", "add_parts"];
const TEXT: &str = concat!(
    include_str!("../cuda/storage.cuh"),
    include_str!("../cuda/parts.cuh"),
    include_str!("../cuda/rows.cuh"),
    include_str!("columns.cu")
);

/// The kernels, once per storage.
pub static SOURCES: [Source; 3] = [
    Source { name: "columns_f32", defines: "#define STORAGE 0", text: TEXT, kernels: KERNELS },
    Source { name: "columns_f16", defines: "#define STORAGE 1", text: TEXT, kernels: KERNELS },
    Source { name: "columns_bf16", defines: "#define STORAGE 2", text: TEXT, kernels: KERNELS },
];

/// Columns of a block whose threads have one column each, and most threads that share a row.
const WIDTH: usize = 32;
/// Most blocks of a part of the batch. Fixed, because sums are taken per block.
const BLOCKS: usize = 1024;
/// Most pieces of a part: one thread adds them up.
const PIECES: usize = 64;
/// Fewest rows of a piece.
const PIECE_ROWS: usize = 64;

/// Cuts the rows of a batch of `parts` parts into pieces. The pieces of a part depend on its rows and columns alone, never on
/// the number of parts that this process has.
pub fn pieces([rows, columns]: [usize; 2], parts: usize) -> Tiles {
    let (across, part) = (columns.div_ceil(WIDTH), rows / parts);
    let wanted = (BLOCKS / across).clamp(1, PIECES).min(part.div_ceil(PIECE_ROWS)).max(1);
    Tiles::new(rows, parts, part.div_ceil(wanted))
}

/// Returns, as a kernel's argument, the columns of each thread and the number of a block's threads that share a row; and the
/// number of blocks for all columns. A thread has 16 bytes of columns if those divide the columns and all `views` are aligned to
/// as many, else one column.
pub fn shares(scalar: Scalar, columns: usize, views: &[View]) -> (Arg, usize) {
    let width = 16 / scalar.bytes();
    if !columns.is_multiple_of(width) || !views.iter().all(|view| view.is_aligned(16)) {
        return (Arg::ints(&[1, WIDTH]), columns.div_ceil(WIDTH));
    }
    let packs = columns / width;
    let lanes = 1 << packs.trailing_zeros().min(WIDTH.trailing_zeros());
    (Arg::ints(&[width, lanes]), packs / lanes)
}

/// A grid of blocks that have 32 columns each.
pub fn across(columns: usize) -> [usize; 3] {
    [columns.div_ceil(WIDTH), 1, 1]
}

/// sums [columns] += the sum of the rows of x [rows, columns], which are those of a batch of `parts` parts.
///
/// # Errors
/// When the device fails.
pub fn add_column_sums(
    gpu: &Gpu,
    scalar: Scalar,
    x: View,
    [rows, columns]: [usize; 2],
    parts: usize,
    sums: View,
) -> Result<(), GpuError> {
    let (tiles, (shares, across)) = (pieces([rows, columns], parts), shares(scalar, columns, &[x]));
    let values = gpu.take(Kind::F32, tiles.count() * columns)?;
    let x = x.arg(scalar, rows * columns);
    let args = [x, Arg::count(columns), shares, Arg::count(tiles.part), Arg::count(tiles.tile), values.arg()];
    // SAFETY: x has `rows` rows, and `values` has a row for each piece.
    unsafe { gpu.launch(scalar.source(&SOURCES), "column_sums", [across, tiles.count(), 1], &args) }?;
    add_parts(gpu, values.view(), [parts, tiles.per_part()], columns, sums.part(0..columns))
}

/// sums += the tree's sum over `parts` parts, each of which is the sum of its `pieces` pieces of `values`, in order. Pieces are
/// `stride` values apart.
///
/// # Errors
/// When the device fails.
pub fn add_parts(
    gpu: &Gpu,
    values: View,
    [parts, pieces]: [usize; 2],
    stride: usize,
    sums: View,
) -> Result<(), GpuError> {
    assert!(parts.is_power_of_two());
    let columns = sums.len();
    let values = values.arg(Kind::F32, (parts * pieces).saturating_sub(1) * stride + columns);
    let [parts, pieces, stride, width] = [parts, pieces, stride, columns].map(Arg::count);
    let args = [values, parts, pieces, stride, width, sums.arg(Kind::F32, columns)];
    // SAFETY: the last of the pieces ends within the values.
    unsafe { gpu.launch(&SOURCES[0], "add_parts", across(columns), &args) }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::ops::{
        cuda::testing::{on_every_gpu, upload},
        golden::assert_close,
        reductions,
    };

    #[test]
    fn sums_agree_with_the_cpus() {
        // Several pieces, the last one shorter, and columns that fill no block.
        let (rows, width) = (701, 37);
        let x: Vec<f32> = (0..rows * width).map(|i| bf16::to_f32(bf16::from_f32((i as f32 * 0.37).sin()))).collect();
        let mut expected = vec![0.5; width];
        reductions::add_column_sums(&x, 1, &mut expected);
        on_every_gpu(|gpu| {
            [Scalar::F32, Scalar::F16, Scalar::Bf16].map(|scalar| {
                let x = upload(gpu, scalar, &x);
                let sums = gpu.upload(&vec![0.5f32; width]).unwrap();
                add_column_sums(gpu, scalar, x.view(), [rows, width], 1, sums.view()).unwrap();
                let found: Vec<f32> = sums.read().unwrap();
                // Sums of 701 values of magnitude 1 in another order.
                assert_close(&format!("{scalar:?}"), &found, &expected, 1e-5);
                found
            })
        });
    }

    /// With 16 parts of several pieces each, half of the rows sum to a branch of the tree.
    #[test]
    fn halves_of_a_batch_sum_to_branches() {
        let (rows, width, parts) = (16 * 150, 37, 16);
        let x: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.37).sin() * 1e3).collect();
        on_every_gpu(|gpu| {
            let sums = |x: &[f32], parts: usize| -> Vec<f32> {
                let (on_gpu, sums) = (gpu.upload(x).unwrap(), gpu.zeros(Kind::F32, width).unwrap());
                let shape = [x.len() / width, width];
                add_column_sums(gpu, Scalar::F32, on_gpu.view(), shape, parts, sums.view()).unwrap();
                sums.read().unwrap()
            };
            let whole = sums(&x, parts);
            let [left, right] = [&x[..x.len() / 2], &x[x.len() / 2..]].map(|half| sums(half, parts / 2));
            let joined: Vec<f32> = left.iter().zip(&right).map(|(l, r)| l + r).collect();
            assert_eq!(whole, joined);
            whole
        });
    }
}

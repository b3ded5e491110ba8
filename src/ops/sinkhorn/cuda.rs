//! Sinkhorn's normalisation on a GPU. Values are f32, sums f64 in a fixed order.

use super::Sinkhorn;
use crate::ops::cuda::{Arg, Gpu, GpuError, Kind, Source, THREADS, View, one_each};

/// The kernels.
pub static SOURCE: Source = Source {
    name: "sinkhorn",
    defines: "",
    text: include_str!("sinkhorn.cu"),
    kernels: &[
        "sinkhorn_max",
        "sinkhorn_exp",
        "sinkhorn_columns",
        "sinkhorn_factors",
        "sinkhorn_rows",
        "sinkhorn_scale",
    ],
};

/// Rows per piece of a column sum. The number is fixed, so that the order of a sum depends on the number of rows alone.
const ROWS: usize = 64;

/// Writes to `y` the assignment [rows, columns] of the scores `own`. The scores `beside` of other samples, if given, are
/// normalised together with them.
///
/// # Errors
/// When the device fails.
pub fn assign(
    gpu: &Gpu,
    settings: Sinkhorn,
    columns: usize,
    beside: Option<View>,
    own: View,
    y: View,
) -> Result<(), GpuError> {
    let first = beside.map_or(0, View::len);
    let (count, rows) = (first + own.len(), (first + own.len()) / columns);
    assert!(count == rows * columns && own.len().is_multiple_of(columns), "whole rows");
    let pieces = rows.div_ceil(ROWS);
    let q = gpu.take(Kind::F32, count)?;
    let own_q = q.view().part(first..count);
    if let Some(beside) = beside {
        gpu.copy(beside, q.view().part(0..first))?;
    }
    gpu.copy(own, own_q)?;

    // At most as many blocks as a block has threads: each thread of the next kernel's blocks reads the maximum of one block.
    let blocks = count.div_ceil(THREADS).min(THREADS);
    let maxima = gpu.take(Kind::F32, blocks)?;
    // SAFETY: for the launches below, q has `rows` rows of `columns` values, `maxima` has `blocks` values, `sums` is [pieces,
    // columns], `factors` is [columns], and `own` and `y` are as long as `View::arg` checks.
    let launch = |kernel: &str, grid: [usize; 3], args: &[Arg]| unsafe { gpu.launch(&SOURCE, kernel, grid, args) };
    launch("sinkhorn_max", [blocks, 1, 1], &[q.arg(), Arg::count(count), maxima.arg()])?;
    let inverse = Arg::Float((1.0 / settings.epsilon) as f32);
    let args = [q.arg(), Arg::count(count), maxima.arg(), Arg::count(blocks), inverse];
    launch("sinkhorn_exp", one_each(count), &args)?;

    let (sums, factors) = (gpu.take(Kind::F64, pieces * columns)?, gpu.take(Kind::F32, columns)?);
    let [r, c, piece, p] = [rows, columns, ROWS, pieces].map(Arg::count);
    for _ in 0..settings.iterations {
        let across = columns.div_ceil(THREADS);
        launch("sinkhorn_columns", [across, pieces, 1], &[q.arg(), r, c, piece, sums.arg()])?;
        launch("sinkhorn_factors", one_each(columns), &[sums.arg(), p, c, factors.arg()])?;
        launch("sinkhorn_rows", [rows, 1, 1], &[q.arg(), r, c, factors.arg()])?;
    }
    let count = own.len();
    let [own_q, y] = [own_q, y].map(|view| view.arg(Kind::F32, count));
    launch("sinkhorn_scale", one_each(count), &[own_q, Arg::count(count), Arg::Float(rows as f32), y])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        cuda::testing::on_every_gpu,
        golden::{Golden, assert_close},
        normalize::normalize_rows,
        sinkhorn::sinkhorn,
    };

    fn found(gpu: &Gpu, settings: Sinkhorn, columns: usize, beside: &[f32], own: &[f32]) -> Vec<f32> {
        let [beside, own] = [beside, own].map(|values| gpu.upload(values).unwrap());
        let y = own.take_alike().unwrap();
        let some = Some(beside.view()).filter(|view| !view.is_empty());
        assign(gpu, settings, columns, some, own.view(), y.view()).unwrap();
        y.read().unwrap()
    }

    #[test]
    fn assigns_as_the_cpu_does() {
        // With and without rows beside them; several pieces of rows; more columns than a block has threads; one row.
        for (beside, own, columns, epsilon) in
            [(0, 70, 5, 0.05), (130, 30, 300, 0.05), (3, 1, 7, 0.5), (0, 300, 2, 0.2)]
        {
            let scores: Vec<f32> = (0..(beside + own) * columns).map(|i| (i as f32 * 0.7).sin()).collect();
            let settings = Sinkhorn { epsilon, iterations: 3 };
            let mut expected = scores.clone();
            sinkhorn(&mut expected, columns, own, settings);
            let expected = expected.split_off(beside * columns);
            on_every_gpu(|gpu| {
                let found = found(gpu, settings, columns, &scores[..beside * columns], &scores[beside * columns..]);
                // The results differ by the rounding of exp's argument, which goes down to -40.
                assert_close(&format!("{beside} + {own} by {columns}"), &found, &expected, 1e-5);
                found
            });
        }
    }

    /// SwAV's codes with a queue, from scores in f64.
    #[test]
    fn codes_agree_with_the_reference() {
        let golden = Golden::load("loss_swav_queue");
        let unit = |name: &str| {
            let mut rows = golden.get::<f64>(name);
            normalize_rows(&mut rows, 8);
            rows
        };
        let prototypes = golden.get::<f64>("in.protos");
        let scores = |rows: Vec<f64>| -> Vec<f32> {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() as f32;
            rows.chunks(8).flat_map(|row| prototypes.chunks(8).map(|c| dot(row, c)).collect::<Vec<_>>()).collect()
        };
        let (queue, own) = (scores(unit("in.queue")), scores(unit("in.za")));
        let expected = golden.get::<f32>("out.q_a");
        on_every_gpu(|gpu| {
            let found = found(gpu, Sinkhorn { epsilon: 0.05, iterations: 3 }, 5, &queue, &own);
            // The f32 scores are divided by epsilon.
            assert_close("codes", &found, &expected, 1e-5);
            found
        });
    }

    #[test]
    fn large_scores_do_not_overflow() {
        on_every_gpu(|gpu| {
            let found = found(gpu, Sinkhorn { epsilon: 1.0, iterations: 3 }, 2, &[], &[900.0, 0.0, 0.0, 900.0]);
            assert_eq!(found, [1.0, 0.0, 0.0, 1.0]);
            found
        });
    }
}

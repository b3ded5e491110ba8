use dfdx::prelude::*;

use super::*;
use crate::ops::golden::{Golden, assert_close};

/// Samples that are their own labels, of step 0.
fn origin(samples: &[i64]) -> Origin<'_> {
    Origin { samples, labels: samples, step: 0 }
}

fn matrix(rows: &[f32], dim: usize) -> Matrix<f32, Cpu> {
    Cpu::default().tensor_from_vec(rows.to_vec(), (rows.len() / dim, dim))
}

/// A queue on the host, and one on a GPU, emulated or not.
fn on_both(length: usize, dim: usize) -> Vec<Queue<f32>> {
    let gpu = crate::ops::cuda::testing::one_gpu().map(|gpu| {
        let mut queue = Queue::new("queue", length, dim, 0);
        queue.move_to(&gpu).unwrap();
        queue
    });
    [Queue::new("queue", length, dim, 0)].into_iter().chain(gpu).collect()
}

#[test]
fn rows_go_in_first_and_out_first_as_in_the_reference() {
    let golden = Golden::load("queue_fifo");
    for (overflow, name) in [(Overflow::Truncate, "truncate"), (Overflow::Wrap, "wrap")] {
        for mut queue in on_both(8, 4) {
            let initial = golden.get::<f32>("in.bank");
            queue.enqueue(&matrix(&initial, 4), origin(&[0; 8]), Overflow::Wrap).unwrap();
            for (i, batch) in golden.get::<f32>("in.batches").chunks_exact(12).enumerate() {
                queue.enqueue(&matrix(batch, 4), origin(&[1, 2, 3]), overflow).unwrap();
                let (rows, norms) = queue.rows.read().unwrap();
                let rows = rows.chunks(4).zip(&norms);
                let raw: Vec<f32> = rows.flat_map(|(row, norm)| row.iter().map(move |v| v * norm)).collect();
                assert_close("bank", &raw, &golden.get(&format!("out.{name}.bank{i}")), 1e-6);
                assert_eq!(queue.next as i64, golden.integers(&format!("out.{name}.ptr"))[i]);
            }
        }
    }
}

#[test]
fn of_a_batch_longer_than_the_queue_the_last_rows_stay() {
    let run = |from: usize, to: Range<usize>| Run { from, to };
    assert_eq!(runs(3, 8, 7, Overflow::Wrap), [run(0, 7..8), run(1, 0..2)]);
    assert_eq!(runs(3, 8, 7, Overflow::Truncate), [run(0, 7..8)]);
    assert_eq!(runs(10, 4, 1, Overflow::Wrap), [run(6, 3..4), run(7, 0..3)]);
    assert_eq!(runs(4, 4, 0, Overflow::Wrap), [run(0, 0..4)]);
    for mut queue in on_both(2, 1) {
        queue.enqueue(&matrix(&[1.0, 2.0, 3.0, 4.0, 5.0], 1), origin(&[1, 2, 3, 4, 5]), Overflow::Wrap).unwrap();
        assert_eq!(
            (queue.rows.read().unwrap().1, &queue.marks.samples[..], queue.next),
            (vec![5.0, 4.0], &[5, 4][..], 1)
        );
    }
}

#[test]
fn an_images_own_rows_are_left_out_and_too_few_others_are_an_error() {
    for mut queue in on_both(3, 2) {
        let origin = Origin { samples: &[7, 8, 9], labels: &[0, 1, 2], step: 4 };
        queue.enqueue(&matrix(&[1.0, 0.0, 0.8, 0.6, 0.0, 2.0], 2), origin, Overflow::Wrap).unwrap();
        let search = |k, exclude| queue.search(&matrix(&[1.0, 0.0], 2), k, exclude);
        assert_eq!(search(2, None).unwrap().origins.wait().unwrap().labels, [0, 1]);
        let others = search(2, Some(&[7])).unwrap();
        assert_close("vectors", &others.vectors.as_vec(), &[0.8, 0.6, 0.0, 1.0], 1e-6);
        assert_close("norms", &others.norms.as_vec(), &[1.0, 2.0], 1e-6);
        let others = others.origins.wait().unwrap();
        assert_close("similarities", &others.similarities, &[0.8, 0.0], 1e-6);
        assert_eq!((others.samples, others.labels, others.steps), (vec![8, 9], vec![1, 2], vec![4, 4]));
        let error = search(3, Some(&[7])).err().expect("a row is the image's own").to_string();
        assert!(error.contains("holds only 2 of other images") && error.contains("3 are needed"), "{error}");
    }
}

/// What a step diagnoses later is what its search found, though the batch has been enqueued since.
#[test]
fn neighbours_are_told_as_they_were_when_they_were_found() {
    for mut queue in on_both(2, 1) {
        queue.enqueue(&matrix(&[1.0, -1.0], 1), origin(&[4, 5]), Overflow::Wrap).unwrap();
        let near = queue.search(&matrix(&[1.0], 1), 1, None).unwrap();
        queue.enqueue(&matrix(&[-1.0, 1.0], 1), origin(&[6, 7]), Overflow::Wrap).unwrap();
        assert_eq!((near.vectors.as_vec(), near.origins.wait().unwrap().samples), (vec![1.0], vec![4]));
    }
}

#[test]
fn a_queue_is_full_when_every_row_came_from_a_sample() {
    let mut queue = Queue::<f32>::new("queue", 2, 1, 0);
    queue.enqueue(&matrix(&[1.0], 1), origin(&[0]), Overflow::Wrap).unwrap();
    assert!(!queue.is_full());
    queue.enqueue(&matrix(&[1.0], 1), origin(&[1]), Overflow::Wrap).unwrap();
    assert!(queue.is_full());
}

#[test]
fn state_survives_a_round_trip_between_devices() {
    let mut queue = Queue::<f32>::new("queue", 5, 2, 3);
    queue.enqueue(&matrix(&[1.0, 0.0], 2), origin(&[4]), Overflow::Wrap).unwrap();
    for mut other in on_both(5, 2) {
        other.restore(&queue.state().unwrap()).unwrap();
        assert_eq!(other.state().unwrap(), queue.state().unwrap());
        assert_eq!(other.copies, queue.copies);
    }
}

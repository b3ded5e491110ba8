use dfdx::prelude::*;

use super::*;
use crate::{
    backend::{Gpu, Host},
    ops::{
        conv2d::cuda::Math,
        cuda::testing::one_gpu,
        golden::{Golden, assert_close},
    },
};

/// The origin of rows of step 0. The label of a sample is its index.
fn origin(samples: &[i64]) -> Origin<'_> {
    Origin { samples, labels: samples, step: 0 }
}

fn matrix<B: Backend<Real = f32>>(on: &B, rows: &[f32], dim: usize) -> Rows<B> {
    on.rows(&on.buffer(rows.to_vec()).unwrap(), (rows.len() / dim, dim)).unwrap()
}

fn queue<B: Backend<Real = f32>>(on: &B, length: usize, dim: usize) -> Queue<B> {
    Queue::new(on, "queue", [length, dim], 0, MatmulPrecision::Full).unwrap()
}

/// Runs a test on the host, and on a GPU (emulated or real).
macro_rules! on_both {
    ($test:ident) => {
        $test(&Host::<f32>::default());
        if let Some(gpu) = one_gpu() {
            $test(&Gpu::new(gpu, Cpu::default(), Math::F32));
        }
    };
}

fn first_in_first_out<B: Backend<Real = f32>>(on: &B) {
    let golden = Golden::load("queue_fifo");
    for (overflow, name) in [(Overflow::Truncate, "truncate"), (Overflow::Wrap, "wrap")] {
        let mut queue = queue(on, 8, 4);
        let initial = golden.get::<f32>("in.bank");
        queue.enqueue(on, &matrix(on, &initial, 4), origin(&[0; 8]), Overflow::Wrap).unwrap();
        for (i, batch) in golden.get::<f32>("in.batches").chunks_exact(12).enumerate() {
            queue.enqueue(on, &matrix(on, batch, 4), origin(&[1, 2, 3]), overflow).unwrap();
            let [rows, norms] = on.read_bank(&queue.bank).unwrap();
            let rows = rows.chunks(4).zip(&norms);
            let raw: Vec<f32> = rows.flat_map(|(row, norm)| row.iter().map(move |v| v * norm)).collect();
            assert_close("bank", &raw, &golden.get(&format!("out.{name}.bank{i}")), 1e-6);
            assert_eq!(queue.next as i64, golden.integers(&format!("out.{name}.ptr"))[i]);
        }
    }
}

#[test]
fn rows_go_in_first_and_out_first_as_in_the_reference() {
    on_both!(first_in_first_out);
}

fn longer_than_the_queue<B: Backend<Real = f32>>(on: &B) {
    let mut queue = queue(on, 2, 1);
    let rows = matrix(on, &[1.0, 2.0, 3.0, 4.0, 5.0], 1);
    queue.enqueue(on, &rows, origin(&[1, 2, 3, 4, 5]), Overflow::Wrap).unwrap();
    let [_, norms] = on.read_bank(&queue.bank).unwrap();
    assert_eq!((norms, &queue.marks.samples[..], queue.next), (vec![5.0, 4.0], &[5, 4][..], 1));
}

#[test]
fn of_a_batch_longer_than_the_queue_the_last_rows_stay() {
    let run = |from: usize, to: Range<usize>| Run { from, to };
    assert_eq!(runs(3, 8, 7, Overflow::Wrap), [run(0, 7..8), run(1, 0..2)]);
    assert_eq!(runs(3, 8, 7, Overflow::Truncate), [run(0, 7..8)]);
    assert_eq!(runs(10, 4, 1, Overflow::Wrap), [run(6, 3..4), run(7, 0..3)]);
    assert_eq!(runs(4, 4, 0, Overflow::Wrap), [run(0, 0..4)]);
    on_both!(longer_than_the_queue);
}

fn own_rows<B: Backend<Real = f32>>(on: &B) {
    let mut queue = queue(on, 3, 2);
    let origin = Origin { samples: &[7, 8, 9], labels: &[0, 1, 2], step: 4 };
    let rows = matrix(on, &[1.0, 0.0, 0.8, 0.6, 0.0, 2.0], 2);
    queue.enqueue(on, &rows, origin, Overflow::Wrap).unwrap();
    let search = |k, exclude| queue.search(on, &matrix(on, &[1.0, 0.0], 2), k, exclude);
    assert_eq!(search(2, None).unwrap().origins.wait().unwrap().labels, [0, 1]);
    let others = search(2, Some(&[7])).unwrap();
    assert_close("vectors", &others.vectors.tensor().as_vec(), &[0.8, 0.6, 0.0, 1.0], 1e-6);
    assert_close("norms", &others.norms.tensor().as_vec(), &[1.0, 2.0], 1e-6);
    let others = others.origins.wait().unwrap();
    assert_close("similarities", &others.similarities, &[0.8, 0.0], 1e-6);
    assert_eq!((others.samples, others.labels, others.steps), (vec![8, 9], vec![1, 2], vec![4, 4]));
    let error = search(3, Some(&[7])).err().expect("a row is the image's own").to_string();
    assert!(error.contains("only 2 are of other images") && error.contains("3 are needed"), "{error}");
}

#[test]
fn an_images_own_rows_are_left_out_and_too_few_others_are_an_error() {
    on_both!(own_rows);
}

fn as_they_were<B: Backend<Real = f32>>(on: &B) {
    let mut queue = queue(on, 2, 1);
    queue.enqueue(on, &matrix(on, &[1.0, -1.0], 1), origin(&[4, 5]), Overflow::Wrap).unwrap();
    let near = queue.search(on, &matrix(on, &[1.0], 1), 1, None).unwrap();
    queue.enqueue(on, &matrix(on, &[-1.0, 1.0], 1), origin(&[6, 7]), Overflow::Wrap).unwrap();
    assert_eq!((near.vectors.tensor().as_vec(), near.origins.wait().unwrap().samples), (vec![1.0], vec![4]));
}

/// The diagnosis of a step reports the neighbours that its search found, even if rows were enqueued before it is read.
#[test]
fn neighbours_are_told_as_they_were_when_they_were_found() {
    on_both!(as_they_were);
}

#[test]
fn a_queue_is_full_when_every_row_came_from_a_sample() {
    let on = Host::default();
    let mut queue = queue(&on, 2, 1);
    queue.enqueue(&on, &matrix(&on, &[1.0], 1), origin(&[0]), Overflow::Wrap).unwrap();
    assert!(!queue.is_full());
    queue.enqueue(&on, &matrix(&on, &[1.0], 1), origin(&[1]), Overflow::Wrap).unwrap();
    assert!(queue.is_full());
}

fn goes_on<B: Backend<Real = f32>>(on: &B) {
    let host = Host::default();
    let mut queue = queue(&host, 5, 2);
    queue.enqueue(&host, &matrix(&host, &[1.0, 0.0], 2), origin(&[4]), Overflow::Wrap).unwrap();
    let Ok(state) = queue.state(&host);
    let mut other = self::queue(on, 5, 2);
    other.restore(on, &state).unwrap();
    assert_eq!(other.state(on).unwrap(), state);
    assert_eq!(other.copies, queue.copies);
}

#[test]
fn state_survives_a_round_trip_between_devices() {
    on_both!(goes_on);
}

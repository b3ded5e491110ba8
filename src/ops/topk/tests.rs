use std::sync::atomic::{AtomicUsize, Ordering};

use rand::RngExt;

use super::*;
use crate::ops::{
    golden::Golden,
    random::{Purpose, stream},
};

fn random(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = stream(seed, Purpose::Queue, 0, 0, 0);
    (0..n).map(|_| rng.random::<f64>() - 0.5).collect()
}

/// All dot products, fully sorted.
fn naive(queries: &[f64], bank: &[f64], dim: usize, k: usize, out: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    let mut indices = Vec::new();
    for (q, query) in queries.chunks(dim).enumerate() {
        let mut rows: Vec<(f64, usize)> = bank
            .chunks(dim)
            .enumerate()
            .filter(|&(r, _)| !out(q, r))
            .map(|(r, row)| (query.iter().zip(row).map(|(a, b)| a * b).sum(), r))
            .collect();
        rows.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
        indices.extend(rows[..k].iter().map(|row| row.1));
    }
    indices
}

#[test]
fn equals_a_full_sort_across_block_boundaries_and_with_exclusions() {
    let dim = 5;
    for (n, m, k) in [(1, 1, 1), (3, 70, 7), (QUERY_BLOCK + 3, 2 * BANK_BLOCK + 17, 30), (2, BANK_BLOCK, BANK_BLOCK)] {
        let (queries, bank) = (random(n * dim, 1), random(m * dim, 2));
        assert_eq!(
            top_k(&queries, &bank, dim, k, MatmulPrecision::Full, |_, _| false).indices,
            naive(&queries, &bank, dim, k, |_, _| false)
        );
    }
    let (queries, bank) = (random(9 * dim, 3), random(3 * BANK_BLOCK * dim, 4));
    let out = |q: usize, r: usize| (q + r).is_multiple_of(3);
    let found = top_k(&queries, &bank, dim, 40, MatmulPrecision::Full, out);
    assert_eq!(found.indices, naive(&queries, &bank, dim, 40, out));
    assert!(found.scores.chunks(40).all(|row| row.is_sorted_by(|a, b| a >= b)));
}

#[test]
fn equal_scores_go_to_the_lower_row() {
    // Enough rows that several threads exchange their floors.
    let (m, k) = (12 * EXCHANGE * BANK_BLOCK, 100);
    // Small integers: every dot product is exact and many coincide.
    let bank: Vec<f64> = random(m * 2, 5).iter().map(|v| (v * 6.0).round()).collect();
    let queries = [1.0, 2.0, -1.0, 0.0, 0.0, 0.0];
    let expected = naive(&queries, &bank, 2, k, |_, _| false);
    for threads in 1..=4 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let found = pool.install(|| top_k(&queries, &bank, 2, k, MatmulPrecision::Full, |_, _| false));
        assert_eq!(found.indices, expected);
        assert_eq!(found.indices[2 * k..], (0..k).collect::<Vec<_>>());
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let dim = 32;
    let cast = |v: Vec<f64>| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let (queries, bank) = (cast(random(300 * dim, 6)), cast(random(5000 * dim, 7)));
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| top_k(&queries, &bank, dim, 25, MatmulPrecision::Full, |q, r| r == q))
    };
    let one = with(1);
    for threads in [2, 3, 7] {
        let many = with(threads);
        assert_eq!(one.indices, many.indices);
        assert!(one.scores.iter().zip(&many.scores).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn the_worst_off_query_sets_k_and_nan_comes_last() {
    let bank = [1.0, f64::NAN, 3.0, 2.0];
    assert_eq!(top_k(&[1.0], &bank, 1, 9, MatmulPrecision::Full, |_, _| false).indices, [2, 3, 0, 1]);
    assert_eq!(top_k(&[1.0], &bank, 1, 1, MatmulPrecision::Full, |_, _| false).indices, [2]);
    let found = top_k(&[1.0, -1.0], &bank, 1, 3, MatmulPrecision::Full, |q, r| q == 1 && r < 2);
    assert_eq!((found.k, found.indices), (2, vec![2, 3, 3, 2]));
    assert_eq!(top_k(&[1.0], &bank, 1, 3, MatmulPrecision::Full, |_, _| true).k, 0);
    assert_eq!(top_k::<f64>(&[1.0], &[], 1, 3, MatmulPrecision::Full, |_, _| false).k, 0);
}

#[test]
fn exclusion_is_asked_for_few_rows() {
    let (n, m, dim, k) = (4, 20_000, 16, 10);
    let (queries, bank) = (random(n * dim, 8), random(m * dim, 9));
    let asked = AtomicUsize::new(0);
    top_k(&queries, &bank, dim, k, MatmulPrecision::Full, |_, _| {
        asked.fetch_add(1, Ordering::Relaxed);
        false
    });
    assert!(asked.into_inner() < n * m / 4);
}

#[test]
fn golden_topk() {
    for (case, k) in [("topk_small", 3), ("topk_large", 30)] {
        let golden = Golden::load(case);
        let n = golden.shape("in.x")[1];
        // Dot products with unit vectors are the entries themselves.
        let unit: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
        let found = top_k(&golden.get("in.x"), &unit, n, k, MatmulPrecision::Full, |_, _| false);
        assert_eq!(found.indices.iter().map(|&i| i as i64).collect::<Vec<_>>(), golden.integers("out.idx"));
        assert_eq!(found.scores, golden.get::<f64>("out.values"));
    }
}

/// With bf16 the search finds the k best scores of the rounded factors. These scores differ from the exact ones by the rounding
/// of the factors: 0.24 % of each term, with one term per dimension.
#[test]
fn bf16_finds_the_best_of_its_own_scores() {
    let (n, m, dim, k) = (QUERY_BLOCK + 20, 3 * BANK_BLOCK + 5, 64, 20);
    let narrow = |v: Vec<f64>| v.iter().map(|v| half::bf16::from_f32(*v as f32).to_f64()).collect::<Vec<_>>();
    let cast = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<_>>();
    let (queries, bank) = (random(n * dim, 10), random(m * dim, 11));
    let found = top_k(&queries, &bank, dim, k, MatmulPrecision::Bf16, |_, _| false);
    assert_eq!(found.indices, naive(&narrow(queries.clone()), &narrow(bank.clone()), dim, k, |_, _| false));
    let native = top_k(&cast(&queries), &cast(&bank), dim, k, MatmulPrecision::Bf16, |_, _| false);
    let exact = top_k(&cast(&queries), &cast(&bank), dim, k, MatmulPrecision::Full, |_, _| false);
    for ((score, native), exact) in found.scores.iter().zip(&native.scores).zip(&exact.scores) {
        assert!((score - f64::from(*native)).abs() < 1e-5, "{score} and {native}");
        assert!((native - exact).abs() < 0.03 && native.is_finite(), "{native} and {exact}");
    }
    assert_ne!(native.scores, exact.scores);
}

#[test]
fn a_bank_whose_rows_were_overwritten_finds_what_the_rows_themselves_do() {
    for (dim, matmul) in [(5, MatmulPrecision::Bf16), (32, MatmulPrecision::Bf16), (32, MatmulPrecision::Full)] {
        let (n, m, k) = (33, 2 * BANK_BLOCK + 7, 9);
        let cast = |v: Vec<f64>| v.iter().map(|v| *v as f32).collect::<Vec<_>>();
        let (queries, mut rows) = (cast(random(n * dim, 20)), cast(random(m * dim, 21)));
        let mut bank = Bank::new(rows.clone(), dim, MatmulPrecision::Full);
        bank.set_matmul_precision(matmul);
        for (first, seed) in [(0, 22), (BANK_BLOCK - 2, 23), (m - 3, 24)] {
            let new = cast(random(3 * dim, seed));
            rows[first * dim..][..new.len()].copy_from_slice(&new);
            bank.write(first, &new);
        }
        assert_eq!(bank.rows(), rows);
        let out = |query: usize, row: usize| query == row;
        assert_eq!(bank.top_k(&queries, k, out), top_k(&queries, &rows, dim, k, matmul, out));
    }
}

//! Measures the cases of `snclr bench` with divan, on all processors, augmentation included.
//!
//! Run it by `cargo bench --bench cases [-- CASE]`, where CASE is a part of a name.

use divan::{Bencher, counter::ItemsCount};
use snclr::bench::{Case, Options};

fn main() {
    divan::main();
}

/// Measures one case. There are few samples of one repetition each, since some repetitions take seconds. Items are images.
#[divan::bench(args = Case::ALL, sample_count = 10, sample_size = 1)]
fn case(bencher: Bencher, case: Case) {
    let mut workload = case.prepare(&Options::default()).expect("the case as it is");
    workload.once().expect("a repetition");
    let bencher = match workload.images {
        Some(images) => bencher.counter(ItemsCount::new(images)),
        None => bencher,
    };
    bencher.bench_local(|| workload.once().expect("a repetition"));
}

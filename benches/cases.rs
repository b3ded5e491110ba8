//! The cases of `snclr bench` under divan, on all processors, augmentation too: `cargo bench --bench cases [-- CASE]`, where
//! CASE is a part of a name.

use divan::{Bencher, counter::ItemsCount};
use snclr::bench::{Case, Options};

fn main() {
    divan::main();
}

/// A repetition of some cases takes seconds: few samples of one each. Items are images.
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

//! The cases of `snclr bench` under criterion, which keeps what it measured and says what has changed since:
//! `cargo bench --bench cases [-- CASE]`, where CASE is a part of a name.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use snclr::bench::{Case, Options};

/// The fewest that criterion takes: a repetition of some cases takes seconds.
const SAMPLES: usize = 10;

fn cases(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cases");
    group.sampling_mode(SamplingMode::Flat).sample_size(SAMPLES);
    group.warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_secs(5));
    for case in Case::ALL {
        // What a case needs is made when it is measured and goes afterwards: it would not all fit into memory.
        group.bench_function(case.name(), |bencher| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(case.threads()).build().expect("threads");
            let mut workload = pool.install(|| case.prepare(&Options::default())).expect("the case as it is");
            bencher.iter(|| pool.install(|| workload.once()).expect("a repetition"));
        });
    }
    group.finish();
}

criterion_group!(benches, cases);
criterion_main!(benches);

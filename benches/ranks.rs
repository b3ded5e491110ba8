//! Measures the cost of dividing a training among ranks, on one machine: `cargo bench --features mpi --bench ranks`.
//! `SNCLR_MPIRUN` names another launcher than `mpirun`.
//!
//! First it sums as many values as ResNet-50 has parameters, in the fixed order of the tree, and compares the time with that of
//! `MPI_Allreduce` on the same ranks. Then it compares steps of the case `small` on ranks of one thread each with one process of
//! as many threads. The measurements of both sides alternate. Ratios are of medians, and are below 1 if this project's sum, or
//! the ranks, are slower.

#[path = "../tests/common/mpirun.rs"]
mod mpirun;

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use mpi::{collective::SystemOperation, topology::SimpleCommunicator, traits::CommunicatorCollectives};
use snclr_engine::{
    bench::{Case, Options, measure},
    ranks::{self, Ranks},
    stage::Silent,
};

/// Number of parameters of ResNet-50 without its classifier.
const VALUES: usize = 23_508_032;
const ROUNDS: usize = 9;
/// Measured steps per round.
const STEPS: usize = 10;
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<()> {
    let work = env::args().nth(1).unwrap_or_default();
    let ranks = ranks::open(LIMIT)?.unwrap_or_default();
    let figures = match work.as_str() {
        "sum" => sums(&ranks),
        "step" => {
            ranks.clone().choose();
            vec![measure(Case::Small, &Options::default(), STEPS, &Silent)?.milliseconds.median]
        }
        _ => return compare(),
    };
    if ranks.is_first() {
        println!("{}", serde_json::to_string(&figures)?);
    }
    ranks.end();
    Ok(())
}

/// Milliseconds of the sum in a fixed order, and of MPI's sum.
fn sums(ranks: &Ranks) -> Vec<f64> {
    let values: Vec<f32> = (0..VALUES).map(|i| ((i + ranks.rank()) % 1009) as f32 * 0.37).collect();
    let (mut ours, mut theirs) = (values.clone(), values.clone());
    let world = SimpleCommunicator::world();
    let milliseconds = |work: &mut dyn FnMut()| {
        ranks.any([false]); // all begin together
        let begun = Instant::now();
        work();
        ranks.any([false]);
        begun.elapsed().as_secs_f64() * 1e3
    };
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        ours.copy_from_slice(&values);
        times[0].push(milliseconds(&mut || ranks.sum(&mut ours)));
        times[1]
            .push(milliseconds(&mut || world.all_reduce_into(&values[..], &mut theirs[..], SystemOperation::sum())));
    }
    times.map(median).to_vec()
}

fn compare() -> anyhow::Result<()> {
    for size in [2, 4] {
        let figures = measured("sum", Some(size), 1)?;
        let (ours, theirs) = (figures[0], figures[1]);
        println!(
            "sum of {VALUES} f32, {size} ranks: {ours:.1} ms in a fixed order, {theirs:.1} ms by MPI_Allreduce, ratio {:.2}",
            theirs / ours
        );
    }
    let processors = std::thread::available_parallelism()?.get();
    let size = 1 << processors.ilog2();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        times[0].push(measured("step", None, size)?[0]);
        times[1].push(measured("step", Some(size), 1)?[0]);
    }
    let [alone, among] = times.map(median);
    println!(
        "step of the case small: {alone:.1} ms in one process of {size} threads, {among:.1} ms on {size} ranks of one, ratio {:.2}",
        alone / among
    );
    Ok(())
}

/// Runs this program on `ranks` ranks, or without a launcher, and returns the figures that it prints.
fn measured(work: &str, ranks: Option<usize>, threads: usize) -> anyhow::Result<Vec<f64>> {
    let program = env::current_exe()?;
    let mut command = match ranks {
        Some(ranks) => mpirun::launcher(ranks).context("no MPI")?,
        None => Command::new(&program),
    };
    if ranks.is_some() {
        command.arg(&program);
    }
    let output = command.arg(work).env("RAYON_NUM_THREADS", threads.to_string()).output()?;
    ensure!(output.status.success(), "{work}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("reading what a rank has measured")
}

/// The median of at least one value.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

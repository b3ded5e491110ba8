//! `snclr run` as one of several ranks. The first one does what a process alone would do; the others follow it.

use std::process::ExitCode;

use sha2::{Digest, Sha256};

use super::{
    Global, failure,
    run::{Args, run_first},
};
use crate::{
    artifact::Store,
    ops::product,
    ranks::Ranks,
    run::follow,
    spec::{self, Points},
    stage::Interrupt,
    train::{Device, Precision},
};

/// An error that has been told, on this rank or by the first one. Holds the exit code.
#[derive(Debug, thiserror::Error)]
#[error("what is wrong has been told")]
pub struct Told(pub u8);

/// What many ranks cannot do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnfitRun {
    #[error("ranks work on one point at a time\n  help: leave out --jobs, or start one process")]
    Jobs,
    #[error("many ranks train on CPUs alone so far\n  help: leave out --device, or start one process")]
    Device,
}

/// Runs the command on one of `ranks`.
///
/// # Errors
/// As of [`super::run::run`]. What fails on one rank alone ends all of them at once.
pub fn run(ranks: Ranks, args: &Args, interrupt: &Interrupt, global: &Global) -> anyhow::Result<ExitCode> {
    // A launcher ends all ranks as soon as one has failed. So the first one tells what is wrong before any of them ends.
    let points = match start(&ranks, args) {
        Ok(points) => points,
        Err(error) => {
            let code = if ranks.is_first() { tell(&error) } else { failure::code(&error) };
            ranks.end();
            return Err(Told(code).into());
        }
    };
    ranks.clone().choose();
    if !ranks.is_first() {
        let followed = follow::follow(&Store::open(&global.runs), interrupt);
        let code = followed.unwrap_or_else(|error| ranks.abort(tell(&error)));
        ranks.end();
        return Ok(ExitCode::from(code));
    }
    let code = match run_first(args, points, interrupt, global) {
        Ok(code) => (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap_or(1),
        Err(error) => tell(&error),
    };
    if !follow::dismiss(code)? {
        ranks.abort(code);
    }
    ranks.end();
    Ok(ExitCode::from(code))
}

/// Tells what is wrong; gives the exit code.
fn tell(error: &anyhow::Error) -> u8 {
    failure::report(error);
    failure::code(error)
}

/// Reads the spec, and checks that the ranks fit together and to it: all come to the same points or the same error.
fn start(ranks: &Ranks, args: &Args) -> anyhow::Result<Points> {
    // Notes are told once, by the first rank.
    let points = if ranks.is_first() {
        args.changes.load(&args.spec)
    } else {
        spec::load_points(&args.spec, &args.changes.of_spec())
    };
    let digest = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
    let program = std::env::current_exe().and_then(std::fs::read).map_or([0; 32], |bytes| digest(&bytes));
    let text =
        |points: &Points| points.points.iter().map(|point| serde_yaml::to_string(&point.loaded.experiment)).collect();
    let described: Result<String, _> = points.as_ref().map_or_else(|error| Ok(error.to_string()), text);
    let in_bf16 = |points: &Points| points.points.iter().any(|p| p.loaded.experiment.precision == Precision::Bf16);
    let unit = points.as_ref().is_ok_and(in_bf16).then(product::bf16_unit).flatten();
    ranks.agree(&[
        ("their program", program),
        ("their spec", digest(described?.as_bytes())),
        ("what multiplies bf16", digest(unit.unwrap_or_default().as_bytes())),
    ])?;
    let points = points?;
    for point in &points.points {
        ranks.fit(point.loaded.experiment.batch_size)?;
    }
    match () {
        () if args.jobs > 1 => Err(UnfitRun::Jobs.into()),
        () if Device::chosen() != Device::Cpu => Err(UnfitRun::Device.into()),
        () => Ok(points),
    }
}

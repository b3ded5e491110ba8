//! Runs `snclr run` on one of several ranks. The first rank does what a single process would do; the others follow it.

use std::process::ExitCode;

use super::{
    Global,
    failure::{self, AlreadyReported},
    run::Args,
};
use crate::{
    artifact::{Store, hash},
    ranks::{self, Ranks},
    run::{
        follow::{self, UnfitRun},
        watch,
    },
    spec::Points,
    stage::Interrupt,
    train::{Device, Precision},
};

/// Runs the command, as one rank of several if a launcher started them.
///
/// # Errors
/// Those of [`super::run::run`]; when the variables of a launcher are incomplete, or the ranks cannot connect.
pub fn run(args: &Args, global: &Global) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::default();
    watch(&interrupt)?;
    match ranks::open(args.collective_timeout)? {
        None => {
            global.device.choose()?;
            super::run::run(args, args.specs.load()?, &interrupt, global)
        }
        Some(ranks) => among(ranks, args, &interrupt, global),
    }
}

/// Runs the command on one of `ranks`. A failure on any rank ends all of them.
fn among(ranks: Ranks, args: &Args, interrupt: &Interrupt, global: &Global) -> anyhow::Result<ExitCode> {
    // A launcher kills all ranks as soon as one fails. So the first rank prints the error before any rank ends.
    let points = match start(&ranks, args, global.device) {
        Ok(points) => points,
        Err(error) => {
            let code = if ranks.is_first() { tell(&error) } else { failure::code(&error) };
            ranks.end();
            return Err(AlreadyReported(code).into());
        }
    };
    ranks.clone().choose();
    if !ranks.is_first() {
        let followed = follow::follow(&Store::open(&global.runs), interrupt);
        let code = followed.unwrap_or_else(|error| ranks.abort(tell(&error)));
        ranks.end();
        return Ok(ExitCode::from(code));
    }
    let code = match super::run::run(args, points, interrupt, global) {
        Ok(code) => (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).unwrap_or(1),
        Err(error) => tell(&error),
    };
    if !follow::dismiss(code)? {
        ranks.abort(code);
    }
    ranks.end();
    Ok(ExitCode::from(code))
}

/// Prints the error, and returns the exit code.
fn tell(error: &anyhow::Error) -> u8 {
    failure::report(error);
    failure::code(error)
}

/// Reads the spec, and checks that the ranks agree with each other and with it. All get the same points, or the same error.
fn start(ranks: &Ranks, args: &Args, device: Device) -> anyhow::Result<Points> {
    // Only the first rank prints notes.
    let points = if ranks.is_first() { args.specs.load() } else { args.specs.read() };
    // If the program file cannot be read, the hash of no bytes takes its place below.
    let program = std::env::current_exe().and_then(|path| hash::file(&path, |_| ()));
    let text =
        |points: &Points| points.points.iter().map(|point| serde_yaml::to_string(&point.loaded.experiment)).collect();
    let described: Result<String, _> = points.as_ref().map_or_else(|error| Ok(error.to_string()), text);
    let in_bf16 = |points: &Points| points.points.iter().any(|p| p.loaded.experiment.precision == Precision::Bf16);
    let unit = points.as_ref().is_ok_and(in_bf16).then(|| device.bf16_unit()).flatten();
    let chosen = device.choose();
    // Ranks may use different GPUs, but all must use the same kind of device. A rank without its GPU says why.
    let kind = chosen.as_ref().map_or_else(|error| error.why.clone(), |()| device.describe());
    ranks.agree(&[
        ("their program", program.unwrap_or_else(|_| hash::bytes(&[]))),
        ("their spec", hash::bytes(described?.as_bytes())),
        ("their devices", hash::bytes(kind.as_bytes())),
        ("what multiplies bf16", hash::bytes(unit.unwrap_or_default().as_bytes())),
    ])?;
    chosen?;
    let points = points?;
    for point in &points.points {
        ranks.fit(point.loaded.experiment.batch_size)?;
    }
    if args.jobs > 1 { Err(UnfitRun::Jobs.into()) } else { Ok(points) }
}

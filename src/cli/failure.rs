//! Prints the error of a command that failed, and chooses its exit code.

use std::{io, io::Write, process::ExitCode};

use super::cache::CacheError;
use crate::{
    artifact::UnfitFolder,
    bench::Unfit,
    cluster::kubernetes::KubernetesError,
    ops::simd::UnitError,
    ranks::{LaunchError, Mismatch, launcher},
    run::{NotYet, follow::UnfitRun},
    spec::SpecErrors,
    stage::Stopped,
    train::DeviceError,
};

/// An error that this rank or the first one has already printed. Holds the exit code.
#[derive(Debug, thiserror::Error)]
#[error("the error has been printed")]
pub struct AlreadyReported(pub u8);

/// Prints `error: …` with its causes to stderr, and returns the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let shared = error.downcast_ref().is_some_and(LaunchError::is_shared);
    if error.downcast_ref::<AlreadyReported>().is_some() || shared && launcher::is_other() {
        return ExitCode::from(code(error));
    }
    if is_broken_pipe(error) {
        // The reader of a pipe has closed it, as `head` does.
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "{}", text(error));
    ExitCode::from(code(error))
}

/// The exit code for `error`.
pub fn code(error: &anyhow::Error) -> u8 {
    if let Some(AlreadyReported(code)) = error.downcast_ref() {
        return *code;
    }
    match error.downcast_ref::<Stopped>() {
        Some(Stopped::Interrupted { .. } | Stopped::InterruptedAt { .. }) => 130,
        Some(Stopped::Diverged(_)) => 4,
        None if error.downcast_ref::<SpecErrors>().is_some() => 2,
        None if error.downcast_ref::<KubernetesError>().is_some() => 2,
        None if matches!(error.downcast_ref(), Some(NotYet::Input { .. })) => 3,
        None if matches!(error.downcast_ref(), Some(NotYet::Diverged { .. })) => 4,
        None if error.downcast_ref::<NotYet>().is_some() => 2,
        // A missing device is a usage error, like an unknown one.
        None if error.downcast_ref::<DeviceError>().is_some() => 2,
        None if error.downcast_ref::<UnitError>().is_some() => 2,
        None if error.downcast_ref::<Unfit>().is_some() => 2,
        None if error.downcast_ref::<CacheError>().is_some() => 2,
        None if error.downcast_ref::<UnfitFolder>().is_some() => 2,
        None if error.downcast_ref::<LaunchError>().is_some() => 2,
        None if error.downcast_ref::<Mismatch>().is_some() => 2,
        None if error.downcast_ref::<UnfitRun>().is_some() => 2,
        None => 1,
    }
}

/// The text that is printed for `error`.
pub fn text(error: &anyhow::Error) -> String {
    if let Some(errors) = error.downcast_ref::<SpecErrors>() {
        // The text of each of these errors starts with `error:` and its place.
        return errors.to_string();
    }
    if let Some(stopped @ (Stopped::Interrupted { .. } | Stopped::InterruptedAt { .. })) = error.downcast_ref() {
        return stopped.to_string();
    }
    let mut causes = error.chain().map(ToString::to_string);
    let mut text = format!("error: {}", causes.next().unwrap_or_default());
    let mut last = String::new();
    for cause in causes {
        // Some libraries repeat the cause in their message.
        if !text.ends_with(&cause) && cause != last {
            text += &format!("\n  because: {cause}");
        }
        last = cause;
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(pipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn fail(error: impl Into<anyhow::Error>) -> anyhow::Error {
        let result: anyhow::Result<()> = Err(error.into());
        result.context("stage pretrain").unwrap_err()
    }

    #[test]
    fn exit_codes_see_through_context() {
        let interrupted = || Stopped::Interrupted { stage: "pretrain", step: 7 };
        for (error, expected) in [
            (fail(interrupted()), 130),
            (fail(Stopped::InterruptedAt { stage: "knn" }), 130),
            (fail(Stopped::Diverged("loss is NaN".into())), 4),
            (fail(io::Error::other("disk")), 1),
        ] {
            assert_eq!(code(&error), expected);
        }
        assert_eq!(
            text(&fail(interrupted())),
            "interrupted in pretrain after step 7; run the same command again to go on from there"
        );
    }

    #[test]
    fn causes_follow_the_error_once_each() {
        let error = fail(anyhow::anyhow!("no space left").context("writing x.parquet"));
        assert_eq!(text(&error), "error: stage pretrain\n  because: writing x.parquet\n  because: no space left");
    }
}

//! `snclr verify`: re-hashes the store; `snclr verify resume` proves that killed runs resume to the same bits.

mod resume;

use std::{io::Write, process::ExitCode};

use serde_json::json;

use super::{
    Global,
    show::{self, count},
};
use crate::{
    artifact::{Inspected, Store},
    run::Reporter,
    stage::Progress,
};

/// Re-hash everything in the store: bytes, values, checkpoints, run records
///
/// Ends with exit code 1 if something is damaged or missing. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    pub what: Option<What>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// Prove that pretraining gives the same bits after kills and resumes as without
    Resume(resume::Args),
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    if let Some(What::Resume(args)) = args.what {
        return resume::run(args, global);
    }
    let store = Store::open(&global.runs);
    let reporter = Reporter::new(global.verbosity());
    reporter.stage_begins("store", "hashing everything in it");
    reporter.start(Some(store.bytes_to_inspect() >> 20), "MiB");
    let mut done = 0;
    let inspected = store.inspect(&mut |n| {
        reporter.advance(((done + n) >> 20) - (done >> 20));
        done += n;
    });
    reporter.stage_ends();
    let inspected = inspected?;
    let text = if args.json { format!("{}\n", to_json(&inspected)) } else { to_text(&inspected) };
    write!(std::io::stdout(), "{text}")?;
    Ok(if inspected.damages.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn to_json(inspected: &Inspected) -> serde_json::Value {
    let damages = inspected.damages.iter().map(
        |damage| json!({ "path": damage.path.display().to_string(), "problem": damage.problem, "help": damage.help }),
    );
    json!({
        "ok": inspected.damages.is_empty(),
        "artifacts": inspected.artifacts,
        "checkpoint_files": inspected.checkpoints,
        "runs": inspected.runs,
        "bytes": inspected.bytes,
        "not_checked": inspected.busy,
        "damages": damages.collect::<Vec<_>>(),
    })
}

fn to_text(inspected: &Inspected) -> String {
    let mut text = String::new();
    for damage in &inspected.damages {
        text += &format!("damaged: {}\n    {}\n    {}\n", damage.path.display(), damage.problem, damage.help);
    }
    for stage in &inspected.busy {
        text += &format!("not checked: checkpoints of {stage}: in use\n");
    }
    let looked = format!(
        "{}, {}, {}, {} hashed",
        count(inspected.artifacts, "artifact"),
        count(inspected.checkpoints, "checkpoint file"),
        count(inspected.runs, "run"),
        show::bytes(inspected.bytes as f64)
    );
    text + &match inspected.damages.len() {
        0 => format!("all whole: {looked}\n"),
        n => format!("{} in {looked}\n", count(n, "damage")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Damage;

    #[test]
    fn damage_is_named_with_what_to_do() {
        let mut inspected = Inspected { artifacts: 6, runs: 1, bytes: 3_000_000, ..Inspected::default() };
        assert_eq!(to_text(&inspected), "all whole: 6 artifacts, 0 checkpoint files, 1 run, 3.0 MB hashed\n");
        let damage = |path: &str| Damage { path: path.into(), problem: "gone".into(), help: "run it".into() };
        inspected.damages = vec![damage("x"), damage("y")];
        inspected.busy = vec!["pretrain 01234567".into()];
        let expected = "\
damaged: x
    gone
    run it
damaged: y
    gone
    run it
not checked: checkpoints of pretrain 01234567: in use
2 damages in 6 artifacts, 0 checkpoint files, 1 run, 3.0 MB hashed
";
        assert_eq!(to_text(&inspected), expected);
    }
}

//! `snclr audit`: checks whether the scores of a run can be trusted.

use std::{io::Write, process::ExitCode};

use serde_json::json;

use super::{Global, show};
use crate::{
    artifact::Store,
    report::{
        self,
        audit::Audit,
        duplicates::{Image, Twice},
    },
};

/// The most images that are listed by name.
const NAMED: usize = 10;

/// Check whether the scores of a run can be trusted: frozen encoder, eval mode, complete weights, controls
///
/// Ends with exit code 1 when a check fails.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run's name or its beginning, its folder, or a spec's name or path (its newest run)
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let run = report::find(&global.runs, &args.run)?;
    let audit = Audit::new(&Store::open(&global.runs), &run)?;
    let name = &run.record.run;
    let text = if args.json { format!("{}\n", to_json(name, &audit)) } else { to_text(name, &audit) };
    write!(std::io::stdout(), "{text}")?;
    Ok(if audit.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn to_json(run: &str, audit: &Audit) -> serde_json::Value {
    let object = |rows: &[(String, String)]| {
        rows.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect::<serde_json::Map<_, _>>()
    };
    let encoders = audit.encoders.iter().map(|(stage, rows)| (stage.clone(), object(rows).into()));
    let scores = audit.scores.iter().map(|(evaluation, scores)| {
        let gain = scores.gain.as_ref();
        json!({
            "evaluation": evaluation, "trained": scores.trained, "initial": scores.initial, "untrained": scores.untrained,
            "shuffled_labels": scores.shuffled,
            "gain": gain.map(|gain| json!({ "difference": gain.difference, "low": gain.low, "high": gain.high, "p": gain.p })),
        })
    });
    let checks = audit.checks.iter().map(|check| json!({ "check": check.what, "problem": check.problem }));
    json!({
        "run": run,
        "ok": audit.holds(),
        "checks": checks.collect::<Vec<_>>(),
        "scores": scores.collect::<Vec<_>>(),
        "encoders": encoders.collect::<serde_json::Map<_, _>>(),
        "data": audit.notes,
        "duplicates": audit.duplicates.iter().map(|twice| twice.places.each_ref().map(image)).collect::<Vec<_>>(),
    })
}

/// Split, class and path of an image.
pub fn image(image: &Image) -> serde_json::Value {
    json!({ "split": image.split.as_str(), "image": image.name, "class": image.class })
}

fn to_text(run: &str, audit: &Audit) -> String {
    let mut text = format!("{run}\n");
    for (stage, rows) in &audit.encoders {
        text += &format!("{stage}\n");
        for (key, value) in rows {
            // Shorten digests: they are compared below.
            let is_digest = value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit());
            text += &format!("    {key:<22} {}\n", if is_digest { &value[..8] } else { value });
        }
    }
    if !audit.scores.is_empty() {
        text += &scores(audit);
    }
    for check in &audit.checks {
        text += &match &check.problem {
            None => format!("ok      {}\n", check.what),
            Some(problem) => format!("failed  {}: {problem}\n", check.what),
        };
    }
    for note in &audit.notes {
        text += &format!("warning data: {note}\n");
    }
    for Twice { places: [again, first], .. } in audit.duplicates.iter().take(NAMED) {
        text += &format!("        {} is {}\n", shown(again), shown(first));
    }
    if audit.duplicates.len() > NAMED {
        text += &format!("        and {} more; --json lists them\n", audit.duplicates.len() - NAMED);
    }
    text
}

/// Split, path and class of an image as text.
pub fn shown(image: &Image) -> String {
    let class = image.class.as_ref().map_or_else(String::new, |class| format!(" ({class})"));
    format!("{} {}{class}", image.split, image.name)
}

fn scores(audit: &Audit) -> String {
    format!("{}\n", show::scores(&audit.scores))
}

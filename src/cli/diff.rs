//! `snclr diff`: shows what differs between two runs, down to single test images.

use std::{io::Write, path::Path, process::ExitCode};

use serde_json::{Value, json};

use super::Global;
use crate::{
    artifact::{RunRecord, Store},
    report::{
        Run, Runs,
        diff::{Diff, Paired, same_but_for_names},
        flips::Flips,
        grid, table,
    },
    spec,
};

/// Show what differs between two runs: spec, environment, metrics, and the test images that they predict differently
///
/// A spec file stands for the run of exactly this spec. If there is none, only the fields of the spec are compared.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// First run: its name or the beginning of it, its folder, the name of a spec (its newest run), or a spec file
    #[arg(value_name = "A")]
    pub a: String,
    /// Second run, in the same form
    #[arg(value_name = "B")]
    pub b: String,
    /// Print at most N sample numbers of each kind
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub samples: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let runs = Runs::new(&global.runs);
    let (a, b) = (side(&runs, &args.a)?, side(&runs, &args.b)?);
    let diff = Diff::new(&Store::open(&global.runs), &a, &b);
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", to_json(&diff, args.samples))?,
        false => write!(out, "{}", to_text(&diff, args.samples))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The run that an argument names. A spec file without a run becomes a run without stages.
fn side(runs: &Runs, argument: &str) -> anyhow::Result<Run> {
    let path = Path::new(argument);
    if !path.is_file() {
        return runs.find(argument);
    }
    let spec = spec::load(path, &[])?.value();
    let name = spec["name"].as_str().unwrap_or_default();
    if let Some(run) = runs.newest(name, |other| same_but_for_names(other, &spec))? {
        return Ok(run);
    }
    let record = RunRecord {
        run: format!("{argument} (not run)"),
        name: name.to_owned(),
        created: 0,
        stages: Vec::new(),
        metrics: Default::default(),
        notes: Vec::new(),
        unfinished: None,
    };
    Ok(Run { record, spec })
}

fn first(samples: &[i64], most: usize) -> &[i64] {
    &samples[..samples.len().min(most)]
}

fn to_json(diff: &Diff, samples: usize) -> Value {
    let predictions = |paired: &Paired| {
        let mut value = json!({ "stage": paired.stage, "what": paired.what });
        match &paired.flips {
            Err(why) => value["not_paired"] = why.as_str().into(),
            Ok(flips) => {
                value["right_to_wrong"] = json!({ "count": flips.lost.len(), "samples": first(&flips.lost, samples) });
                value["wrong_to_right"] = json!({ "count": flips.won.len(), "samples": first(&flips.won, samples) });
                value["right_in_both"] = flips.right_in_both.into();
                value["wrong_in_both"] = flips.wrong_in_both.into();
                value["mcnemar_p"] = flips.p.into();
            }
        }
        value
    };
    let spec = diff.spec.iter().map(|leaf| json!({ "key": leaf.key, "a": leaf.a, "b": leaf.b }));
    let environment = diff.environment.iter();
    let environment =
        environment.map(|row| json!({ "field": row.field, "a": row.a, "b": row.b, "stages": row.stages }));
    let metrics = diff.metrics.iter();
    let metrics =
        metrics.map(|row| json!({ "metric": row.name, "a": row.a, "b": row.b, "difference": row.difference() }));
    json!({
        "a": diff.a,
        "b": diff.b,
        "spec": spec.collect::<Vec<_>>(),
        "environment": environment.collect::<Vec<_>>(),
        "metrics": metrics.collect::<Vec<_>>(),
        "predictions": diff.predictions.iter().map(predictions).collect::<Vec<_>>(),
    })
}

fn to_text(diff: &Diff, samples: usize) -> String {
    let mut text = format!("a: {}\nb: {}\n", diff.a, diff.b);
    if diff.a == diff.b {
        return text + "the same run\n";
    }
    text += if diff.spec.is_empty() { "spec: no differences\n" } else { "spec, a -> b\n" };
    let leaf = |value: &Option<Value>| value.as_ref().map_or("(none)".to_owned(), spec::plain);
    for row in &diff.spec {
        text += &format!("    {} {} -> {}\n", row.key, leaf(&row.a), leaf(&row.b));
    }
    text += if diff.environment.is_empty() { "environment: no differences\n" } else { "environment, a -> b\n" };
    let recorded = |value: &Option<String>| value.clone().unwrap_or("(not recorded)".to_owned());
    for row in &diff.environment {
        let stages = row.stages.join(", ");
        text += &format!("    {} {} -> {} in {stages}\n", row.field, recorded(&row.a), recorded(&row.b));
    }
    if !diff.metrics.is_empty() {
        text += &metrics(diff);
    }
    for paired in &diff.predictions {
        text += &match &paired.flips {
            Err(why) => format!("{}: predictions cannot be compared: {why}\n", paired.what),
            Ok(flips) => flipped(&paired.what, flips, samples),
        };
    }
    text
}

fn metrics(diff: &Diff) -> String {
    let header = ["metric", "a", "b", "b - a"].map(str::to_owned).to_vec();
    let rows = diff.metrics.iter().map(|row| {
        let figure = |value: Option<f64>| value.map_or("-".to_owned(), |value| grid::figure(&row.name, value, None));
        let difference = row.difference().map_or("-".to_owned(), |difference| {
            let sign = if difference > 0.0 { "+" } else { "" };
            format!("{sign}{}", grid::figure(&row.name, difference, None))
        });
        vec![row.name.clone(), figure(row.a), figure(row.b), difference]
    });
    table::lines(std::iter::once(header).chain(rows))
}

fn flipped(what: &str, flips: &Flips, samples: usize) -> String {
    let images = flips.right_in_both + flips.wrong_in_both + (flips.lost.len() + flips.won.len()) as u64;
    let mut text = format!(
        "{what}, {images} test images: {} right in both, {} wrong in both, {} right -> wrong, {} wrong -> right; \
         McNemar's exact p = {}\n",
        flips.right_in_both,
        flips.wrong_in_both,
        flips.lost.len(),
        flips.won.len(),
        p_value(flips.p)
    );
    for (label, list) in [("right -> wrong", &flips.lost), ("wrong -> right", &flips.won)] {
        let shown = first(list, samples);
        if !shown.is_empty() {
            let numbers = shown.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
            let more = list.len() - shown.len();
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            text += &format!("    {label}: {numbers}{more}\n");
        }
    }
    text
}

/// A number with three decimals; a tiny one as a power of ten.
fn p_value(p: f64) -> String {
    if p >= 0.001 { format!("{p:.3}") } else { format!("{p:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_are_told_with_the_first_samples() {
        let flips = Flips { lost: vec![3, 9, 27], won: vec![], right_in_both: 30, wrong_in_both: 7, p: 0.25 };
        assert_eq!(
            flipped("kNN, k = 5", &flips, 2),
            "kNN, k = 5, 40 test images: 30 right in both, 7 wrong in both, 3 right -> wrong, 0 wrong -> right; \
             McNemar's exact p = 0.250\n    right -> wrong: 3, 9, and 1 more\n"
        );
        assert_eq!(p_value(0.00012), "1.2e-4");
    }
}

//! Runs the points of a sweep for `snclr run`, in order or several at once, and prints their results.

use std::{io::Write, process::ExitCode, sync::Arc};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use super::{failure, show};
use crate::{
    remote::Cache,
    run::{Finished, How, Jobs, Reporter, Setting, Verbosity, is_interruption},
    spec::{self, Point},
    stage::{Progress, Stopped},
};

/// The outcome of a point; None if it did not start.
type Ending = Option<anyhow::Result<Finished>>;

/// Runs the points and prints their outcomes. The exit code is that of the first failure.
///
/// # Errors
/// When the user interrupts, or threads cannot be started.
pub fn run(
    setting: &Setting,
    points: &[Point],
    jobs: Jobs,
    json: bool,
    verbosity: Verbosity,
) -> anyhow::Result<ExitCode> {
    let name = |i: usize| format!("point {} of {}: ", i + 1, points.len());
    let reporter = |i: usize| match jobs.count {
        1 => Reporter::new(verbosity),
        _ => Reporter::beside_others(verbosity, name(i)),
    };
    let reporters: Vec<Arc<Reporter>> = (0..points.len()).map(|i| Arc::new(reporter(i))).collect();
    let endings = jobs.run(points.len(), |i| {
        let (point, reporter) = (&points[i], &reporters[i]);
        reporter.log(&if jobs.count == 1 { name(i) + &point.label() } else { point.label() });
        let result = setting.run(&point.loaded.experiment, reporter);
        result.with_context(|| name(i) + &point.label()).inspect_err(|error| {
            if !is_interruption(error) {
                let _ = writeln!(std::io::stderr(), "{}", failure::text(error));
            }
        })
    })?;
    let mut text = format!("{}\n", table(points, &endings));
    let mut told = Vec::new();
    for (finished, reporter) in endings.iter().zip(&reporters).filter_map(|(ending, reporter)| {
        // Points that failed have no notes. Their errors and warnings are already printed.
        Some((ending.as_ref()?.as_ref().ok()?, reporter))
    }) {
        for line in show::remarks(&finished.outcome.record.notes, &reporter.warnings()) {
            // A note that several points share is printed once.
            if !told.contains(&line) {
                text += &line;
                told.push(line);
            }
        }
    }
    text += &fact(&endings);
    show::print(&text, json.then(|| to_json(points, &endings, setting.cache)), verbosity)?;
    let errors = || endings.iter().flatten().filter_map(|result| result.as_ref().err());
    let code = errors().next().map_or(0, failure::code);
    match endings.into_iter().flatten().filter_map(Result::err).find(is_interruption) {
        Some(interruption) => Err(interruption),
        None => Ok(ExitCode::from(code)),
    }
}

fn status(ending: &Ending) -> &'static str {
    match ending {
        None => "skipped",
        Some(Ok(finished)) if finished.stages.iter().any(|stage| stage.how == How::Ran) => "ran",
        Some(Ok(finished)) if finished.stages.iter().any(|stage| stage.how == How::Fetched) => "fetched",
        Some(Ok(_)) => "cached",
        Some(Err(error)) if is_interruption(error) => "interrupted",
        Some(Err(error)) if matches!(error.downcast_ref(), Some(Stopped::Diverged(_))) => "diverged",
        Some(Err(_)) => "failed",
    }
}

fn to_json(points: &[Point], endings: &[Ending], cache: Option<&Cache>) -> Value {
    let point = |(point, ending): (&Point, &Ending)| {
        let finished = ending.as_ref().and_then(|result| result.as_ref().ok());
        let error = ending.as_ref().and_then(|result| result.as_ref().err());
        json!({
            "values": point.object(),
            "run": finished.map(|finished| &finished.outcome.record.run),
            "status": status(ending),
            "stages": finished.map_or(json!([]), |finished| show::stages(&finished.stages)),
            "metrics": finished.map_or(json!({}), |finished| json!(finished.outcome.metrics())),
            "error": error.map(|error| error.chain().skip(1).map(ToString::to_string).collect::<Vec<_>>().join(": ")),
        })
    };
    json!({ "points": points.iter().zip(endings).map(point).collect::<Vec<_>>(), "cache": cache.map(show::cache) })
}

/// A table with a row per point: its values, its status, its scores in percent and its run.
fn table(points: &[Point], endings: &[Ending]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let mut keys: Vec<&str> = vec![];
    for (key, _) in points.iter().flat_map(|point| &point.values) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let scores = ["linear/top1", "knn/top1"];
    table.set_header(["point"].iter().chain(&keys).chain(&["status", "linear top-1", "kNN top-1", "run"]));
    for (i, (point, ending)) in points.iter().zip(endings).enumerate() {
        let finished = ending.as_ref().and_then(|result| result.as_ref().ok());
        let score = |metric: &str| {
            let value = finished.and_then(|finished| finished.outcome.metrics().get(metric).copied().flatten());
            value.map_or("-".to_owned(), |value| format!("{:.1} %", 100.0 * value))
        };
        let mut row = vec![(i + 1).to_string()];
        // Several specs may vary different keys.
        row.extend(keys.iter().map(|key| {
            let value = point.values.iter().find(|(own, _)| own == key);
            value.map_or("-".to_owned(), |(_, value)| spec::plain(value))
        }));
        row.push(status(ending).to_owned());
        row.extend(scores.map(score));
        row.push(finished.map_or("-".to_owned(), |finished| finished.outcome.record.run.clone()));
        table.add_row(row);
    }
    for column in (0..=keys.len()).chain([keys.len() + 2, keys.len() + 3]) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn fact(endings: &[Ending]) -> String {
    let stages = || endings.iter().flatten().flatten().flat_map(|finished| &finished.stages);
    let points = endings.len();
    let done = endings.iter().flatten().filter(|result| result.is_ok()).count();
    let (all, came_by) = (stages().count(), show::came_by(stages()));
    if done == points && came_by.is_none() {
        return format!("nothing to do: {all} stages of {points} points cached\n");
    }
    let count = came_by.unwrap_or_else(|| format!("ran 0 stages, {all} cached"));
    if done == points {
        return format!("{count} in {points} points\n");
    }
    let mut text = format!("{done} of {points} points done ({count})");
    for what in ["failed", "diverged", "interrupted", "skipped"] {
        let count = endings.iter().filter(|ending| status(ending) == what).count();
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text + "\n"
}

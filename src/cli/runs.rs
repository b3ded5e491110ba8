//! `snclr runs`: lists all runs with their state and scores.

use std::{io::Write, process::ExitCode};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::json;

use super::{Global, show::brief};
use crate::{
    artifact::{RunRecord, Store},
    report::{
        self, Runs,
        tables::{self, Written},
    },
};

/// List all runs with their scores, including runs in progress and runs without results
///
/// A run without results is running, interrupted, diverged or failed. It is listed until its spec has results, or `snclr gc
/// --yes` removes it. `snclr report` and `snclr tensorboard` show its curves. The folder `tables` caches this list, which makes
/// it fast for thousands of runs; the folder may be deleted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the scores of all finished runs into one Parquet file, and their curves into another, for databases
    #[arg(long, conflicts_with = "json")]
    pub tables: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Control: the encoder with the weights of `encoder.init`, before training.
const INITIAL: &str = "knn/top1_initial";

/// The listed scores, and the headings of their columns.
const SCORES: [(&str, &str); 4] = [
    ("linear/top1", "linear top-1"),
    ("knn/top1", "kNN top-1"),
    (INITIAL, "kNN top-1 as given"),
    ("knn/top1_random_init", "kNN top-1 untrained"),
];

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let store = Store::open(&global.runs);
    if args.tables {
        let mut notes = Vec::new();
        let written = tables::write(&store, &mut |note| notes.push(note))?;
        let line = |table: &Written| format!("{} rows in {}\n", table.rows, table.path.display());
        let text: String = written.iter().map(line).chain(notes.iter().map(|note| format!("note: {note}\n"))).collect();
        write!(std::io::stdout(), "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let runs = Runs::with_unfinished(&global.runs).records()?;
    let text = match args.json {
        true => to_json(&store, &runs).to_string(),
        false if runs.is_empty() => format!("no runs in {}", global.runs.display()),
        false => to_text(&store, &runs),
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn to_json(store: &Store, runs: &[RunRecord]) -> serde_json::Value {
    let run = |run: &RunRecord| {
        let unfinished = run.unfinished.as_ref();
        json!({
            "run": run.run,
            "name": run.name,
            "date": date(run.created),
            "state": unfinished.map_or("finished".to_owned(), |unfinished| unfinished.state.to_string()),
            "stage": unfinished.map(|unfinished| &unfinished.stage),
            "steps": unfinished.and_then(|unfinished| report::steps(store, unfinished)),
            "why": unfinished.and_then(|unfinished| unfinished.why.as_ref()),
            "metrics": run.metrics,
        })
    };
    json!({ "runs": runs.iter().map(run).collect::<Vec<_>>() })
}

fn to_text(store: &Store, runs: &[RunRecord]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let is_given =
        |(metric, _): &(&str, &str)| *metric != INITIAL || runs.iter().any(|run| run.metrics.contains_key(INITIAL));
    let scores: Vec<_> = SCORES.into_iter().filter(is_given).collect();
    table.set_header(["run", "date (UTC)", "state"].into_iter().chain(scores.iter().map(|(_, title)| *title)));
    let mut whys = String::new();
    for run in runs {
        let date = date(run.created).replace('T', " ").replace('Z', "");
        let mut row = vec![run.run.clone(), date, report::state(store, run)];
        for (metric, _) in &scores {
            let value = run.metrics.get(*metric).copied().flatten();
            row.push(value.map_or("-".to_owned(), |value| format!("{:.1} %", 100.0 * value)));
        }
        table.add_row(row);
        let why = run.unfinished.iter().filter_map(|unfinished| unfinished.why.as_ref());
        why.for_each(|why| whys += &format!("\n{}: {}", run.run, brief(why)));
    }
    for column in 3..3 + scores.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}{whys}")
}

/// Date and time in UTC, as ISO 8601, from seconds since 1970.
fn date(seconds: u64) -> String {
    // Days since 1970 -> civil date, in years that begin in March, so that leap days come last
    // (H. Hinnant, "chrono-compatible low-level date algorithms").
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::artifact::{Components, RunState, Unfinished};

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn runs_are_listed_with_their_state_and_scores() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path());
        let metrics = BTreeMap::from([("knn/top1".to_owned(), Some(0.5)), ("linear/top1".to_owned(), None)]);
        let (run, name) = ("a-00000000".to_owned(), "a".to_owned());
        let finished =
            RunRecord { run, name, created: 86_400, stages: vec![], metrics, notes: vec![], unfinished: None };
        let (stage, key) = ("pretrain".to_owned(), Components::default().key());
        let why = Some("training diverged: the loss is NaN at step 3\n  what to try: less".to_owned());
        let unfinished = Some(Unfinished { state: RunState::Diverged, stage, key, why: why.clone() });
        let diverged = RunRecord {
            run: "b-00000000".into(),
            metrics: BTreeMap::new(),
            unfinished: unfinished.clone(),
            ..finished.clone()
        };
        let runs = [finished, diverged];
        let expected = "\
┌────────────┬─────────────────────┬──────────────────────┬──────────────┬───────────┬─────────────────────┐
│ run        ┆ date (UTC)          ┆ state                ┆ linear top-1 ┆ kNN top-1 ┆ kNN top-1 untrained │
╞════════════╪═════════════════════╪══════════════════════╪══════════════╪═══════════╪═════════════════════╡
│ a-00000000 ┆ 1970-01-02 00:00:00 ┆ finished             ┆            - ┆    50.0 % ┆                   - │
│ b-00000000 ┆ 1970-01-02 00:00:00 ┆ diverged at pretrain ┆            - ┆         - ┆                   - │
└────────────┴─────────────────────┴──────────────────────┴──────────────┴───────────┴─────────────────────┘
b-00000000: training diverged: the loss is NaN at step 3";
        assert_eq!(to_text(&store, &runs), expected);
        let none = serde_json::Value::Null;
        let expected = json!({"runs": [
            {"run": "a-00000000", "name": "a", "date": "1970-01-02T00:00:00Z", "state": "finished", "stage": none, "steps": none,
             "why": none, "metrics": {"knn/top1": 0.5, "linear/top1": null}},
            {"run": "b-00000000", "name": "a", "date": "1970-01-02T00:00:00Z", "state": "diverged", "stage": "pretrain",
             "steps": none, "why": why, "metrics": {}},
        ]});
        assert_eq!(to_json(&store, &runs), expected);
    }
}

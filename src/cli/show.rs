//! Formats sizes, counts, scores and notes for the terminal.

use std::io::{Write, stderr, stdout};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use serde_json::{Value, json};

use crate::{
    artifact::{RunRecord, Store},
    plan::{Planned, Stage},
    remote::Cache,
    report::{self, audit::Scores, grid::difference},
    run::{How, StageOutcome, Verbosity},
};

/// `312 B`, `4.1 kB`, `23.0 MB`: powers of 1000, as disks are sold and `df -H` prints them.
pub fn bytes(count: f64) -> String {
    let mut value = count;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.95 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// `1 artifact`, `2 artifacts`.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// The first line of an error. If it ends in a colon, the first line of the list below it follows.
pub fn brief(why: &str) -> String {
    let (first, rest) = why.split_once('\n').unwrap_or((why, ""));
    let mut listed = rest.lines().map(str::trim);
    match listed.next().filter(|_| first.ends_with(':')) {
        Some(next) if listed.next().is_some() => format!("{first} {next}, …"),
        Some(next) => format!("{first} {next}"),
        None => first.to_owned(),
    }
}

/// How many stages are to run, e.g. `2 of 6 stages to run, 4 cached`.
pub fn to_do(pending: usize, stages: usize) -> String {
    let cached = stages - pending;
    match pending {
        0 => format!("nothing to do: {cached} stages cached"),
        _ => format!("{pending} of {stages} stages to run, {cached} cached"),
    }
}

/// How many stages ran, were fetched or were cached, e.g. `ran 1 stage, 5 cached`; None when all were cached.
pub fn came_by<'a>(stages: impl Iterator<Item = &'a StageOutcome>) -> Option<String> {
    let mut numbers = [0; 3];
    stages.for_each(|stage| {
        numbers[match stage.how {
            How::Cached => 0,
            How::Fetched => 1,
            How::Ran => 2,
        }] += 1
    });
    let [cached, fetched, ran] = numbers;
    match (ran, fetched) {
        (0, 0) => None,
        (0, _) => Some(format!("fetched {}, {cached} cached", count(fetched, "stage"))),
        (_, 0) => Some(format!("ran {}, {cached} cached", count(ran, "stage"))),
        (..) => Some(format!("ran {}, {fetched} fetched, {cached} cached", count(ran, "stage"))),
    }
}

/// The step or image from which a pending stage resumes, if there is one; to append to other text.
pub fn resumes(planned: &Planned) -> String {
    let unit = if planned.stage == Stage::Data { "image" } else { "step" };
    planned.resumes_after.map_or(String::new(), |last| format!("; resumes after {unit} {last}"))
}

/// Table of top-1 scores beside their controls, in percent. If training started from given weights, it has a column for their
/// score and one for the gain.
pub fn scores(rows: &[(&str, Scores)]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let has_initial = rows.iter().any(|(_, scores)| scores.initial.is_some());
    let cells = |first: String, of: [String; 5]| -> Vec<String> {
        let [untrained, initial, trained, gain, shuffled] = of;
        match has_initial {
            true => vec![first, trained, gain, initial, untrained, shuffled],
            false => vec![first, trained, untrained, shuffled],
        }
    };
    let header = ["untrained", "as given", "trained", "over as given, in points", "shuffled labels"];
    table.set_header(cells("top-1 in %".to_owned(), header.map(str::to_owned)));
    for (label, scores) in rows {
        let cell = |score: Option<f64>| score.map_or("-".to_owned(), |score| format!("{:.1}", 100.0 * score));
        let gain = scores.gain.as_ref().map_or("-".to_owned(), difference);
        let Scores { untrained, initial, trained, shuffled, .. } = *scores;
        let row = [cell(untrained), cell(initial), cell(Some(trained)), gain, cell(shuffled)];
        table.add_row(cells((*label).to_owned(), row));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// Says on stderr that a run has no results, if so.
pub fn note_unfinished(store: &Store, record: &RunRecord) -> std::io::Result<()> {
    if record.unfinished.is_none() {
        return Ok(());
    }
    writeln!(stderr(), "note: {} has no results: {}", record.run, report::state(store, record))
}

/// Prints the text on stdout; with JSON, prints the JSON on stdout and the text on stderr.
pub fn print(text: &str, json: Option<Value>, verbosity: Verbosity) -> anyhow::Result<()> {
    match json {
        None => write!(stdout(), "{text}")?,
        Some(json) => {
            if verbosity != Verbosity::Quiet {
                let _ = write!(stderr(), "{text}");
            }
            writeln!(stdout(), "{json}")?;
        }
    }
    Ok(())
}

/// The shared cache, and its first problem if there was one.
pub fn cache(cache: &Cache) -> Value {
    let options = cache.options();
    json!({ "address": options.address.to_string(), "mode": options.mode.name(), "problem": cache.problem() })
}

/// Stages with their keys, how each came by its artifact, and their seconds.
pub fn stages(stages: &[StageOutcome]) -> Value {
    let stage = |stage: &StageOutcome| {
        json!({
            "stage": stage.stage.name(),
            "key": stage.artifact.key(),
            "status": stage.how.name(),
            "seconds": stage.seconds,
        })
    };
    stages.iter().map(stage).collect()
}

/// Notes of the stages, then the warnings that are not among the notes, one line each. Notes of the data and pretraining stages
/// are printed as warnings, since they concern every score.
pub fn remarks(notes: &[String], warnings: &[String]) -> impl Iterator<Item = String> {
    let of_note = |note: &String| match note.split_once(": ") {
        Some(("data" | "pretrain", _)) => "warning",
        _ => "note",
    };
    let is_noted = |warning: &&String| notes.iter().any(|note| note.ends_with(*warning));
    let warnings = warnings.iter().filter(move |warning| !is_noted(warning));
    let notes = notes.iter().map(move |note| format!("{}: {note}\n", of_note(note)));
    notes.chain(warnings.map(|warning| format!("warning: {warning}\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::paired::Paired;

    #[test]
    fn the_weights_that_training_started_from_have_columns_where_there_are_any() {
        let paired =
            Paired { samples: 40, difference: 0.05, low: -0.025, high: 0.125, over_seeds: false, p: Some(0.5) };
        let from_file =
            Scores { trained: 0.75, initial: Some(0.7), untrained: Some(0.3), shuffled: None, gain: Some(paired) };
        let expected = "\
┌──────────────┬─────────┬─────────────────────────────┬──────────┬───────────┬─────────────────┐
│ top-1 in %   ┆ trained ┆    over as given, in points ┆ as given ┆ untrained ┆ shuffled labels │
╞══════════════╪═════════╪═════════════════════════════╪══════════╪═══════════╪═════════════════╡
│ kNN          ┆    75.0 ┆ +5.00 [-2.50, 12.50], p 0.500 ┆     70.0 ┆      30.0 ┆               - │
└──────────────┴─────────┴─────────────────────────────┴──────────┴───────────┴─────────────────┘";
        let squeezed = |text: &str| {
            let words: Vec<_> =
                text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            words.into_iter().filter(|line| line.starts_with('│')).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&scores(&[("kNN", from_file)])), squeezed(expected));
    }

    #[test]
    fn the_last_line_is_a_fact() {
        use How::{Cached, Fetched, Ran};
        let artifact = crate::artifact::Artifact::made_up();
        let fact = |ways: &[How]| {
            let outcome =
                |how: &How| StageOutcome { stage: Stage::Knn, how: *how, seconds: 0.0, artifact: artifact.clone() };
            came_by(ways.iter().map(outcome).collect::<Vec<_>>().iter())
        };
        assert_eq!(fact(&[Cached, Cached]), None);
        assert_eq!(fact(&[Ran, Cached]).as_deref(), Some("ran 1 stage, 1 cached"));
        assert_eq!(fact(&[Ran, Fetched, Ran]).as_deref(), Some("ran 2 stages, 1 fetched, 0 cached"));
        assert_eq!(fact(&[Fetched, Fetched, Cached]).as_deref(), Some("fetched 2 stages, 1 cached"));
    }

    #[test]
    fn sizes_have_the_unit_that_suits_them() {
        for (size, text) in
            [(0.0, "0 B"), (999.0, "999 B"), (1000.0, "1.0 kB"), (4_100_000.0, "4.1 MB"), (2.5e12, "2.5 TB")]
        {
            assert_eq!(bytes(size), text);
        }
        assert_eq!((count(1, "run").as_str(), count(0, "run").as_str()), ("1 run", "0 runs"));
    }
}

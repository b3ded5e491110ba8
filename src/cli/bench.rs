//! `snclr bench`: measures how fast this machine trains, searches, augments and evaluates.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use super::{Global, show, values};
use crate::{
    bench::{self, Card, Case, LayerTime, Measurement, Options, Point, Rate, Roofline},
    run::{Reporter, start_threads},
    train::Precision,
};

/// Measure how fast this machine trains, searches, augments and evaluates
///
/// Without --case, all cases run: a few minutes on 2 cores, and 3 GB of memory for resnet50. Each case runs in its own process,
/// so that its peak memory is measured alone. It runs once to warm up (on a GPU three times), then as often as --steps says.
/// docs/benchmarks.md explains the cases, and how to compare them with PyTorch.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Case to measure; repeatable [default: all that accept the other options]
    #[arg(long = "case", value_parser = values::choice::<Case>(), value_name = "CASE", value_delimiter = ',')]
    pub cases: Vec<Case>,
    /// Measure how cost grows with threads, data set, queue length and K, instead of cases
    #[arg(long, conflicts_with_all = ["cases", "queue_length", "k", "batch", "queries", "images", "save_images"])]
    pub scaling: bool,
    /// Measure nothing: compute the least time that a GPU of this kind needs for the training steps, layer by layer
    #[arg(long, value_parser = values::choice::<Card>(), value_name = "CARD")]
    #[arg(conflicts_with_all = ["scaling", "steps", "queries", "images", "save_images"])]
    pub roofline: Option<Card>,
    /// Precision of training, as in a spec
    #[arg(long, default_value = "f32", value_parser = precision)]
    pub precision: Precision,
    /// Repetitions to measure [default: as many as take a few seconds]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub steps: Option<usize>,
    /// Rows in the queue
    #[arg(long, value_name = "ROWS", value_parser = positive)]
    pub queue_length: Option<usize>,
    /// Neighbours to search for
    #[arg(short, value_name = "K", value_parser = positive)]
    pub k: Option<usize>,
    /// Images per training step
    #[arg(long, value_name = "N", value_parser = positive)]
    pub batch: Option<usize>,
    /// Queries per search
    #[arg(long, value_name = "N", value_parser = positive)]
    pub queries: Option<usize>,
    /// Images to augment or train on
    #[arg(long, value_name = "N", value_parser = positive)]
    pub images: Option<usize>,
    /// Also write the images of the benchmark as files into this folder
    #[arg(long, value_name = "DIR")]
    pub save_images: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

fn precision(text: &str) -> Result<Precision, String> {
    serde_json::from_value(json!(text)).map_err(|error| error.to_string())
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number from 1".into())
}

impl Args {
    fn options(&self) -> Options {
        Options {
            precision: self.precision,
            queue_length: self.queue_length,
            k: self.k,
            batch: self.batch,
            queries: self.queries,
            images: self.images,
            save_images: self.save_images.clone(),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When a case does not accept an option, or a measurement fails.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let options = args.options();
    if args.scaling {
        let mut rows = Vec::new();
        for point in bench::points() {
            let threads = point.threads().or(global.threads);
            match child(point.series.case(), &point.options(&options), args.steps, threads, global)? {
                Ok(measurement) => rows.push((point, measurement)),
                Err(code) => return Ok(code),
            }
        }
        return print(args.json, || scaling_json(&rows), || scaling_table(&rows));
    }
    if let Some(card) = args.roofline {
        let cases = match args.cases.is_empty() {
            true => Case::ALL.into_iter().filter(|case| case.is_step()).collect(),
            false => args.cases,
        };
        let found = cases.into_iter().map(|case| bench::roofline(case, &options, card));
        let found = found.collect::<anyhow::Result<Vec<_>>>()?;
        return print(args.json, || json!({ "rooflines": found }), || roofline_tables(&found));
    }
    let cases = match args.cases.is_empty() {
        true => Case::ALL.into_iter().filter(|case| options.check(*case).is_ok()).collect(),
        false => args.cases,
    };
    // Check all cases before the first one runs.
    cases.iter().try_for_each(|case| options.check(*case))?;
    let measurements = match cases[..] {
        [case] => vec![measure(case, &options, args.steps, global)?],
        _ => {
            let mut measurements = Vec::new();
            for case in cases {
                match child(case, &options, args.steps, global.threads, global)? {
                    Ok(measurement) => measurements.push(measurement),
                    Err(code) => return Ok(code),
                }
            }
            measurements
        }
    };
    print(args.json, || json!({ "cases": measurements }), || table(&measurements))
}

fn print(json: bool, value: impl FnOnce() -> Value, table: impl FnOnce() -> String) -> anyhow::Result<ExitCode> {
    let text = if json { value().to_string() } else { table() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Measures a case in this process.
fn measure(case: Case, options: &Options, steps: Option<usize>, global: &Global) -> anyhow::Result<Measurement> {
    if global.threads.is_none() {
        start_threads(Some(case.threads()))?;
    }
    let reporter = Reporter::new(global.verbosity());
    reporter.stages(&[case.name()]);
    reporter.stage_begins(case.name(), "measured");
    let measurement = bench::measure(case, options, steps.unwrap_or(case.steps()), &reporter);
    reporter.done();
    measurement
}

/// Measures a case in its own process, which prints its progress and errors itself. Err holds the exit code of a failure.
fn child(
    case: Case,
    options: &Options,
    steps: Option<usize>,
    threads: Option<usize>,
    global: &Global,
) -> anyhow::Result<Result<Measurement, ExitCode>> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(["bench", "--json", "--case", case.name(), "--precision", &options.precision_name()]);
    command.args(["--device", &global.device.to_string()]);
    let numbers = [
        ("--threads", threads),
        ("--steps", steps),
        ("--queue-length", options.queue_length),
        ("-k", options.k),
        ("--batch", options.batch),
        ("--queries", options.queries),
        ("--images", options.images),
    ];
    for (option, number) in numbers {
        command.args(number.map(|number| [option.to_owned(), number.to_string()]).into_iter().flatten());
    }
    if let Some(folder) = &options.save_images {
        command.arg("--save-images").arg(folder);
    }
    if global.quiet {
        command.arg("--quiet");
    }
    let output = command.stderr(Stdio::inherit()).output().context("starting this program again")?;
    if !output.status.success() {
        let code = output.status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(Err(ExitCode::from(code.unwrap_or(1))));
    }
    let mut printed: Value = serde_json::from_slice(&output.stdout).context("reading the measurements")?;
    Ok(Ok(serde_json::from_value(printed["cases"][0].take()).context("reading the measurements")?))
}

/// A number with three significant digits; a larger one with all digits before the point.
fn number(value: f64) -> String {
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

fn figures(measurement: &Measurement) -> [String; 5] {
    let rate = |part: fn(&Rate) -> f64| {
        let rate = measurement.images_per_second.as_ref();
        rate.map_or("-".to_owned(), |rate| number(part(rate)))
    };
    [
        rate(|rate| rate.median),
        rate(|rate| rate.maximum),
        number(measurement.milliseconds.median),
        number(measurement.milliseconds.minimum),
        measurement.peak_rss_mb.map_or("-".to_owned(), |mb| show::bytes(mb * 1e6)),
    ]
}

/// The floating-point speed of a training, as text.
fn work(measurement: &Measurement) -> String {
    let mut text = String::new();
    if let Some(flops) = &measurement.flops {
        text = format!("; {} GFLOP per image, {} TFLOP/s", number(flops.gflop_per_image), number(flops.tflops));
        if let Some(share) = flops.utilisation {
            text += &format!(", {:.1} % of the peak", 100.0 * share);
        }
    }
    if let Some(share) = measurement.waiting_share {
        text += &format!("; waited for images {:.1} % of the time", 100.0 * share);
    }
    text
}

const FIGURES: [&str; 5] = ["images/s", "best", "ms", "least", "memory"];

fn table(measurements: &[Measurement]) -> String {
    let header = ["case", "precision", "threads"];
    let row = |m: &Measurement| [m.case.name().to_owned(), m.precision.clone(), m.threads.to_string()];
    let whats = measurements.iter().map(|m| format!("{}: {}{}\n", m.case, m.what, work(m))).collect::<String>();
    let rows = measurements.iter().map(|m| (row(m), m));
    format!("{whats}{}\n{}", grid(header, rows), machine(measurements.first()))
}

fn scaling_table(rows: &[(Point, Measurement)]) -> String {
    let row = |point: &Point, m: &Measurement| {
        [point.series.name().to_owned(), point.value.to_string(), m.case.name().to_owned()]
    };
    let first = rows.first().map(|(_, measurement)| measurement);
    let rows = rows.iter().map(|(point, m)| (row(point, m), m));
    format!("{}\n{}", grid(["varied", "value", "case"], rows), machine(first))
}

fn roofline_tables(found: &[Roofline]) -> String {
    found.iter().map(roofline_table).collect::<Vec<_>>().join("\n\n")
}

fn roofline_table(found: &Roofline) -> String {
    let Roofline { case, what, precision, card, milliseconds, layers } = found;
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["layer", "times", "GFLOP", "GB", "forward, ms", "backward, ms", "bound by memory"]);
    for LayerTime { layer, count, gflop, gb, forward_ms, backward_ms, memory_bound } in layers {
        let [gflop, gb, forward, backward] = [gflop, gb, forward_ms, backward_ms].map(|value| number(*value));
        let bound = format!("{:.0} %", 100.0 * memory_bound);
        table.add_row([layer.clone(), count.to_string(), gflop, gb, forward, backward, bound]);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let milliseconds = number(*milliseconds);
    format!("{case}: {what}, {precision}\n{table}\nat least {milliseconds} ms on {}", card.to_uppercase())
}

fn grid<'a>(header: [&str; 3], rows: impl Iterator<Item = ([String; 3], &'a Measurement)>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header.into_iter().chain(FIGURES));
    for (names, measurement) in rows {
        table.add_row(names.into_iter().chain(figures(measurement)));
    }
    for column in 1..header.len() + FIGURES.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn machine(first: Option<&Measurement>) -> String {
    first.map_or(String::new(), |Measurement { machine, version, .. }| {
        let cores = show::count(machine.cores, "core");
        format!("{version}, {cores} of {} with {}", machine.cpu, machine.vector_unit)
    })
}

fn scaling_json(rows: &[(Point, Measurement)]) -> Value {
    let row = |(point, measurement): &(Point, Measurement)| json!({ "varied": point.series, "value": point.value, "measured": measurement });
    json!({ "points": rows.iter().map(row).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bench::{Flops, Machine, Recipe, Series, Time},
        spec,
    };

    #[test]
    fn recipes_of_images_are_those_of_the_specs() {
        for (recipe, spec) in
            [(Recipe::Cifar, "specs/cifar10-fast/snclr.yaml"), (Recipe::Imagenet, "specs/resnet50.yaml")]
        {
            let experiment = spec::load(spec.as_ref(), &[]).unwrap().experiment;
            assert_eq!(recipe.augmentations(), experiment.augmentations, "{spec}");
        }
    }

    fn measurement(case: Case, images_per_second: Option<Rate>) -> Measurement {
        Measurement {
            case,
            what: "something".into(),
            precision: "f32".into(),
            device: "cpu".into(),
            threads: 2,
            steps: 3,
            milliseconds: Time { median: 43.21, minimum: 4.0 },
            flops: images_per_second.map(|_| Flops { gflop_per_image: 2.5, tflops: 3.0, utilisation: Some(0.251) }),
            images_per_second,
            waiting_share: images_per_second.map(|_| 0.012),
            peak_rss_mb: Some(250.0),
            gpu: None,
            machine: Machine { cpu: "a model".into(), cores: 2, vector_unit: "AVX-512".into() },
            version: "snclr 1.2.3".into(),
        }
    }

    #[test]
    fn the_table_shows_every_case_and_the_machine() {
        let images = Rate { median: 1234.5, maximum: 2000.0 };
        let text = table(&[measurement(Case::Small, Some(images)), measurement(Case::Queue, None)]);
        let expected = "\
small: something; 2.50 GFLOP per image, 3.00 TFLOP/s, 25.1 % of the peak; waited for images 1.2 % of the time
queue: something
┌───────┬───────────┬─────────┬──────────┬──────┬──────┬───────┬──────────┐
│ case  ┆ precision ┆ threads ┆ images/s ┆ best ┆   ms ┆ least ┆   memory │
╞═══════╪═══════════╪═════════╪══════════╪══════╪══════╪═══════╪══════════╡
│ small ┆       f32 ┆       2 ┆     1234 ┆ 2000 ┆ 43.2 ┆  4.00 ┆ 250.0 MB │
│ queue ┆       f32 ┆       2 ┆        - ┆    - ┆ 43.2 ┆  4.00 ┆ 250.0 MB │
└───────┴───────────┴─────────┴──────────┴──────┴──────┴───────┴──────────┘
snclr 1.2.3, 2 cores of a model with AVX-512";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_least_time_of_a_step_is_shown_layer_by_layer() {
        let layer = |layer: &str, count, backward_ms, memory_bound| LayerTime {
            layer: layer.into(),
            count,
            gflop: 1234.5,
            gb: 2.0,
            forward_ms: 1.25,
            backward_ms,
            memory_bound,
        };
        let found = Roofline {
            case: Case::Small,
            what: "something".into(),
            precision: "f16".into(),
            card: "h200",
            milliseconds: 12.34,
            layers: vec![layer("3x3", 6, 10.25, 0.25), layer("search", 1, 0.0, 1.0)],
        };
        let expected = "\
small: something, f16
┌────────┬───────┬───────┬──────┬─────────────┬──────────────┬─────────────────┐
│ layer  ┆ times ┆ GFLOP ┆   GB ┆ forward, ms ┆ backward, ms ┆ bound by memory │
╞════════╪═══════╪═══════╪══════╪═════════════╪══════════════╪═════════════════╡
│ 3x3    ┆     6 ┆  1234 ┆ 2.00 ┆        1.25 ┆         10.2 ┆            25 % │
│ search ┆     1 ┆  1234 ┆ 2.00 ┆        1.25 ┆         0.00 ┆           100 % │
└────────┴───────┴───────┴──────┴─────────────┴──────────────┴─────────────────┘
at least 12.3 ms on H200";
        assert_eq!(roofline_tables(&[found]), expected);
    }

    #[test]
    fn points_are_told_with_what_was_varied() {
        let rows = [(Point { series: Series::QueueLength, value: 4096 }, measurement(Case::Queue, None))];
        assert!(scaling_table(&rows).contains("│ queue length ┆  4096 ┆ queue ┆"), "{}", scaling_table(&rows));
        let json = scaling_json(&rows);
        assert_eq!((&json["points"][0]["varied"], &json["points"][0]["value"]), (&json!("queue_length"), &json!(4096)));
        assert_eq!(json["points"][0]["measured"]["case"], "queue");
    }
}

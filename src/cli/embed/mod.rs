//! `snclr embed`: computes embeddings of any images by the encoder of a run.

mod images;

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;
use serde_json::json;

use super::{Global, show, values};
use crate::{
    artifact::Store,
    dataset::{FileFormat, OnError, SplitName},
    report::{
        self,
        embeddings::{self, Branch, Request},
    },
    run::{self, Reporter},
    stage::Interrupt,
};

/// Compute embeddings of any images by the encoder of a run, and write them as Parquet
///
/// Images are prepared as in the evaluation of the run. Embeddings are the features of the encoder, before the projector. The
/// file has one row per image: sample_id, split, path, label, image_sha256 (of the encoded image), embedding. Its metadata
/// names the run, the weights, the preprocessing and the classes.
///
/// If the file exists, rows of the same images are kept, and only new images are computed. A file from other weights is refused
/// unless --overwrite is given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A run's name or its beginning, its folder, or a spec's name or path (its newest run)
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Files or folders of images; or a spec (.yaml), for its data; or the key of a data artifact or its beginning
    #[arg(long, required = true, num_args = 1.., value_name = "PATH_OR_KEY")]
    pub data: Vec<PathBuf>,
    /// File to write
    #[arg(short, long, value_name = "FILE.parquet")]
    pub output: PathBuf,
    /// Format of files and folders [default: recognised by names and first bytes]
    #[arg(long, value_parser = values::choice::<FileFormat>())]
    pub format: Option<FileFormat>,
    /// File with the labels of an IDX file of images
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Split to embed, of a spec, a data artifact, or a folder of tables whose names contain splits [default: all]
    #[arg(long, value_parser = split, value_name = "train|test")]
    pub split: Option<SplitName>,
    /// What to do with an image that cannot be read [default: fail]
    #[arg(long, value_parser = on_error, value_name = "fail|skip")]
    pub on_error: Option<OnError>,
    /// Which encoder of the run to use
    #[arg(long, value_enum, default_value_t)]
    pub branch: Branch,
    /// Compute all embeddings again, and replace the file whatever it holds
    #[arg(long)]
    pub overwrite: bool,
    /// Print one JSON object, last and alone on stdout
    #[arg(long)]
    pub json: bool,
}

fn split(text: &str) -> Result<SplitName, String> {
    let split = SplitName::ALL.into_iter().find(|split| split.as_str() == text);
    split.ok_or_else(|| "expected train or test".into())
}

fn on_error(text: &str) -> Result<OnError, String> {
    match text {
        "fail" => Ok(OnError::Fail),
        "skip" => Ok(OnError::Skip),
        _ => Err("expected fail or skip".into()),
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let path = &args.output;
    values::ensure_ends_in("parquet", path)?;
    let place = path.canonicalize().ok();
    let is_data = args.data.iter().any(|data| place.is_some() && data.canonicalize().ok() == place);
    ensure!(!is_data, "{}: this file holds the images; choose another output file", path.display());
    let store = Store::open(&global.runs);
    let run = report::find(&global.runs, &args.run)?;
    let images = images::images(&args, &store)?;
    let interrupt = Interrupt::default();
    run::watch(&interrupt)?;
    let reporter = Reporter::new(global.verbosity());
    reporter.stages(&["embed"]);
    reporter.stage_begins("embed", &format!("images by the {} encoder of {}", branch(args.branch), run.record.run));
    let request = Request { images: &images, branch: args.branch, path, overwrite: args.overwrite };
    let written = embeddings::write(&store, &run, &request, &reporter, &interrupt);
    reporter.done();
    let written = written?;

    let (rows, computed, dim) = (written.rows, written.computed, written.dim);
    let reused = rows - computed;
    let skipped = match written.skipped {
        0 => String::new(),
        1 => "; 1 image skipped".to_owned(),
        n => format!("; {n} images skipped"),
    };
    let path = path.display();
    let text = format!("wrote {path}: {rows} rows of {dim} features, {computed} computed, {reused} reused{skipped}\n");
    let json = args.json.then(|| {
        json!({
            "file": path.to_string(),
            "run": run.record.run,
            "rows": rows,
            "computed": computed,
            "reused": reused,
            "skipped": written.skipped,
            "dim": dim,
        })
    });
    show::print(&text, json, global.verbosity())?;
    Ok(ExitCode::SUCCESS)
}

fn branch(branch: Branch) -> &'static str {
    match branch {
        Branch::Online => "trained",
        Branch::Momentum => "momentum",
    }
}

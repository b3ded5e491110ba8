//! `snclr views`: writes a contact sheet of the views that training would see.

use std::{
    io::{Cursor, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, ensure};
use image::ImageFormat;

use super::{Global, changes::Changes, show::print};
use crate::{
    artifact::Store,
    dataset::Split,
    report::{self, embeddings::class_names, views},
    run::{self, Reporter, Setting},
    stage::Interrupt,
    tables,
};

/// Write a contact sheet of the views that training would see: a row per image, the image first, then its crops
///
/// Augmentations, seed and order are those of the spec, so these are the very pixels that the network would see.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Spec of the experiment
    pub spec: PathBuf,
    #[command(flatten)]
    pub changes: Changes,
    /// File to write
    #[arg(short, long, alias = "out", value_name = "FILE.png", default_value = "views.png")]
    pub output: PathBuf,
    /// Images to show
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub images: u16,
    /// Epoch whose views to show, from 0
    #[arg(long, value_name = "EPOCH", default_value = "0")]
    pub epoch: u64,
}

/// Runs the command.
///
/// # Errors
/// When the spec is invalid or a sweep, its data cannot be read, or the file cannot be written.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let path = &args.output;
    ensure!(
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")),
        "{}: the name must end in .png, the only format",
        path.display()
    );
    let points = args.changes.load(&args.spec)?;
    let [point] = &points.points[..] else {
        anyhow::bail!(
            "the spec is a sweep of {} points; choose one by fixing its keys with --set",
            points.points.len()
        );
    };
    let experiment = &point.loaded.experiment;
    let (store, interrupt) = (Store::open(&global.runs), Interrupt::default());
    run::watch(&interrupt)?;
    let setting = Setting {
        store: &store,
        interrupt: &interrupt,
        checkpoint_interval: Duration::from_secs(60),
        threads: global.threads,
        planning: Mutex::default(),
        cache: None,
    };
    let data = setting.data(experiment, &Arc::new(Reporter::new(global.verbosity())))?;
    let train = Split::open(&data.files_of(&tables::TRAIN))?;
    let rows = views::rows(&train, experiment, args.epoch, args.images as usize)?;
    let mut bytes = Cursor::new(Vec::new());
    views::sheet(&rows).write_to(&mut bytes, ImageFormat::Png).context("encoding the sheet")?;
    report::file::replace(path, bytes.get_ref())?;

    let classes = class_names(&data)?;
    let row = |row: &views::Row| {
        let class = row.label.and_then(|label| classes.get(usize::try_from(label).ok()?));
        format!("sample {}{}", row.sample, class.map_or_else(String::new, |class| format!(" ({class})")))
    };
    let small = rows.first().map_or(0, |row| row.crops.len().saturating_sub(2));
    let small = (1..=small).map(|n| format!(", small {n}")).collect::<String>();
    let text = format!(
        "wrote {}\ncolumns: image, view 1, view 2{small}; as in epoch {}\nrows: {}\n",
        path.display(),
        args.epoch,
        rows.iter().map(row).collect::<Vec<_>>().join(", ")
    );
    print(&text, None, global.verbosity())?;
    std::io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}

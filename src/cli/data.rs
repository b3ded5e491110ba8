//! `snclr data`: shows what is in the images of a spec, before training.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Global, audit, show};
use crate::{
    artifact::{Artifact, Store},
    dataset::{DataConfig, DataError, OnError, Stored},
    report::{
        self,
        contents::{self, Contents, Encoder, Pairs, SplitContents, worst_first},
        duplicates::Twice,
        embeddings::{self, Branch},
        table,
    },
    run::{self, Reporter, Setting},
    spec::{self, Experiment},
    stage::{Interrupt, Progress},
};

/// The most pairs of each kind that are listed.
const NAMED: usize = 10;
/// The most classes that are listed; beyond that, only the smallest and the largest.
const CLASSES: usize = 20;

/// Show what is in the data of a spec before training: counts, sizes, classes, duplicates
///
/// Reads the images as `snclr run` does, so that a later run need not read them again. A near duplicate is an image that was
/// encoded again, resized, made brighter or darker, or cropped a little at its border. Perceptual hashes find candidates, and
/// thumbnails confirm them. Mirrored or rotated copies, and images of 16 pixels a side, are not found. Images in both splits,
/// or in two classes, come first.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Spec of the experiment
    pub spec: PathBuf,
    /// Override a key of the spec, e.g. `data.train=photos`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Also find near duplicates by the encoder of this run: its name or the beginning of it, its folder, or the name or path
    /// of a spec
    #[arg(long, value_name = "RUN")]
    pub encoder: Option<String>,
    /// Cosine of centred embeddings from which two images count as near duplicates
    #[arg(long, value_name = "COSINE", default_value = "0.95", value_parser = cosine, requires = "encoder")]
    pub similarity: f32,
    /// Also write an HTML page with thumbnails
    #[arg(short, long, value_name = "FILE.html")]
    pub output: Option<PathBuf>,
    /// Print one JSON object, last and alone on stdout
    #[arg(long)]
    pub json: bool,
}

fn cosine(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|c| (0.0..=1.0).contains(c)).ok_or_else(|| "expected a number from 0 to 1".into())
}

/// Runs the command.
///
/// # Errors
/// When the spec is invalid, its data cannot be read, or the run of the encoder is missing.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let mut experiment = spec::load(&args.spec, &args.set)?.experiment;
    let store = Store::open(&global.runs);
    let embedder = match &args.encoder {
        Some(run) => Some(embeddings::embedder(&store, &report::find(&global.runs, run)?, Branch::Online)?),
        None => None,
    };
    let encoder = embedder.as_ref().map(|embedder| Encoder { embedder, from: args.similarity });
    let interrupt = Interrupt::default();
    run::watch(&interrupt)?;
    let reporter = Arc::new(Reporter::new(global.verbosity()));
    let data = ingest(&store, &mut experiment, &interrupt, &reporter)?;
    reporter.stages(&["data"]);
    reporter.stage_begins("data", "looking at what is in it");
    let contents = contents::look(&data, encoder.as_ref(), &*reporter, &interrupt);
    reporter.done();
    let contents = contents?;

    let facts = facts(&contents);
    let mut text = to_text(&contents, &facts);
    if let Some(path) = &args.output {
        let page = report::html::contents::render(&experiment.name, &contents, &data, &facts)?;
        report::file::replace(path, page.as_bytes())?;
        text += &format!("wrote {}\n", path.display());
    }
    show::print(&text, args.json.then(|| to_json(&contents, &data)), global.verbosity())?;
    Ok(ExitCode::SUCCESS)
}

/// The data artifact of an experiment. If the spec stops at unreadable images, this still looks at the others: it changes the
/// spec to `on_error: skip`.
fn ingest(
    store: &Store,
    experiment: &mut Experiment,
    interrupt: &Interrupt,
    reporter: &Arc<Reporter>,
) -> anyhow::Result<Artifact> {
    let setting = Setting {
        store,
        interrupt,
        checkpoint_interval: Duration::from_secs(60),
        threads: None,
        planning: Mutex::default(),
        cache: None,
    };
    let error = match setting.data(experiment, reporter) {
        Ok(data) => return Ok(data),
        Err(error) => error,
    };
    let on_error = match (error.downcast_ref(), &mut experiment.data) {
        (
            Some(DataError::Image { .. } | DataError::Images { .. }),
            DataConfig::ImageFolder(config) | DataConfig::Cifar10(config) | DataConfig::Webdataset(config),
        ) => &mut config.on_error,
        (
            Some(DataError::Image { .. } | DataError::Images { .. }),
            DataConfig::Parquet(config) | DataConfig::Arrow(config),
        ) => &mut config.on_error,
        _ => return Err(error),
    };
    *on_error = OnError::Skip;
    reporter.warn(&format!("a run of this spec would stop: {error:#}"));
    setting.data(experiment, reporter)
}

/// Rows of a label and a value per split; the first row names the splits.
fn facts(contents: &Contents) -> Vec<Vec<String>> {
    let row = |what: &str, value: &dyn Fn(&SplitContents) -> String| {
        std::iter::once(what.to_owned()).chain(contents.splits.iter().map(value)).collect::<Vec<_>>()
    };
    let list = |counts: Vec<(String, u64)>| {
        let shown: Vec<_> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        if shown.is_empty() { "0".to_owned() } else { shown.join(", ") }
    };
    let by = |split: &SplitContents, name: &dyn Fn(&Stored) -> String| {
        let mut counts = std::collections::BTreeMap::<String, u64>::new();
        for (stored, images) in &split.stored {
            *counts.entry(name(stored)).or_default() += images;
        }
        list(counts.into_iter().collect())
    };
    let kinds = |counts: &std::collections::BTreeMap<String, u64>| list(counts.clone().into_iter().collect());
    let spread = |[least, middle, most]: [u32; 3]| match least == most {
        true => least.to_string(),
        false => format!("{least} to {most}, median {middle}"),
    };
    vec![
        row("", &|split| split.split.to_string()),
        row("images", &|split| split.images.to_string()),
        row("unreadable", &|split| kinds(&split.unreadable)),
        row("other files", &|split| kinds(&split.left_out)),
        row("formats", &|split| by(split, &|stored| stored.format.to_owned())),
        row("channels", &|split| {
            by(split, &|stored| match stored.bits {
                8 => stored.channels.to_owned(),
                bits => format!("{} of {bits} bits", stored.channels),
            })
        }),
        row("width", &|split| spread(split.spread(|(width, _)| *width))),
        row("height", &|split| spread(split.spread(|(_, height)| *height))),
        row("classes", &|split| split.classes.iter().filter(|(_, images)| *images > 0).count().to_string()),
        row("images of a class", &|split| {
            let counts = split.classes.iter().map(|(_, images)| *images).filter(|images| *images > 0);
            match (counts.clone().min(), counts.max()) {
                (Some(least), Some(most)) if least == most => least.to_string(),
                (Some(least), Some(most)) => format!("{least} to {most}"),
                _ => "-".to_owned(),
            }
        }),
        row("without label", &|split| split.unlabelled.to_string()),
    ]
}

fn to_text(contents: &Contents, facts: &[Vec<String>]) -> String {
    let mut text = table::lines(facts.to_vec());
    text += &classes(contents);
    let lists = contents.lists();
    let header = ["", "pairs", "in both splits", "in two classes"].map(str::to_owned).to_vec();
    let count = |pairs: &[(&Twice, Option<f32>)], counts: fn(&Twice) -> bool| {
        pairs.iter().filter(|(twice, _)| counts(twice)).count().to_string()
    };
    let row = |(name, pairs): &(&str, Pairs)| {
        let (both, two) =
            (count(pairs, |twice| twice.duplicate.leaks()), count(pairs, |twice| twice.duplicate.conflicts()));
        vec![(*name).to_owned(), pairs.len().to_string(), both, two]
    };
    text += &table::lines(std::iter::once(header).chain(lists.iter().map(row)));
    for (name, mut pairs) in lists {
        worst_first(&mut pairs);
        for (Twice { places: [again, first], .. }, likeness) in pairs.iter().take(NAMED) {
            let likeness = likeness.map_or_else(String::new, |likeness| format!(", likeness {likeness:.2}"));
            text += &format!("{name}: {} is {}{likeness}\n", audit::shown(again), audit::shown(first));
        }
        if pairs.len() > NAMED {
            text += &format!("{name}: and {} more; --json lists them\n", pairs.len() - NAMED);
        }
    }
    if contents.plain > 0 {
        text += &format!(
            "{} almost without contrast, for which near duplicates cannot be found\n",
            show::count(contents.plain as usize, "image")
        );
    }
    contents.notes.iter().for_each(|note| text += &format!("warning: {note}\n"));
    text
}

/// Images per class. Where there are too many to list, the smallest classes and then the largest.
fn classes(contents: &Contents) -> String {
    let count = contents.splits.iter().map(|split| split.classes.len()).max().unwrap_or(0);
    let of = |label: usize, split: &SplitContents| split.classes.get(label).map_or(0, |(_, images)| *images);
    let name = |label: usize| {
        let known = contents.splits.iter().find_map(|split| split.classes.get(label));
        known.map_or_else(String::new, |(name, _)| if name.is_empty() { label.to_string() } else { name.clone() })
    };
    if count == 0 {
        return String::new();
    }
    let mut labels: Vec<usize> = (0..count).collect();
    if count > CLASSES {
        labels.sort_by_key(|label| contents.splits.first().map(|split| of(*label, split)));
        labels.drain(CLASSES / 2..count - CLASSES / 2);
    }
    let header =
        std::iter::once("class".to_owned()).chain(contents.splits.iter().map(|s| s.split.to_string())).collect();
    let row = |label: &usize| {
        std::iter::once(name(*label)).chain(contents.splits.iter().map(|s| of(*label, s).to_string())).collect()
    };
    let text = table::lines(std::iter::once(header).chain(labels.iter().map(row)));
    match count > CLASSES {
        true => format!("{text}the smallest and the largest of {count} classes; --json lists all\n"),
        false => text,
    }
}

fn to_json(contents: &Contents, data: &Artifact) -> Value {
    let split = |split: &SplitContents| {
        let stored = split.stored.iter().map(|(stored, images)| {
            let Stored { format, channels, bits } = stored;
            json!({ "format": format, "channels": channels, "bits": bits, "images": images })
        });
        let spread = |[least, median, most]: [u32; 3]| json!({ "least": least, "median": median, "most": most });
        let classes = split.classes.iter().map(|(name, images)| json!({ "class": name, "images": images }));
        json!({
            "split": split.split.as_str(),
            "images": split.images,
            "unreadable": split.unreadable,
            "other_files": split.left_out,
            "stored": stored.collect::<Vec<_>>(),
            "sizes": split.sizes.len(),
            "width": spread(split.spread(|(width, _)| *width)),
            "height": spread(split.spread(|(_, height)| *height)),
            "classes": classes.collect::<Vec<_>>(),
            "without_label": split.unlabelled,
        })
    };
    let lists = contents.lists().into_iter().map(|(name, pairs)| {
        let count = |counts: fn(&Twice) -> bool| pairs.iter().filter(|(twice, _)| counts(twice)).count();
        let pair = |(twice, likeness): &(&Twice, Option<f32>)| {
            json!({ "images": twice.places.each_ref().map(audit::image), "likeness": likeness })
        };
        let list = json!({
            "both_splits": count(|twice| twice.duplicate.leaks()),
            "two_classes": count(|twice| twice.duplicate.conflicts()),
            "pairs": pairs.iter().map(pair).collect::<Vec<_>>(),
        });
        (name.replace(' ', "_"), list)
    });
    let mut object = json!({
        "data": data.key(),
        "splits": contents.splits.iter().map(split).collect::<Vec<_>>(),
        "plain": contents.plain,
        "notes": contents.notes,
    });
    lists.for_each(|(name, list)| object[name] = list);
    object
}

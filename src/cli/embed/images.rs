//! Resolves `--data` to images: files and folders, the data of a spec, or a data artifact.

use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::Args;
use crate::{
    artifact::{Found, Manifest, Store},
    dataset::{DataConfig, FileFormat, OnError, Paths, SplitName, TableConfig, has_split, shard},
    report::embeddings::{Images, class_names},
    spec,
    tables::column,
};

/// The fewest digits by which a key may be abbreviated.
const FEWEST_DIGITS: usize = 6;

/// The images that the arguments name.
///
/// # Errors
/// When the arguments name no images, or are ambiguous.
pub fn images(args: &Args, store: &Store) -> anyhow::Result<Images> {
    let of_files = args.format.is_some() || args.labels.is_some() || args.on_error.is_some();
    let of_one = |what: &str| {
        ensure!(
            args.data.len() == 1,
            "{what} cannot be combined with other data: run the command once for each, with its own output file"
        );
        ensure!(!of_files, "--format, --labels and --on-error apply to files and folders, not to {what}");
        Ok(())
    };
    for argument in &args.data {
        if let Some(manifest) = by_key(store, argument)? {
            of_one("a data artifact")?;
            return of_artifact(store, &manifest, args.split);
        }
        if argument.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            of_one("a spec")?;
            let data = spec::load(argument, &[])?.experiment.data;
            let splits = splits(args.split, |split| has_split(&data, split))?;
            return Ok(Images { data, splits: Some(splits), classes: vec![] });
        }
    }
    let format = args.format.map_or_else(|| FileFormat::infer(&args.data), Ok)?;
    let paths = match (format.splits(&args.data)?, args.split) {
        (None, None) => args.data.clone(),
        (None, Some(_)) => bail!(
            "--split applies to a spec, a data artifact, or a folder of tables or archives whose names contain `train` and `test`"
        ),
        (Some((folder, names)), None) => bail!(
            "the file names in `{}` are of several splits: {}; choose one by --split train or --split test",
            folder.display(),
            names.join(", ")
        ),
        (Some(_), Some(split)) => format.files(&args.data, split)?,
    };
    let data = format.config(&paths, args.labels.clone(), args.on_error.unwrap_or(OnError::Fail))?;
    Ok(Images { data, splits: None, classes: vec![] })
}

/// The data artifact whose key is `argument` or begins with it; None for a path, or where no artifact has such a key.
fn by_key(store: &Store, argument: &Path) -> anyhow::Result<Option<Manifest>> {
    let Some(text) = argument.to_str() else { return Ok(None) };
    let is_key = text.len() >= FEWEST_DIGITS && text.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase());
    if !is_key || argument.exists() {
        return Ok(None);
    }
    let mut found = store.manifests("data");
    found.retain(|manifest| manifest.key.as_str().starts_with(text));
    match found.len() {
        0 => bail!("there is no file, folder or data artifact `{text}`"),
        1 => Ok(found.pop()),
        n => bail!("`{text}` is ambiguous: the keys of {n} data artifacts begin with it; write more digits"),
    }
}

/// The images of a data artifact: its shards are Parquet files in the Hugging Face image schema.
fn of_artifact(store: &Store, manifest: &Manifest, split: Option<SplitName>) -> anyhow::Result<Images> {
    let short = manifest.key.short();
    let artifact = match store.find("data", &manifest.key) {
        Found::Hit(artifact) => artifact,
        Found::Missing => bail!("the data artifact {short} no longer exists"),
        Found::Damaged { what } => {
            bail!("the data artifact {short} is damaged ({what}); run a spec with this data again")
        }
    };
    let shards = |split: SplitName| artifact.files_of(&shard::table(split));
    let splits = splits(split, |split| !shards(split).is_empty())?;
    let paths = |split: SplitName| Some(Paths::Many(shards(split))).filter(|paths| !paths.as_slice().is_empty());
    let config = TableConfig {
        train: paths(SplitName::Train).context("the data artifact has no training split")?,
        test: paths(SplitName::Test),
        image_column: Some(column::IMAGE.name.to_owned()),
        label_column: Some(column::LABEL.name.to_owned()),
        on_error: OnError::Fail,
    };
    Ok(Images { data: DataConfig::Parquet(config), splits: Some(splits), classes: class_names(&artifact)? })
}

/// The requested split, or all splits.
fn splits(wanted: Option<SplitName>, has: impl Fn(SplitName) -> bool) -> anyhow::Result<Vec<SplitName>> {
    let mut found = Vec::new();
    for split in SplitName::ALL {
        if wanted.is_none_or(|wanted| wanted == split) && has(split) {
            found.push(split);
        }
    }
    if let (Some(wanted), true) = (wanted, found.is_empty()) {
        bail!("the data has no {wanted} split");
    }
    Ok(found)
}

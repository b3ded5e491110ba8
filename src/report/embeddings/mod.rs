//! Computes embeddings of any images by the encoder of a run, and writes them as Parquet. Rows that the file already holds are
//! kept.
//!
//! Images are streamed: memory holds a few batches, and the hash and row number of each row that is kept.

mod known;
mod table;

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use anyhow::{Context, anyhow};
use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Run, artifacts};
use crate::{
    artifact::{Artifact, Attempt, Leftovers, Lock, Process, Store, atomic, hash, table::TableFile},
    dataset::{DataConfig, DataError, ReadSummary, Sample, Source, SplitName},
    stage::{
        Interrupt, Progress, Stopped,
        embed::EmbedConfig,
        embedder::Embedder,
        looking_through,
        weights::{Tensor, read_weights},
    },
    tables::{CLASSES, MOMENTUM_BRANCH, WEIGHTS, column::NAME},
};
use known::Known;
use table::{About, Footer, Hash};

/// Number of batches that the reader may be ahead of the encoder.
const AHEAD: usize = 2;
/// A batch ends at this many encoded bytes, even if it holds few images.
const BATCH_BYTES: usize = 16 << 20;
/// The most skipped images that are listed.
const NAMED: usize = 5;

/// One of the encoders of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Branch {
    /// The trained encoder, which the scores of the run are from
    #[default]
    Online,
    /// The moving average of the encoder, if the method keeps one
    Momentum,
}

/// Images to embed.
#[derive(Clone, Debug)]
pub struct Images {
    pub data: DataConfig,
    /// The splits in order; None for files on the command line, which are read as the training split.
    pub splits: Option<Vec<SplitName>>,
    /// Class names by label, in place of those of the data; empty to use those of the data.
    pub classes: Vec<String>,
}

/// The embeddings to write.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub images: &'a Images,
    pub branch: Branch,
    pub path: &'a Path,
    /// Compute everything again, even rows that the file already holds.
    pub overwrite: bool,
}

/// Summary of the written file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub rows: u64,
    /// Rows whose embedding was computed now; the others were kept.
    pub computed: u64,
    /// Images that could not be read and were left out.
    pub skipped: u64,
    /// Width of an embedding.
    pub dim: usize,
}

/// Why an existing file cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InTheWay {
    #[error("{} already exists and was not written by `snclr embed`; {WHAT_TO_DO}", .0.display())]
    Foreign(PathBuf),
    #[error(
        "{} holds embeddings from other weights: {theirs}, not {ours}; {WHAT_TO_DO}", path.display()
    )]
    Weights { path: PathBuf, theirs: String, ours: String },
    #[error("{} holds embeddings of images that were prepared differently: {theirs}, not {ours}; {WHAT_TO_DO}", path.display())]
    Preprocessing { path: PathBuf, theirs: String, ours: String },
    #[error("{} is being written by {}", path.display(), holder.as_ref().map_or("another process".to_owned(), Process::describe))]
    Busy { path: PathBuf, holder: Option<Process> },
}

const WHAT_TO_DO: &str = "choose another file, or replace this one with --overwrite";

/// Writes the requested embeddings. The file is replaced as a whole, or stays as it was. After an interruption or an unreadable
/// image, the finished rows are kept beside it (`.NAME.partial`), and the next call resumes from there.
///
/// # Errors
/// [`InTheWay`]; [`Stopped`]; when artifacts of the run are missing or damaged, the data cannot be read, or the disk is full.
pub fn write(
    store: &Store,
    run: &Run,
    request: &Request,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Written> {
    let embedder = embedder(store, run, request.branch)?;
    let mut footer = footer(run, &embedder, request.branch);

    // Names without a folder have an empty parent, which cannot be synced.
    let path = std::path::absolute(request.path)?;
    let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?.to_string_lossy();
    let (dir, partial) = (path.parent().unwrap_or(Path::new("/")), path.with_file_name(format!(".{name}.partial")));
    // The lock is in the runs folder, because a lock file beside the output would be left there. The lock only avoids duplicate
    // work: a user without write access to the runs folder proceeds without it.
    let lock = format!("embed-{}", &hash::bytes(path.as_os_str().as_encoded_bytes())[..16]);
    let _lock = match Lock::attempt(&store.root().join("locks"), &lock) {
        Ok(Attempt::Busy(holder)) => return Err(InTheWay::Busy { path: request.path.to_owned(), holder }.into()),
        Ok(Attempt::Held(lock)) => Some(lock),
        Err(_) => None,
    };
    Leftovers::of(dir).remove_siblings_of(&path).with_context(|| format!("clearing up beside {}", path.display()))?;
    let known = match request.overwrite {
        true => Vec::new(),
        false => known(&path, request.path, &partial, &footer)?,
    };
    if request.overwrite {
        let _ = std::fs::remove_file(&partial);
    }

    let temporary = atomic::sibling(&path);
    let mut file =
        TableFile::create(temporary.clone(), table::schema_with(&footer, embedder.dim()), table::properties())?;
    let embedding = Embedding { embedder: &embedder, known: &known, splits: request.images.splits.is_some() };
    let mut written = Written { dim: embedder.dim(), ..Written::default() };
    let outcome = embedding.stream(request.images, &mut file, &mut written, progress, interrupt);
    let result = match outcome {
        Ok(summary) => {
            written.skipped = summary.skipped.len() as u64;
            let classes = if request.images.classes.is_empty() { &summary.classes } else { &request.images.classes };
            footer.classes = serde_json::to_string(classes)?;
            let done = file.finish(|_| footer.pairs(embedder.dim()));
            done.and_then(|_| atomic::rename(&temporary, &path)).map(|()| {
                let _ = std::fs::remove_file(&partial);
            })
        }
        Err(error) => {
            let farther = known.iter().all(|known| (known.len() as u64) < written.rows);
            if farther && written.computed > 0 {
                // Keeping the partial file is optional: the first error is the one to report.
                let _ =
                    file.finish(|_| footer.pairs(embedder.dim())).and_then(|_| atomic::rename(&temporary, &partial));
            }
            Err(error)
        }
    };
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result.map(|()| written)
}

/// An encoder of a run, with the preprocessing of its evaluation.
///
/// # Errors
/// When its artifacts are missing or damaged, or it has no such branch.
pub fn embedder(store: &Store, run: &Run, branch: Branch) -> anyhow::Result<Embedder> {
    let experiment = run.experiment()?;
    let config = EmbedConfig::new(&experiment.augmentations, &experiment.encoder);
    let weights = weights(&artifacts::stage(store, run, "pretrain")?, branch)
        .with_context(|| format!("run {}", run.record.run))?;
    Embedder::new(&config, &weights)
}

/// The encoder's tensors.
fn weights(pretrain: &Artifact, branch: Branch) -> anyhow::Result<Vec<Tensor>> {
    match branch {
        Branch::Online => read_weights(pretrain.read(WEIGHTS.name)?),
        Branch::Momentum if !pretrain.has_table(MOMENTUM_BRANCH.name) => {
            Err(anyhow!("its method has no momentum branch; omit --branch momentum to use the trained encoder"))
        }
        Branch::Momentum => {
            let all = read_weights(pretrain.read(MOMENTUM_BRANCH.name)?)?.into_iter();
            let own = |(name, shape, values): Tensor| Some((name.strip_prefix("encoder.")?.to_owned(), shape, values));
            Ok(all.filter_map(own).collect())
        }
    }
}

/// Class names of a data artifact, by label.
///
/// # Errors
/// When its table of classes cannot be read.
pub fn class_names(data: &Artifact) -> anyhow::Result<Vec<String>> {
    artifacts::Table::read(data, CLASSES)?.texts(NAME)
}

fn footer(run: &Run, embedder: &Embedder, branch: Branch) -> Footer {
    let mut encoder = run.spec["encoder"].clone();
    if let Some(section) = encoder.as_object_mut() {
        // The source of the initial weights does not matter after training.
        section.shift_remove("init");
    }
    let augmentations = &run.spec["augmentations"];
    let preprocessing = json!({
        "resize": embedder.transform().shorter_side(),
        "size": augmentations["size"],
        "mean": augmentations["mean"],
        "std": augmentations["std"],
    });
    Footer {
        encoder_sha256: embedder.digest(),
        encoder: encoder.to_string(),
        preprocessing: preprocessing.to_string(),
        run: run.record.run.clone(),
        branch: match branch {
            Branch::Online => "online".to_owned(),
            Branch::Momentum => "momentum".to_owned(),
        },
        classes: "[]".to_owned(),
    }
}

/// Files whose rows can be kept: the old file at `path` (`shown` in messages), and the partial file of an interrupted call.
fn known(path: &Path, shown: &Path, partial: &Path, footer: &Footer) -> anyhow::Result<Vec<Known>> {
    let mut all = Vec::new();
    if path.symlink_metadata().is_ok() {
        let file = Known::open(path).ok_or_else(|| InTheWay::Foreign(shown.to_owned()))?;
        in_the_way(shown, file.footer(), footer)?;
        all.push(file);
    }
    let left = Known::open(partial).filter(|file| in_the_way(partial, file.footer(), footer).is_ok());
    all.extend(left);
    Ok(all)
}

/// Refuses a file whose embeddings would differ for equal images.
fn in_the_way(path: &Path, theirs: &Footer, ours: &Footer) -> Result<(), InTheWay> {
    let path = path.to_owned();
    if (&theirs.encoder_sha256, &theirs.encoder) != (&ours.encoder_sha256, &ours.encoder) {
        let name = |footer: &Footer| {
            let digest: String = footer.encoder_sha256.chars().take(8).collect();
            format!("run {} ({} encoder {digest})", footer.run, footer.branch)
        };
        return Err(InTheWay::Weights { path, theirs: name(theirs), ours: name(ours) });
    }
    match theirs.preprocessing == ours.preprocessing {
        true => Ok(()),
        false => {
            let (theirs, ours) = (theirs.preprocessing.clone(), ours.preprocessing.clone());
            Err(InTheWay::Preprocessing { path, theirs, ours })
        }
    }
}

/// Consecutive samples of one split.
struct Batch {
    split: SplitName,
    /// Number of the first sample within its split.
    first: usize,
    samples: Vec<Sample>,
}

struct Embedding<'a> {
    embedder: &'a Embedder,
    known: &'a [Known],
    /// Whether rows hold the name of their split.
    splits: bool,
}

impl Embedding<'_> {
    /// Writes a row for each image. Another thread reads ahead.
    fn stream(
        &self,
        images: &Images,
        file: &mut TableFile,
        written: &mut Written,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<ReadSummary> {
        let splits = images.splits.clone().unwrap_or(vec![SplitName::Train]);
        let source = Source::open(&images.data, &mut looking_through(progress, interrupt, "embed"))?;
        let mut total = 0;
        for split in &splits {
            total += source.count(*split)?.with_context(|| format!("the data has no {split} split"))?;
        }
        progress.start(Some(total), "images");
        let per_batch = self.embedder.per_batch();
        let summary = thread::scope(|scope| {
            let (sender, receiver) = sync_channel(AHEAD);
            let reader = scope.spawn(move || read(&source, &splits, per_batch, &sender));
            // Dropping the receiver stops a reader that is still running.
            let outcome = self.embed(receiver, file, written, progress, interrupt);
            let summary = reader.join().map_err(|_| anyhow!("the reader of the images panicked"))?;
            outcome?;
            summary
        })?;
        for skipped in summary.skipped.iter().take(NAMED) {
            progress.warn(&format!("skipped `{}`: {}", skipped.name, skipped.reason));
        }
        if summary.skipped.len() > NAMED {
            progress.warn(&format!("skipped {} more images", summary.skipped.len() - NAMED));
        }
        for account in summary.left_out_by_kind() {
            progress.warn(&account);
        }
        Ok(summary)
    }

    fn embed(
        &self,
        batches: Receiver<Batch>,
        file: &mut TableFile,
        written: &mut Written,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        for batch in batches {
            if interrupt.requested() {
                return Err(Stopped::InterruptedAt { stage: "embed" }.into());
            }
            let hash = |sample: &Sample| -> Hash { Sha256::digest(&sample.bytes).into() };
            let hashes: Vec<Hash> = batch.samples.par_iter().map(hash).collect();
            let (embeddings, computed) = self.embeddings(&batch, &hashes)?;
            let split = self.splits.then_some(batch.split.as_str());
            let rows: Vec<About> = (batch.first as i64..)
                .zip(batch.samples)
                .zip(hashes)
                .map(|((sample_id, sample), hash)| About {
                    sample_id,
                    split,
                    path: sample.path,
                    label: sample.label,
                    hash,
                })
                .collect();
            file.write(&table::batch(&rows, embeddings, self.embedder.dim()))?;
            written.rows += rows.len() as u64;
            written.computed += computed as u64;
            progress.message(&format!("{} of them known", written.rows - written.computed));
            progress.advance(rows.len() as u64);
        }
        Ok(())
    }

    /// The embeddings of a batch, and how many of them were computed.
    fn embeddings(&self, batch: &Batch, hashes: &[Hash]) -> anyhow::Result<(Vec<f32>, usize)> {
        let dim = self.embedder.dim();
        let mut embeddings = vec![0.0; hashes.len() * dim];
        let mut put = |places: &[usize], rows: &[f32]| {
            for (place, row) in places.iter().zip(rows.chunks_exact(dim)) {
                embeddings[place * dim..(place + 1) * dim].copy_from_slice(row);
            }
        };
        let mut new: Vec<usize> = (0..hashes.len()).collect();
        for known in self.known {
            let found = new.extract_if(.., |i| known.row(&hashes[*i]).is_some()).collect::<Vec<_>>();
            let rows: Vec<u64> = found.iter().filter_map(|i| known.row(&hashes[*i])).collect();
            if !rows.is_empty() {
                put(&found, &known.embeddings(&rows, dim)?);
            }
        }
        if !new.is_empty() {
            let samples: Vec<&Sample> = new.iter().map(|i| &batch.samples[*i]).collect();
            let name = |i: usize| {
                let sample = samples[i];
                sample.path.clone().unwrap_or_else(|| format!("{} sample {}", batch.split, batch.first + new[i]))
            };
            put(&new, &self.embedder.features(&samples, name)?);
        }
        Ok((embeddings, new.len()))
    }
}

/// Reads the splits and sends their samples in batches.
fn read(
    source: &Source,
    splits: &[SplitName],
    per_batch: usize,
    sender: &SyncSender<Batch>,
) -> anyhow::Result<ReadSummary> {
    let mut all = ReadSummary::default();
    for &split in splits {
        let (mut samples, mut bytes, mut first) = (Vec::new(), 0, 0);
        let mut send = |samples: &mut Vec<Sample>| {
            let batch = Batch { split, first, samples: std::mem::take(samples) };
            first += batch.samples.len();
            sender.send(batch).context("writing has stopped")
        };
        let summary = source.read(split, &mut |sample: Sample| {
            bytes += sample.bytes.len();
            samples.push(sample);
            if samples.len() < per_batch && bytes < BATCH_BYTES {
                return Ok(());
            }
            bytes = 0;
            send(&mut samples)
        });
        let summary = summary.map_err(said_for_a_command_line)?;
        if !samples.is_empty() {
            send(&mut samples)?;
        }
        if summary.classes.len() > all.classes.len() {
            all.classes = summary.classes;
        }
        all.skipped.extend(summary.skipped);
        all.left_out.extend(summary.left_out);
    }
    Ok(all)
}

/// Rewords an error about the data so that it names the option of this command, and not the key of a spec.
fn said_for_a_command_line(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<DataError>() {
        Ok(DataError::Image { name, reason }) => {
            anyhow!("cannot read image `{name}`: {reason} (`--on-error skip` leaves such images out)")
        }
        Ok(DataError::Images { count, first, .. }) => {
            anyhow!("cannot read {count} images (`--on-error skip` leaves such images out):{first}")
        }
        Ok(other) => other.into(),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_weights_and_other_preprocessing_are_told_apart() {
        let ours = Footer {
            encoder_sha256: "a".repeat(64),
            encoder: "{}".into(),
            preprocessing: "{\"size\":16}".into(),
            run: "a-1".into(),
            branch: "online".into(),
            classes: "[]".into(),
        };
        let refused = |theirs: Footer| in_the_way(Path::new("x.parquet"), &theirs, &ours).unwrap_err().to_string();
        let renamed = Footer { run: "b-2".into(), classes: "[\"cat\"]".into(), ..ours.clone() };
        assert_eq!(in_the_way(Path::new("x.parquet"), &renamed, &ours), Ok(()));
        assert_eq!(
            refused(Footer { encoder_sha256: "b".repeat(64), run: "b-2".into(), ..ours.clone() }),
            "x.parquet holds embeddings from other weights: run b-2 (online encoder bbbbbbbb), not run a-1 \
             (online encoder aaaaaaaa); choose another file, or replace this one with --overwrite"
        );
        assert_eq!(
            refused(Footer { preprocessing: "{\"size\":32}".into(), ..ours.clone() }),
            "x.parquet holds embeddings of images that were prepared differently: {\"size\":32}, not {\"size\":16}; \
             choose another file, or replace this one with --overwrite"
        );
    }
}

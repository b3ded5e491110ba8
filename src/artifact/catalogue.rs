//! The catalogue, `tables/runs.parquet`: records and specs of all finished runs in one file, so that commands can list thousands
//! of runs without opening thousands of files. The file is derived and checked on every use: a row is valid as long as the files
//! that it was made from have not changed. The folder `tables` may be deleted at any time.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use rayon::prelude::*;
use serde_json::Value;

use super::{RunRecord, Stamp, StatCache, atomic, hash, record, table};
use crate::tables::{
    RUNS,
    column::{CREATED, NAME, RECORD, RECORD_SHA256, RUN, SPEC, SPEC_SHA256},
};

/// Folder of derived tables under the runs root.
pub const TABLES: &str = "tables";

/// The file is written again when at least this many runs are new or changed. Fewer are read just as quickly from their folders.
const WORTH_WRITING: usize = 32;

/// A finished run.
#[derive(Clone, Debug)]
pub struct Catalogued {
    /// Its folder.
    pub dir: PathBuf,
    pub record: RunRecord,
    row: Arc<Row>,
}

/// The file's row of a run: record and spec as JSON text, and the hashes of the files that they come from.
#[derive(Debug)]
struct Row {
    record: String,
    spec: String,
    record_sha256: String,
    spec_sha256: String,
}

impl Catalogued {
    /// Its resolved spec.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub fn spec(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.row.spec).with_context(|| format!("the spec of run {}", self.record.run))
    }
}

/// All finished runs under a runs root, oldest first.
///
/// # Errors
/// When the folder, a record or a spec cannot be read. A missing or damaged catalogue is no error, because it only saves time.
pub fn catalogue(root: &Path) -> anyhow::Result<Vec<Catalogued>> {
    let path = root.join(TABLES).join(format!("{}.parquet", RUNS.name));
    let kept = kept(&path).unwrap_or_default();
    let mut stamps = StatCache::open(root.join("cache").join("runs.txt"));
    let dirs = record::folders(&root.join("results"))?;
    let looked = dirs.into_par_iter().map(|dir| look(dir, &kept, &stamps)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut runs: Vec<Catalogued> = Vec::with_capacity(looked.len());
    let mut news = 0;
    for (run, stamped) in looked {
        news += usize::from(stamped.is_some());
        for (file, stamp, sha256) in stamped.into_iter().flatten() {
            stamps.record(&file, stamp, &sha256);
        }
        runs.push(run);
    }
    runs.sort_by(|a, b| (a.record.created, &a.record.run).cmp(&(b.record.created, &b.record.run)));
    if news >= WORTH_WRITING {
        // Best effort: the runs root may be read-only.
        let _ = write(&path, &runs).map(|()| stamps.save());
    }
    Ok(runs)
}

/// Files of a run with their stamps and hashes.
type Stamped = [(String, Stamp, String); 2];

/// Reads a run: from its row `kept` if its files are unchanged, otherwise from its folder. In the second case the stamps and
/// hashes of its files are returned too.
fn look(
    dir: PathBuf,
    kept: &HashMap<String, Arc<Row>>,
    stamps: &StatCache,
) -> anyhow::Result<(Catalogued, Option<Stamped>)> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let paths = [record::FILE, record::SPEC].map(|file| (format!("{name}/{file}"), dir.join(file)));
    let [record, spec] = paths.map(|(file, path)| {
        let metadata = fs::metadata(&path).with_context(|| format!("reading {}", path.display()));
        metadata.map(|metadata| (file, path, Stamp::of(&metadata)))
    });
    let (record, spec) = (record?, spec?);
    if let Some(row) = kept.get(&name)
        && stamps.lookup(&record.0, &record.2) == Some(&row.record_sha256)
        && stamps.lookup(&spec.0, &spec.2) == Some(&row.spec_sha256)
        && let Ok(record) = serde_json::from_str(&row.record)
    {
        return Ok((Catalogued { dir, record, row: row.clone() }, None));
    }
    let named = || format!("reading {}", spec.1.display());
    let bytes = fs::read(&spec.1).with_context(named)?;
    let text = serde_yaml::from_slice::<Value>(&bytes).with_context(named)?.to_string();
    let read = RunRecord::read(&dir)?;
    let row = Row {
        record: read.text()?,
        spec: text,
        record_sha256: hash::bytes(&fs::read(&record.1)?),
        spec_sha256: hash::bytes(&bytes),
    };
    let stamped = [(record.0, record.2, row.record_sha256.clone()), (spec.0, spec.2, row.spec_sha256.clone())];
    Ok((Catalogued { dir, record: read, row: Arc::new(row) }, Some(stamped)))
}

/// Rows of the file by run.
fn kept(path: &Path) -> anyhow::Result<HashMap<String, Arc<Row>>> {
    let (rows, _) = table::read_whole(path, "")?;
    let text = |column| RUNS.texts(&rows, column);
    let (runs, records, specs) = (text(RUN)?, text(RECORD)?, text(SPEC)?);
    let (record_sha256, spec_sha256) = (text(RECORD_SHA256)?, text(SPEC_SHA256)?);
    let row = |at: usize| {
        let row = Row {
            record: records.value(at).to_owned(),
            spec: specs.value(at).to_owned(),
            record_sha256: record_sha256.value(at).to_owned(),
            spec_sha256: spec_sha256.value(at).to_owned(),
        };
        (runs.value(at).to_owned(), Arc::new(row))
    };
    Ok((0..rows.num_rows()).map(row).collect())
}

fn write(path: &Path, runs: &[Catalogued]) -> anyhow::Result<()> {
    let text = |of: fn(&Catalogued) -> &String| runs.iter().map(of).collect::<Vec<_>>();
    let rows = RUNS.rows([
        RUN.of(text(|run| &run.record.run)),
        NAME.of(text(|run| &run.record.name)),
        CREATED.of(runs.iter().map(|run| run.record.created as i64).collect::<Vec<_>>()),
        RECORD.of(text(|run| &run.row.record)),
        SPEC.of(text(|run| &run.row.spec)),
        RECORD_SHA256.of(text(|run| &run.row.record_sha256)),
        SPEC_SHA256.of(text(|run| &run.row.spec_sha256)),
    ]);
    atomic::create_dir(path.parent().expect("a folder of tables"))?;
    atomic::write(path, &table::in_memory(&rows)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write_run(root: &Path, number: u64, top1: f64) -> PathBuf {
        let run = format!("sweep-{number:08}");
        let dir = root.join("results").join(&run);
        let record = json!({
            "run": run, "name": "sweep", "created": number, "stages": [], "metrics": { "knn/top1": top1 }, "notes": [],
        });
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("run.json"), record.to_string()).unwrap();
        fs::write(dir.join("spec.yaml"), format!("name: sweep\nseed: {number}\n")).unwrap();
        dir
    }

    fn seen(root: &Path) -> Vec<(u64, f64, u64)> {
        let seen = |run: &Catalogued| {
            (run.record.created, run.record.metrics["knn/top1"].unwrap(), run.spec().unwrap()["seed"].as_u64().unwrap())
        };
        catalogue(root).unwrap().iter().map(seen).collect()
    }

    #[test]
    fn a_kept_row_counts_until_a_file_of_its_run_changes() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(seen(root.path()), []);
        let dirs: Vec<_> = (0..40).map(|number| write_run(root.path(), number, 0.5)).collect();
        let mut expected: Vec<_> = (0..40).map(|number| (number, 0.5, number)).collect();
        // A second change right after a first may leave the same stamp, so hashes of files that just changed are not trusted.
        std::thread::sleep(std::time::Duration::from_millis(80));
        assert_eq!(seen(root.path()), expected);
        let file = root.path().join("tables/runs.parquet");
        let written = fs::metadata(&file).unwrap().modified().unwrap();
        let rows = kept(&file).unwrap();
        assert_eq!((rows.len(), seen(root.path())), (40, expected.clone()));
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written, "nothing is new");

        // An unchanged run comes from the file, and a change of a run's folder is seen at once.
        let stamps = StatCache::open(root.path().join("cache/runs.txt"));
        let (_, news) = look(dirs[7].clone(), &rows, &stamps).unwrap();
        assert!(news.is_none());
        write_run(root.path(), 7, 0.75);
        fs::write(dirs[8].join("spec.yaml"), "name: sweep\nseed: 88\n").unwrap();
        fs::remove_dir_all(&dirs[39]).unwrap();
        write_run(root.path(), 50, 0.25);
        (expected[7].1, expected[8].2, expected[39]) = (0.75, 88, (50, 0.25, 50));
        assert_eq!(seen(root.path()), expected);

        for harm in [|path: &Path| fs::write(path, "no Parquet").unwrap(), |path: &Path| fs::remove_file(path).unwrap()]
        {
            harm(&file);
            assert_eq!(seen(root.path()), expected);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = write_run(root.path(), 1, 0.5);
        fs::write(dir.join("run.json"), "{").unwrap();
        let error = format!("{:#}", catalogue(root.path()).unwrap_err());
        assert!(error.contains("results/sweep-00000001/run.json"), "{error}");
    }
}

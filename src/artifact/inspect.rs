//! Verifies everything in the store: bytes against hashes, values against content hashes, runs against artifacts.

use std::path::PathBuf;

use super::{Attempt, Key, Manifest, RunRecord, Store, content::TableHasher, gc::names, hash, manifest, table};

/// A file or folder that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub help: String,
}

/// The result of [`Store::inspect`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspected {
    pub artifacts: usize,
    pub checkpoints: usize,
    pub runs: usize,
    /// Bytes of artifacts that were hashed.
    pub bytes: u64,
    /// Stages whose lock another process holds; their checkpoints were not checked.
    pub busy: Vec<String>,
    pub damages: Vec<Damage>,
}

const REBUILD: &str = "`snclr run` of its spec moves it to the folder `damaged` and makes it anew";
const GO_ON: &str = "`snclr run` of its spec moves it to the folder `damaged` and goes on from what is whole";

impl Store {
    /// Bytes of artifacts that [`Store::inspect`] will hash. Artifacts without a readable manifest are not counted.
    pub fn bytes_to_inspect(&self) -> u64 {
        let manifests = self.keys().into_iter().filter_map(|(stage, key)| self.manifest(&stage, &key));
        manifests.flat_map(|manifest| manifest.files).map(|file| file.size).sum()
    }

    /// Checks every artifact, checkpoint and run record. `seen` is called with the number of bytes of each piece hashed.
    ///
    /// # Errors
    /// When the folders cannot be listed or locked; damage is no error.
    pub fn inspect(&self, seen: &mut dyn FnMut(u64)) -> anyhow::Result<Inspected> {
        let mut inspected = Inspected::default();
        for (stage, key) in self.keys() {
            inspected.artifacts += 1;
            let problem = self.inspect_artifact(&stage, &key, &mut |n| {
                inspected.bytes += n;
                seen(n);
            });
            let path = self.artifact_dir(&stage, &key);
            // If another process has moved the artifact away in the meantime, there is nothing to report.
            if let Some(problem) = problem.err().filter(|_| path.exists()) {
                inspected.damages.push(Damage { path, problem, help: REBUILD.to_owned() });
            }
        }
        for (name, path) in names(&self.root().join("work")) {
            let Some((stage, key)) = Key::parse_with_stage(&name) else { continue };
            let Attempt::Held(_lock) = self.lock(stage, &key)? else {
                inspected.busy.push(format!("{stage} {}", key.short()));
                continue;
            };
            let (whole, damaged) = self.checkpoints(stage, &key, |_| ())?.inspect()?;
            inspected.checkpoints += whole + damaged.len();
            inspected.damages.extend(damaged.into_iter().map(|(file, problem)| Damage {
                path: path.join(file),
                problem,
                help: GO_ON.to_owned(),
            }));
        }
        self.inspect_runs(&mut inspected)?;
        Ok(inspected)
    }

    fn inspect_artifact(&self, stage: &str, key: &Key, seen: &mut dyn FnMut(u64)) -> Result<(), String> {
        let manifest = self.read_manifest(stage, key)?;
        let dir = self.artifact_dir(stage, key);
        for entry in &manifest.files {
            let (file, path) = (entry.file(), dir.join(entry.file()));
            let sha256 = hash::file(&path, &mut *seen).map_err(|error| format!("{file}: {error}"))?;
            if sha256 != entry.sha256 {
                return Err(format!("{file}: does not match its hash"));
            }
            let (content, rows) = content(&path).map_err(|error| format!("{file}: {error:#}"))?;
            if (&content, rows) != (&entry.content, entry.rows) {
                return Err(format!("{file}: its values do not match their hash"));
            }
        }
        let known = |name: &str| name == manifest::FILE || manifest.files.iter().any(|entry| entry.file() == name);
        if let Some((name, _)) = names(&dir).into_iter().find(|(name, _)| !known(name)) {
            return Err(format!("{name}: the manifest does not know it"));
        }
        let Manifest { components, files, created, milliseconds, .. } = manifest.clone();
        let again = Manifest::new(stage, components, files, created, milliseconds, None);
        match again.content == manifest.content {
            true => Ok(()),
            false => Err(format!("{}: its content hash is not that of its tables", manifest::FILE)),
        }
    }

    fn inspect_runs(&self, inspected: &mut Inspected) -> anyhow::Result<()> {
        for (_, dir) in names(&self.root().join("results")) {
            if !dir.join(super::record::FILE).exists() {
                continue;
            }
            inspected.runs += 1;
            let mut damage = |problem: String, help: &str| {
                inspected.damages.push(Damage { path: dir.clone(), problem, help: help.to_owned() });
            };
            match RunRecord::read(&dir) {
                Err(error) => damage(format!("{error:#}"), "remove the folder; `snclr run` of the spec writes it anew"),
                Ok(record) => {
                    for stage in record.stages {
                        let help = "`snclr run` with the run's spec.yaml makes it anew";
                        match self.manifest(&stage.stage, &stage.key) {
                            None if !self.artifact_dir(&stage.stage, &stage.key).exists() => {
                                damage(format!("its {} artifact {} is gone", stage.stage, stage.key.short()), help);
                            }
                            Some(manifest) if manifest.content != stage.content => {
                                let what = format!("its {} artifact {} has", stage.stage, stage.key.short());
                                damage(format!("{what} other content than when the run was recorded"), help);
                            }
                            // The artifact's damage was reported above, or the artifact is as it should be.
                            _ => {}
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Content hash and number of rows of a table.
fn content(path: &std::path::Path) -> anyhow::Result<(String, u64)> {
    let schema = table::schema(path)?;
    let mut hasher = TableHasher::new(&schema)?;
    for batch in table::read(path)? {
        hasher.update(&batch?);
    }
    let rows = hasher.rows();
    Ok((hasher.finish(), rows))
}

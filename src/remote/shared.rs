//! The state that all parts of a cache share: its address, its health, and the connection.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use super::{
    Address, Failure, LONGEST_MANIFEST, Objects,
    health::Health,
    manifest_name,
    objects::{self, Meta},
    table_name,
};
use crate::artifact::{Artifact, Key, Manifest};

/// An older table is uploaded again instead of being reused, because a cleaning could remove it before the manifest that needs it
/// exists.
const FRESH: Duration = Duration::from_secs(12 * 3600);

/// What a run may do with the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Fetch what the cache has.
    Read,
    /// Fetch what the cache has, and upload what is made here.
    Write,
}

impl Mode {
    /// The mode as text: `read` or `write`.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Read => "read",
            Mode::Write => "write",
        }
    }
}

/// The address of a cache and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub address: Address,
    pub mode: Mode,
    /// Whether checkpoints are shared too.
    pub checkpoints: bool,
}

/// The state of a cache that fetching and uploading share.
pub struct Shared {
    pub options: Options,
    /// The runs folder.
    pub root: PathBuf,
    pub health: Health,
    objects: OnceLock<Result<Box<dyn Objects>, Failure>>,
}

impl Shared {
    /// The cache beside the store under `root`.
    pub fn new(options: Options, root: &Path) -> Shared {
        Shared { options, root: root.to_owned(), health: Health::default(), objects: OnceLock::new() }
    }

    /// The connection; the first call opens it.
    pub fn objects(&self) -> Result<&dyn Objects, Failure> {
        self.objects.get_or_init(|| super::open(&self.options.address)).as_deref().map_err(Clone::clone)
    }

    /// The manifest called `name` and when it was written; None when there is none.
    pub fn manifest(&self, name: &str, stage: &str, key: &Key) -> Result<Option<(Manifest, SystemTime)>, Failure> {
        let (text, written) = match objects::get(self.objects()?, name, LONGEST_MANIFEST) {
            Err(Failure::Missing) => return Ok(None),
            got => got?,
        };
        let read = Manifest::parse(&text).and_then(|manifest| {
            manifest.check_identity(stage, key)?;
            Ok(manifest)
        });
        let manifest = read.map_err(|what| damaged(name, &what))?;
        Ok(Some((manifest, written)))
    }

    /// Uploads an artifact unless a whole one is there: tables first, then the manifest. `meanwhile` is called before each table.
    pub fn upload(
        &self,
        artifact: &Artifact,
        meanwhile: &mut dyn FnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (stage, key) = (artifact.stage(), artifact.stage_key());
        let (objects, name) = (self.objects()?, manifest_name(stage, key));
        if self.is_whole(&name, stage, key)? {
            return Ok(());
        }
        for file in &artifact.manifest().files {
            meanwhile()?;
            let Some(object) = table_name(&file.sha256) else { continue };
            let is_fresh = |modified: SystemTime| modified.elapsed().is_ok_and(|age| age < FRESH);
            let counts = |meta: Meta| meta.size == file.size && is_fresh(meta.modified);
            if !self.health.trusts() || !objects.look(&object)?.is_some_and(counts) {
                objects.upload(&object, &artifact.dir().join(file.file()), file.size, &file.sha256)?;
            }
        }
        let text = artifact.manifest().text();
        match objects.put(&name, text.as_bytes(), true) {
            // Another machine was faster, or left a manifest of no use. Some servers report `Exists` even if there is no object.
            // If no whole artifact is there, ours is written.
            Err(Failure::Exists) if !self.is_whole(&name, stage, key)? => objects.put(&name, text.as_bytes(), false),
            Err(Failure::Exists) => Ok(()),
            put => put,
        }
    }

    /// Whether there is a manifest of this name whose tables all exist. Always false once any object was found damaged.
    fn is_whole(&self, name: &str, stage: &str, key: &Key) -> Result<bool, Failure> {
        if !self.health.trusts() {
            return Ok(false);
        }
        let manifest = match self.manifest(name, stage, key) {
            Ok(Some((manifest, _))) => manifest,
            Ok(None) | Err(Failure::Wrong(_)) => return Ok(false),
            Err(failure) => return Err(failure),
        };
        for file in &manifest.files {
            let Some(object) = table_name(&file.sha256) else { return Ok(false) };
            if self.objects()?.look(&object)?.is_none_or(|meta| meta.size != file.size) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The failure for an object that is not what its name says.
pub fn damaged(name: &str, what: &str) -> Failure {
    Failure::Wrong(format!("{name} is damaged: {what}"))
}

//! Receives an artifact that another machine has made, and checks its files against its manifest as they arrive.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    FileEntry, Manifest,
    hash::hex,
    writer::{Complete, Staging},
};

/// An artifact that is being received. If it is dropped before it is accepted, it leaves nothing behind.
pub struct Incoming {
    staging: Staging,
    manifest: Manifest,
    missing: BTreeSet<String>,
}

impl Incoming {
    pub(super) fn new(staging: Staging, manifest: Manifest) -> Self {
        let missing = manifest.files.iter().map(|file| file.name.clone()).collect();
        Incoming { staging, manifest, missing }
    }

    /// The manifest of the artifact that is being received.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Receives a table, whose bytes `send` passes piece by piece.
    ///
    /// # Errors
    /// [`Refused`]; an error of `send` is returned unchanged.
    pub fn take<E: From<Refused>>(
        &mut self,
        file: &FileEntry,
        send: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E>,
    ) -> Result<(), E> {
        take(&self.staging.dir().join(file.file()), file.size, &file.sha256, send)?;
        self.missing.remove(&file.name);
        Ok(())
    }

    pub(super) fn complete(self) -> anyhow::Result<Complete> {
        anyhow::ensure!(self.missing.is_empty(), "tables that have not come: {:?}", self.missing);
        self.staging.complete(self.manifest)
    }
}

/// Why received bytes were refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The bytes do not have the announced size or hash.
    #[error("{0}")]
    Wrong(String),
    /// The bytes cannot be written on this machine.
    #[error("{0:#}")]
    Unwritable(anyhow::Error),
}

/// Writes a file from the pieces that `send` passes, checks its size and hash, and makes it durable. If anything fails, the file
/// is removed.
///
/// # Errors
/// [`Refused`]; an error of `send` is returned unchanged.
pub fn take<E: From<Refused>>(
    path: &Path,
    size: u64,
    sha256: &str,
    send: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E>,
) -> Result<(), E> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unwritable = |error: std::io::Error| {
        Refused::Unwritable(anyhow::Error::new(error).context(format!("writing {}", path.display())))
    };
    let taken = (|| {
        let mut file = File::create(path).map_err(unwritable)?;
        let (mut hasher, mut seen) = (Sha256::new(), 0u64);
        send(&mut |bytes| {
            seen += bytes.len() as u64;
            if seen > size {
                return Err(Refused::Wrong(format!("{name}: more than {size} bytes")).into());
            }
            hasher.update(bytes);
            Ok(file.write_all(bytes).map_err(unwritable)?)
        })?;
        if seen != size {
            return Err(Refused::Wrong(format!("{name}: {seen} bytes instead of {size}")).into());
        }
        if hex(&hasher.finalize()) != sha256 {
            return Err(Refused::Wrong(format!("{name}: does not match its hash")).into());
        }
        Ok(file.sync_all().map_err(unwritable)?)
    })();
    if taken.is_err() {
        let _ = fs::remove_file(path);
    }
    taken
}

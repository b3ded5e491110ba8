//! The interface to a storage of objects by name.

use std::{path::Path, time::SystemTime};

use crate::artifact::Refused;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(not(feature = "remote"), expect(dead_code, reason = "without buckets none is missing or in the way"))]
pub enum Failure {
    /// There is no such object.
    #[error("there is no such object")]
    Missing,
    /// There is such an object already.
    #[error("there is such an object already")]
    Exists,
    /// The server, or the connection to it, does not work.
    #[error("{0}")]
    Broken(String),
    /// The received bytes are not the announced ones.
    #[error("{0}")]
    Wrong(String),
    /// The fault is on this machine: a file cannot be read or written.
    #[error("{0}")]
    Local(String),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        match refused {
            Refused::Wrong(what) => Failure::Wrong(what),
            Refused::Unwritable(error) => Failure::Local(format!("{error:#}")),
        }
    }
}

/// Name, size and time of an object, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub name: String,
    pub size: u64,
    pub modified: SystemTime,
}

/// Receives the bytes of an object, piece by piece.
pub type Take<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

/// Objects by name, e.g. `cas/0a1b…`. Calls block until the answer arrives or a time limit is over. Each call is one request,
/// except for large uploads and long lists.
pub trait Objects: Send + Sync {
    /// Passes the bytes of an object to `take`, and returns the time at which the object was written.
    ///
    /// # Errors
    /// [`Failure`]; an error of `take` is returned unchanged.
    fn read(&self, name: &str, take: &mut Take) -> Result<SystemTime, Failure>;

    /// Writes a small object. If `new` is set, an existing object is not replaced, as far as the server supports this.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::Exists`] when `new` is set and the object exists.
    fn put(&self, name: &str, bytes: &[u8], new: bool) -> Result<(), Failure>;

    /// Writes a file as an object, if it still has this length and hash.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::Local`] when the file has changed or cannot be read.
    fn upload(&self, name: &str, path: &Path, size: u64, sha256: &str) -> Result<(), Failure>;

    /// Name, size and time of an object; None when it does not exist.
    ///
    /// # Errors
    /// [`Failure`].
    fn look(&self, name: &str) -> Result<Option<Meta>, Failure>;

    /// Passes name, size and time of every object in `folder` to `each`.
    ///
    /// # Errors
    /// [`Failure`].
    fn list(&self, folder: &str, each: &mut dyn FnMut(Meta)) -> Result<(), Failure>;

    /// Removes an object. A missing object is no error.
    ///
    /// # Errors
    /// [`Failure`].
    fn remove(&self, name: &str) -> Result<(), Failure>;
}

/// Reads an object of at most `most` bytes: its bytes, and the time at which it was written.
///
/// # Errors
/// [`Failure`]; [`Failure::Wrong`] when the object is larger.
pub fn get(objects: &dyn Objects, name: &str, most: usize) -> Result<(Vec<u8>, SystemTime), Failure> {
    let mut bytes = Vec::new();
    let modified = objects.read(name, &mut |piece| {
        if bytes.len() + piece.len() > most {
            return Err(Failure::Wrong(format!("{name}: more than {most} bytes")));
        }
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok((bytes, modified))
}

//! The interface to stored objects, by name.

use std::{path::Path, time::SystemTime};

use crate::artifact::Refused;

/// Why a request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(not(feature = "remote"), expect(dead_code, reason = "without buckets none is missing or in the way"))]
pub enum Failure {
    /// There is no such object.
    #[error("there is no such object")]
    Missing,
    /// There is one already.
    #[error("there is such an object already")]
    Exists,
    /// The server, or the way to it, does not work.
    #[error("{0}")]
    Broken(String),
    /// What came is not what was announced.
    #[error("{0}")]
    Wrong(String),
    /// Something here does not work: a file that cannot be read or written.
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

/// What is known of an object without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub name: String,
    pub size: u64,
    pub modified: SystemTime,
}

/// Takes the bytes of an object, piece by piece.
pub type Take<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

/// Objects by name, e.g. `cas/0a1b…`. Calls wait for the answer, and end in time whatever the server does. Each is one request, but
/// for large uploads and long lists.
pub trait Objects: Send + Sync {
    /// Hands the bytes of an object to `take`; gives when it was written.
    ///
    /// # Errors
    /// [`Failure`]; what `take` fails with comes back as it is.
    fn read(&self, name: &str, take: &mut Take) -> Result<SystemTime, Failure>;

    /// Writes a small object; where `new` is set, only where there is none, as far as the server can tell.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::Exists`] where there is one and none is wanted.
    fn put(&self, name: &str, bytes: &[u8], new: bool) -> Result<(), Failure>;

    /// Writes a file as an object, if it still has this length and hash.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::Local`] when the file is another, or cannot be read.
    fn upload(&self, name: &str, path: &Path, size: u64, sha256: &str) -> Result<(), Failure>;

    /// What is known of an object; None when there is none.
    ///
    /// # Errors
    /// [`Failure`].
    fn look(&self, name: &str) -> Result<Option<Meta>, Failure>;

    /// Hands all objects in `folder` to `each`.
    ///
    /// # Errors
    /// [`Failure`].
    fn list(&self, folder: &str, each: &mut dyn FnMut(Meta)) -> Result<(), Failure>;

    /// Removes an object; one that is not there is as good.
    ///
    /// # Errors
    /// [`Failure`].
    fn remove(&self, name: &str) -> Result<(), Failure>;
}

/// The bytes of an object that has `most` at most, and when it was written.
///
/// # Errors
/// [`Failure`]; [`Failure::Wrong`] when it has more.
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

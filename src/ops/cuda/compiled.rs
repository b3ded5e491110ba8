//! Keeps compiled kernels in a folder, so that the next process need not wait for the compiler: it takes seconds per source.

use std::{fs, path::Path};

use sha2::{Digest, Sha256};

/// The result of `compile` for `source`: from the folder if it is there, else compiled now and stored there. `source` is a text
/// that contains everything that the result depends on. A folder that cannot be written to, or a damaged file in it, costs only
/// time.
///
/// # Errors
/// The errors of `compile`.
pub fn kept<E>(
    folder: Option<&Path>,
    source: &str,
    compile: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let path = folder.map(|folder| folder.join(digest(source.as_bytes())));
    if let Some(found) = path.as_deref().and_then(read) {
        return Ok(found);
    }
    let made = compile()?;
    if let Some(path) = path {
        write(&path, &made);
    }
    Ok(made)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The content of a file whose first line is the digest of the rest. None if the file is missing or damaged.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let content = &bytes[end + 1..];
    (digest(content).as_bytes() == &bytes[..end]).then(|| content.to_vec())
}

/// Writes a file. Several processes may write the same file at once: each writes a file of its own and then renames it, so that
/// the file is replaced as a whole.
fn write(path: &Path, content: &[u8]) {
    let own = path.with_extension(std::process::id().to_string());
    let text = [digest(content).as_bytes(), b"\n", content].concat();
    let folder = path.parent().expect("the file is in a folder");
    let kept = fs::create_dir_all(folder).and_then(|()| fs::write(&own, text)).and_then(|()| fs::rename(&own, path));
    if kept.is_err() {
        let _ = fs::remove_file(own);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn a_source_is_compiled_once_and_again_when_what_was_kept_is_damaged() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("kernels");
        let compiled = |source: &str| {
            let mut times = 0;
            let made = kept(Some(&folder), source, || {
                times += 1;
                Ok::<_, Infallible>(format!("{source}, compiled\n\0").into_bytes())
            });
            (String::from_utf8(made.unwrap()).unwrap(), times)
        };
        assert_eq!(compiled("a"), ("a, compiled\n\0".into(), 1));
        assert_eq!(compiled("a"), ("a, compiled\n\0".into(), 0));
        assert_eq!(compiled("b").1, 1);
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        }
        assert_eq!((compiled("a"), compiled("b").1), (("a, compiled\n\0".into(), 1), 1));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing else is left behind");
        assert!(kept(None, "a", || Err::<Vec<u8>, _>("no compiler")).is_err());
        let closed = Path::new("/proc/kernels");
        assert_eq!(kept(Some(closed), "a", || Ok::<_, Infallible>(b"x".to_vec())), Ok(b"x".to_vec()));
    }
}

//! `manifest.json`: what an artifact is, what it came from, and the hash of each of its files.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{Components, Environment, Key, hash};

/// Version of the manifest and of the store's layout.
const FORMAT: u32 = 1;

/// Name of the file.
pub const FILE: &str = "manifest.json";

/// The manifest of an artifact. All numbers are integers, so that reading a manifest and writing it again gives the same text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Stage that made it.
    pub stage: String,
    /// Key of the stage.
    pub key: Key,
    /// Leaves that the key is the hash of.
    pub components: Components,
    /// Hash of the logical content of all content tables.
    pub content: String,
    /// Seconds since 1970 at the commit; for people.
    pub created: u64,
    /// How long the stage took, in milliseconds; for people.
    pub milliseconds: u64,
    /// Where it was made; missing in older manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Tables, in the order of their names.
    pub files: Vec<FileEntry>,
    /// Hash of this manifest's text with an empty checksum.
    pub checksum: String,
}

/// Whether a table's values enter the artifact's content hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Enters the content hash: equal inputs must give equal values.
    Content,
    /// Does not enter the content hash: wall-clock figures, or reports on skipped files. Such tables are kept and checked all the
    /// same.
    Measurement,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name of the table; the file is `<name>.parquet`.
    pub name: String,
    /// Whether its values enter the artifact's content hash.
    pub kind: Kind,
    /// Number of rows.
    pub rows: u64,
    /// Hash of schema and values.
    pub content: String,
    /// Hash of each column's values; missing in older manifests.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// Length of the file in bytes.
    pub size: u64,
    /// Hash of the file's bytes.
    pub sha256: String,
}

impl FileEntry {
    /// Name of the file.
    pub fn file(&self) -> String {
        format!("{}.parquet", self.name)
    }
}

impl Manifest {
    /// The manifest of an artifact that is complete except for its commit.
    pub fn new(
        stage: &str,
        components: Components,
        mut files: Vec<FileEntry>,
        created: u64,
        milliseconds: u64,
        environment: Option<Environment>,
    ) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let content = content(&files);
        let (stage, key) = (stage.to_owned(), components.key());
        let checksum = String::new();
        let format = FORMAT;
        let mut manifest =
            Manifest { format, stage, key, components, content, created, milliseconds, environment, files, checksum };
        manifest.checksum = hash::bytes(manifest.text().as_bytes());
        manifest
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and whole numbers") + "\n"
    }

    /// Reads and checks the manifest in `dir`; the error says what is wrong with it.
    pub fn read(dir: &Path) -> Result<Manifest, String> {
        Manifest::parse(&fs::read(dir.join(FILE)).map_err(|error| format!("{FILE}: {error}"))?)
    }

    /// Reads and checks the text of a manifest; the error says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Manifest, String> {
        let mut manifest: Manifest = serde_json::from_slice(text).map_err(|error| format!("{FILE}: {error}"))?;
        if manifest.format != FORMAT {
            return Err(format!("{FILE}: format {}, but this build writes format {FORMAT}", manifest.format));
        }
        let checksum = std::mem::take(&mut manifest.checksum);
        if hash::bytes(manifest.text().as_bytes()) != checksum {
            return Err(format!("{FILE}: does not match its checksum"));
        }
        manifest.checksum = checksum;
        if let Some(file) = manifest.files.iter().find(|file| !is_plain(&file.name)) {
            return Err(format!("{FILE}: table name {:?}: not a plain name", file.name));
        }
        Ok(manifest)
    }

    /// Checks that the manifest belongs to this stage and key, and that the key is the hash of its components. The error is a
    /// message for people.
    pub fn check_identity(&self, stage: &str, key: &Key) -> Result<(), String> {
        match (self.stage.as_str(), &self.key) == (stage, key) && self.components.key() == *key {
            true => Ok(()),
            false => Err(format!("{FILE}: belongs to another stage or key")),
        }
    }
}

/// Whether a table may have this name. A plain name cannot refer to a file of another folder.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The artifact's content hash: over names and content of its content tables.
fn content(files: &[FileEntry]) -> String {
    let mut text = String::new();
    for file in files.iter().filter(|file| file.kind == Kind::Content) {
        text += &format!("{:?} {}\n", file.name, file.content);
    }
    hash::bytes(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: Kind, content: &str) -> FileEntry {
        let (columns, sha256) = (BTreeMap::new(), "ff".into());
        FileEntry { name: name.into(), kind, rows: 3, content: content.into(), columns, size: 10, sha256 }
    }

    fn manifest(files: Vec<FileEntry>) -> Manifest {
        let mut components = Components::default();
        components.insert("tau", &serde_json::json!(0.07));
        Manifest::new("knn", components, files, 1, 2, None)
    }

    #[test]
    fn measurements_are_no_part_of_the_content() {
        let content = |files| manifest(files).content;
        let base = content(vec![entry("a", Kind::Content, "1"), entry("t", Kind::Measurement, "2")]);
        assert_eq!(base, content(vec![entry("t", Kind::Measurement, "3"), entry("a", Kind::Content, "1")]));
        assert_eq!(base, content(vec![entry("a", Kind::Content, "1")]));
        assert_ne!(base, content(vec![entry("a", Kind::Content, "2")]));
        assert_ne!(base, content(vec![entry("b", Kind::Content, "1")]));
    }

    #[test]
    fn manifests_with_and_without_an_environment_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for environment in [None, Some(Environment::here())] {
            let with = Manifest::new("knn", Components::default(), Vec::new(), 1, 2, environment.clone());
            assert_eq!(with.text().contains("environment"), environment.is_some());
            fs::write(dir.path().join(FILE), with.text()).unwrap();
            assert_eq!(Manifest::read(dir.path()).unwrap(), with);
            assert_eq!(with.content, manifest(Vec::new()).content);
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed_unless_it_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifest(vec![entry("a", Kind::Content, "1")]);
        let text = manifest.text().into_bytes();
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1 << (at % 7);
            fs::write(dir.path().join(FILE), &damaged).unwrap();
            if let Ok(read) = Manifest::read(dir.path()) {
                assert_eq!(read, manifest, "byte {at}");
            }
        }
        fs::write(dir.path().join(FILE), &text[..text.len() / 2]).unwrap();
        assert!(Manifest::read(dir.path()).unwrap_err().starts_with("manifest.json: EOF while parsing"));
        fs::write(dir.path().join(FILE), &text).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), manifest);
    }
}

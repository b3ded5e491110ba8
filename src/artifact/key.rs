//! Stage keys: SHA-256 over the leaves that a stage depends on.

use std::{collections::BTreeMap, fmt};

use sha2::{Digest, Sha256};

use super::hash::hex;

/// Everything that a stage depends on: dotted name -> JSON text of the value. Values are kept as text, so that a number that is
/// read back is the number that was written, to the last bit.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Components(pub BTreeMap<String, String>);

impl Components {
    /// Adds a leaf.
    pub fn insert(&mut self, name: impl Into<String>, value: &serde_json::Value) {
        self.0.insert(name.into(), value.to_string());
    }

    /// The key: the hash of all names and values in the order of the names, each preceded by its length, so that no two sets of
    /// leaves give the same bytes.
    pub fn key(&self) -> Key {
        let mut hasher = Sha256::new();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        Key(hex(&hasher.finalize()))
    }
}

/// Key of a stage: 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..self.0.len().min(8)]
    }

    /// Parses a file name of the form `<stage>-<key>`; None when it has another form.
    pub fn parse_with_stage(name: &str) -> Option<(&str, Key)> {
        let (stage, key) = name.rsplit_once('-')?;
        Some((stage, Key::parse(key)?))
    }

    /// Parses a key, 64 lower-case hexadecimal digits; None for any other text.
    pub fn parse(text: &str) -> Option<Key> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(digit)).then(|| Key(text.to_owned()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(leaves: &[(&str, serde_json::Value)]) -> Key {
        let mut components = Components::default();
        leaves.iter().for_each(|(name, value)| components.insert(*name, value));
        components.key()
    }

    #[test]
    fn the_key_depends_on_every_name_and_value_and_not_on_their_order() {
        let base = key(&[("a", json!(1)), ("b", json!("x"))]);
        assert_eq!(base, key(&[("b", json!("x")), ("a", json!(1))]));
        for other in [
            key(&[("a", json!(2)), ("b", json!("x"))]),
            key(&[("a", json!("1")), ("b", json!("x"))]),
            key(&[("a", json!(1)), ("c", json!("x"))]),
            key(&[("a", json!(1))]),
            key(&[("a1", json!(1)), ("b", json!("x"))]),
            key(&[]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_key_is_read_back_from_a_file_name() {
        let base = key(&[("a", json!(1))]);
        assert_eq!(Key::parse(base.as_str()), Some(base.clone()));
        assert_eq!(Key::parse(base.short()), None);
        assert_eq!(Key::parse(&base.as_str().to_uppercase()), None);
        assert_eq!(Key::parse_with_stage(&format!("a-stage-{base}")), Some(("a-stage", base.clone())));
        assert_eq!(Key::parse_with_stage("a-stage"), None);
    }
}

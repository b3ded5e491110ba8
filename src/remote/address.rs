//! The address of a shared cache: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `file:///FOLDER`.

use std::{fmt, str::FromStr};

/// Kinds of storage, by the scheme of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    S3,
    Google,
    Azure,
    Folder,
}

const SCHEMES: [(&str, Scheme); 4] =
    [("s3", Scheme::S3), ("gs", Scheme::Google), ("az", Scheme::Azure), ("file", Scheme::Folder)];

/// Where a shared cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    text: String,
    scheme: Scheme,
    /// Bucket or container; empty for a folder.
    bucket: String,
    /// The prefix of all object names, or the path of the folder.
    prefix: String,
}

impl Address {
    /// The kind of storage.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Bucket or container; empty for a folder.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The prefix of all object names, or the path of the folder.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        const ALLOWED: &str =
            "expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER";
        let known = |name: &str| SCHEMES.into_iter().find(|(known, _)| *known == name);
        let (scheme, rest) = text
            .split_once("://")
            .and_then(|(name, rest)| Some((known(name)?.1, rest)))
            .ok_or_else(|| format!("{text:?}: {ALLOWED}"))?;
        let (bucket, prefix) = match scheme {
            Scheme::Folder if rest.starts_with('/') => ("", rest),
            Scheme::Folder => return Err(format!("{text:?}: a folder is given from the root, as file:///FOLDER")),
            _ => rest.split_once('/').unwrap_or((rest, "")),
        };
        if scheme != Scheme::Folder && bucket.is_empty() {
            return Err(format!("{text:?}: the bucket is missing; {ALLOWED}"));
        }
        let prefix = if scheme == Scheme::Folder { prefix } else { prefix.trim_matches('/') };
        Ok(Address { text: text.to_owned(), scheme, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_kind_a_bucket_and_a_prefix() {
        let parts = |text: &str| {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            (address.scheme, address.bucket, address.prefix)
        };
        assert_eq!(parts("s3://lab/snclr/v1/"), (Scheme::S3, "lab".into(), "snclr/v1".into()));
        assert_eq!(parts("gs://lab"), (Scheme::Google, "lab".into(), String::new()));
        assert_eq!(parts("az://lab/x"), (Scheme::Azure, "lab".into(), "x".into()));
        assert_eq!(parts("file:///mnt/cache"), (Scheme::Folder, String::new(), "/mnt/cache".into()));
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        assert_eq!(error("file://cache"), "\"file://cache\": a folder is given from the root, as file:///FOLDER");
        assert!(error("s3:///x").contains("the bucket is missing"));
        for text in ["/mnt/cache", "http://x/y", "S3:lab"] {
            assert!(error(text).contains("expected s3://BUCKET/PREFIX, gs://"), "{text}");
        }
    }
}

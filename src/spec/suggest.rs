//! Finds the nearest match: the key or value that was probably meant by an unknown one.

use super::synonyms::{KEYS, VALUES};

/// `text` without case and punctuation, so that `ResNet-18` is `resnet18`.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn synonym<'a>(found: &str, allowed: &[&'a str], table: &[(&str, &[&str])]) -> Option<&'a str> {
    let found = plain(found);
    if let Some(same) = allowed.iter().find(|name| plain(name) == found) {
        return Some(same);
    }
    let means = |ours: &str| table.iter().any(|(name, others)| *name == ours && others.contains(&found.as_str()));
    allowed.iter().find(|name| means(name)).copied()
}

fn spelling<'a>(found: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let found = plain(found);
    let near = |name: &&'a str| {
        let name_plain = plain(name);
        let distance = strsim::damerau_levenshtein(&found, &name_plain);
        let longest = found.chars().count().max(name_plain.chars().count());
        // Accept at most one slip per three letters, since shorter names are close to everything.
        (distance * 3 <= longest).then_some((distance, *name))
    };
    allowed.iter().filter_map(near).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// The key among `allowed` that has `found` as a synonym.
pub fn key_synonym<'a>(found: &str, allowed: &[&'a str]) -> Option<&'a str> {
    synonym(found, allowed, KEYS)
}

/// The key among `allowed` that is spelt nearly like `found`.
pub fn key_spelling<'a>(found: &str, allowed: &[&'a str]) -> Option<&'a str> {
    spelling(found, allowed)
}

/// The value among `allowed` that was probably meant by `found`.
pub fn value<'a>(found: &str, allowed: &[&'a str]) -> Option<&'a str> {
    synonym(found, allowed, VALUES).or_else(|| spelling(found, allowed))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::walk::Walker;

    const METHOD: &[&str] = &["name", "k", "queue_length", "gamma", "tau", "momentum"];

    #[test]
    fn other_names_of_keys() {
        for (found, ours) in [
            ("temperature", "tau"),
            ("queue_size", "queue_length"),
            ("topk", "k"),
            ("top_k", "k"),
            ("K", "k"),
            ("Queue-Length", "queue_length"),
            ("ema", "momentum"),
        ] {
            assert_eq!(key_synonym(found, METHOD), Some(ours), "{found}");
        }
        let optimizer = &["name", "base_lr", "weight_decay"];
        assert_eq!(key_synonym("lr", optimizer), Some("base_lr"));
        assert_eq!(key_synonym("learning_rate", optimizer), Some("base_lr"));
        assert_eq!(key_synonym("wd", optimizer), Some("weight_decay"));
        let experiment = &["data", "encoder", "epochs"];
        assert_eq!(key_synonym("model", experiment), Some("encoder"));
        assert_eq!(key_synonym("backbone", experiment), Some("encoder"));
        assert_eq!(key_synonym("num_epochs", experiment), Some("epochs"));
    }

    #[test]
    fn slips_of_the_pen() {
        assert_eq!(key_spelling("queue_lenght", METHOD), Some("queue_length"));
        assert_eq!(key_spelling("gama", METHOD), Some("gamma"));
        assert_eq!(key_spelling("z", METHOD), None);
        assert_eq!(key_spelling("colour", METHOD), None);
    }

    #[test]
    fn values() {
        let archs = &["resnet18", "resnet34", "resnet50"];
        for (found, ours) in
            [("resnet-18", "resnet18"), ("ResNet50", "resnet50"), ("r34", "resnet34"), ("50", "resnet50")]
        {
            assert_eq!(value(found, archs), Some(ours), "{found}");
        }
        assert_eq!(value("adam", &["sgd", "adamw", "lars"]), Some("adamw"));
        assert_eq!(value("mnist", &["parquet", "idx"]), Some("idx"));
        assert_eq!(value("vgg", archs), None);
    }

    /// An entry for a renamed key would be dead, and an entry that stands for two keys of a section would be ambiguous.
    #[test]
    fn the_table_speaks_of_keys_that_exist() {
        let schema = crate::spec::schema();
        let known: Vec<String> =
            Walker { root: &schema }.paths(&json!({})).into_iter().filter_map(|mut path| path.pop()).collect();
        for (ours, others) in KEYS {
            assert!(known.iter().any(|name| name == ours), "no key is called {ours}");
            for other in *others {
                assert_eq!(*other, plain(other), "{ours}: {other}");
            }
        }
        let text = schema.to_string();
        for (ours, others) in VALUES {
            assert!(text.contains(&format!("\"{ours}\"")), "no value is called {ours}");
            for other in *others {
                assert_eq!(*other, plain(other), "{ours}: {other}");
            }
        }
    }
}

//! Generates the reference of all keys as Markdown from the JSON Schema.

use serde_json::Value;

use super::{
    describe::{describe, show},
    schema::shared,
    walk::{Walker, is_null},
};

/// The reference: every key with its allowed values, its default and its meaning.
pub fn reference() -> String {
    let walker = Walker { root: shared() };
    let mut pages = Pages { walker, text: String::new(), told: Vec::new() };
    pages.text +=
        "# Keys of a spec\n\nGenerated from the schema by `snclr schema --markdown`; a test keeps it up to date.\n";
    pages.section("", walker.root);
    pages.text
}

struct Pages<'s> {
    walker: Walker<'s>,
    text: String,
    /// Sections that are already written, each by its definition and with its dotted key.
    told: Vec<(&'s Value, String)>,
}

impl<'s> Pages<'s> {
    /// Writes a section and then the sections inside it. `key` is its dotted key, empty for the whole spec.
    fn section(&mut self, key: &str, part: &'s Value) {
        let body = self.body(part);
        if let Some((_, first)) = self.told.iter().find(|(told, _)| std::ptr::eq(*told, body)) {
            self.text += &format!("\n## `{key}`\n\nAs [`{first}`](#{}).\n", anchor(first));
            return;
        }
        self.told.push((body, key.to_owned()));
        if !key.is_empty() {
            self.text += &format!("\n## `{key}`\n\n{}\n", meaning(part, body));
        }
        let Some(tagged) = self.walker.tagged(body) else { return self.keys(key, body, None) };
        for (name, variant) in tagged.variants {
            self.text += &format!("\n### `{}: {name}`\n\n{}\n", tagged.tag, meaning(variant, variant));
            self.keys(key, variant, Some(tagged.tag));
        }
    }

    /// Writes the table of a section's keys without its tag, and then the sections among them.
    fn keys(&mut self, key: &str, section: &'s Value, tag: Option<&str>) {
        let Some(properties) = section.get("properties").and_then(Value::as_object) else { return };
        let required = |name: &str| {
            let list = section.get("required").and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|one| one == name))
        };
        let rows: Vec<_> = properties.iter().filter(|(name, _)| tag != Some(name)).collect();
        if rows.is_empty() {
            return;
        }
        self.text += "\n| key | allowed | default | meaning |\n|---|---|---|---|\n";
        let mut inside = Vec::new();
        for (name, part) in rows {
            let dotted = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let body = self.body(part);
            let is_section = body.get("properties").is_some() || self.walker.tagged(body).is_some();
            let allowed = match is_section {
                true => format!("a section, see [`{dotted}`](#{})", anchor(&dotted)),
                false => describe(self.walker, part),
            };
            let default = match part.get("default") {
                Some(default) if !is_section && !default.is_null() => format!("`{}`", show(default)),
                _ if required(name) => "required".to_owned(),
                _ => "-".to_owned(),
            };
            self.text +=
                &format!("| `{name}` | {allowed} | {default} | {} |\n", meaning(part, body).replace('\n', " "));
            if is_section {
                inside.push((dotted, part));
            }
        }
        for (dotted, part) in inside {
            self.section(&dotted, part);
        }
    }

    /// The definition of a part, with its reference resolved. For an optional part, the alternative that is not null.
    fn body(&self, part: &'s Value) -> &'s Value {
        let part = self.walker.deref(part);
        let alternatives = self.walker.alternatives(part).unwrap_or_default();
        match alternatives.into_iter().filter(|one| !is_null(one)).collect::<Vec<_>>()[..] {
            [only] => only,
            _ => part,
        }
    }
}

/// The part's own description, or else the description of its definition.
fn meaning(part: &Value, body: &Value) -> String {
    let text = part.get("description").or_else(|| body.get("description"));
    text.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The anchor of a heading that consists of a key in code format.
fn anchor(key: &str) -> String {
    key.replace('.', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_with_what_they_allow_their_default_and_their_meaning() {
        let text = reference();
        for line in [
            "| `epochs` | a whole number, at least 1 | required | Passes over the training images. |",
            "### `name: snclr`",
            "As [`augmentations.view1`](#augmentationsview1).",
            "## `augmentations.view1.color_jitter`",
        ] {
            assert!(text.contains(line), "{line}");
        }
        assert!(text.contains("| `gamma` | a number, greater than 0 | `1.0` |"), "{text}");
    }
}

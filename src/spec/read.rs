//! Parses a spec's text into a JSON value and the places of its parts. This module does not know what the keys mean.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Map, Value};

use super::{
    error::SpecError,
    locate::{Node, Place},
    problem::Problem,
    suggest,
};

/// A spec as it was written, parsed but not validated.
#[derive(Clone)]
pub struct Document {
    pub value: Value,
    pub places: Node,
    /// Problems of single values that the schema cannot detect.
    pub errors: Vec<SpecError>,
    /// Sections of bases that were replaced as a whole, as dotted key and former variant (`name: sgd`).
    pub left_out: Vec<(String, String)>,
    /// Notes on changes to the document that its author did not request explicitly.
    pub notes: Vec<String>,
}

/// The text of the file at `path`.
pub fn text(path: &Path) -> Result<String, Vec<SpecError>> {
    let bytes = fs::read(path).map_err(|error| unreadable(io_reason(&error), nearest_file(path)))?;
    let text = String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8 text".to_owned(), None))?;
    // Some editors begin a file with a byte order mark.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The system's message for an error, without its error number.
pub fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn unreadable(reason: String, nearest: Option<String>) -> Vec<SpecError> {
    vec![SpecError { place: None, key: String::new(), problem: Problem::Unreadable { reason, nearest } }]
}

/// A spec in the same folder as `path` with nearly the same name.
pub fn nearest_file(path: &Path) -> Option<String> {
    let wanted = path.file_stem()?.to_str()?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut files: Vec<_> = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file != path && file.extension().is_some_and(|e| e == "yaml" || e == "yml") && file.is_file());
    files.sort();
    let stems: Vec<&str> = files.iter().filter_map(|file| file.file_stem()?.to_str()).collect();
    let stem = suggest::key_spelling(wanted, &stems)?;
    let nearest = files.iter().find(|file| file.file_stem().is_some_and(|s| s == stem))?;
    Some(path.with_file_name(nearest.file_name()?).display().to_string())
}

/// Parses a spec's text, which was read from `file`. An error means that nothing could be read from the text.
pub fn document(text: &str, file: &Arc<Path>) -> Result<Document, Vec<SpecError>> {
    let parsed: Result<serde_yaml::Value, _> = serde_yaml::from_str(text);
    let is_duplicate = |error: &serde_yaml::Error| error.to_string().contains("duplicate entry");
    if let Err(error) = parsed.as_ref()
        && !is_duplicate(error)
    {
        return Err(vec![syntax(text, file, error)]);
    }
    // The parser of places rejects tabs where YAML allows them, such as after a colon. A space takes the same column.
    let (places, duplicates) = Node::parse(&text.replace('\t', " "), file).map_err(|error| {
        let place = Place::File { file: file.clone(), line: error.marker().line(), column: error.marker().col() + 1 };
        let problem = Problem::Syntax { reason: error.info().to_owned(), hint: None };
        vec![SpecError { place: Some(place), key: String::new(), problem }]
    })?;
    if !duplicates.is_empty() {
        return Err(duplicates
            .into_iter()
            .map(|duplicate| SpecError {
                place: Some(duplicate.again),
                key: duplicate.path.join("."),
                problem: Problem::DuplicateKey { first: duplicate.first },
            })
            .collect());
    }
    let mut yaml = parsed.map_err(|error| vec![syntax(text, file, &error)])?;
    if let Err(error) = yaml.apply_merge() {
        return Err(vec![SpecError {
            place: None,
            key: String::new(),
            problem: Problem::Unsupported {
                what: format!("`<<` cannot be applied: {error}"),
                hint: "write `<<: *name`, where `&name` marks a section".to_owned(),
            },
        }]);
    }
    let mut converter = Converter { places: &places, path: vec![], errors: vec![] };
    let value = converter.value(yaml);
    let errors = converter.errors;
    if value.is_null() && errors.is_empty() {
        return Err(vec![SpecError { place: Some(places.value), key: String::new(), problem: Problem::Empty }]);
    }
    Ok(Document { value, places, errors, left_out: vec![], notes: vec![] })
}

/// Parses the value of an override, which can be any YAML.
pub fn fragment(text: &str) -> Result<Value, String> {
    let yaml: serde_yaml::Value = serde_yaml::from_str(text).map_err(|error| reason_of(&error))?;
    let places = Node::all_at(&Value::Null, &Place::Set("".into()));
    let mut converter = Converter { places: &places, path: vec![], errors: vec![] };
    let value = converter.value(yaml);
    match converter.errors.into_iter().next() {
        Some(error) => Err(error.problem.to_string()),
        None => Ok(value),
    }
}

fn syntax(text: &str, file: &Arc<Path>, error: &serde_yaml::Error) -> SpecError {
    let at = error.location();
    let line = at.as_ref().and_then(|at| text.lines().nth(at.line().saturating_sub(1))).unwrap_or_default();
    let reason = reason_of(error);
    let hint = if reason.starts_with(TOO_LARGE) {
        "whole numbers end at 18446744073709551615; write a larger one with an exponent, such as 1.0e+20"
    } else if reason.contains("more than one document") {
        "keep one document per file: remove the `---` between them"
    } else if reason.contains("unknown anchor") {
        "`*name` repeats what `&name` marks earlier in the file; quote the text if the `*` belongs to it"
    } else if line.trim_start_matches(' ').starts_with('\t') {
        "indent with spaces: YAML does not allow tabs"
    } else if reason.contains("mapping values are not allowed") {
        "a text with `: ` in it needs quotes; a section begins on a line of its own"
    } else {
        "check the indentation, brackets and quotes of this line and the one before"
    };
    SpecError {
        place: at.map(|at| Place::File { file: file.clone(), line: at.line(), column: at.column() }),
        key: String::new(),
        problem: Problem::Syntax { reason, hint: Some(hint) },
    }
}

const TOO_LARGE: &str = "a number is too large";

/// The message without the place at its end, which is printed in front instead.
fn reason_of(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    // serde's words for a whole number beyond 64 bits: integer `1000...` as u128.
    if let Some((_, rest)) =
        text.split_once("integer `").filter(|_| text.contains("as u128") || text.contains("as i128"))
    {
        return format!("{TOO_LARGE}: {}", rest.split('`').next().unwrap_or_default());
    }
    match error.location() {
        Some(at) => text.replacen(&format!(" at line {} column {}", at.line(), at.column()), "", 1),
        None => text,
    }
}

struct Converter<'a> {
    places: &'a Node,
    path: Vec<String>,
    errors: Vec<SpecError>,
}

impl Converter<'_> {
    fn value(&mut self, yaml: serde_yaml::Value) -> Value {
        match yaml {
            serde_yaml::Value::Null => Value::Null,
            serde_yaml::Value::Bool(flag) => Value::Bool(flag),
            serde_yaml::Value::String(text) => Value::String(text),
            serde_yaml::Value::Number(number) => self.number(&number),
            serde_yaml::Value::Sequence(items) => {
                let convert = |(i, item): (usize, _)| self.inside(i.to_string(), item);
                Value::Array(items.into_iter().enumerate().map(convert).collect())
            }
            serde_yaml::Value::Mapping(map) => {
                let mut section = Map::new();
                for (key, inner) in map {
                    if let Some(name) = self.key(&key) {
                        let inner = self.inside(name.clone(), inner);
                        section.insert(name, inner);
                    }
                }
                Value::Object(section)
            }
            serde_yaml::Value::Tagged(tagged) => {
                self.refuse(format!("tag `{}` has no meaning in a spec", tagged.tag), "remove the tag");
                self.value(tagged.value)
            }
        }
    }

    fn inside(&mut self, name: String, yaml: serde_yaml::Value) -> Value {
        self.path.push(name);
        let value = self.value(yaml);
        self.path.pop();
        value
    }

    fn number(&mut self, number: &serde_yaml::Number) -> Value {
        if let Some(whole) = number.as_u64() {
            return Value::from(whole);
        }
        if let Some(whole) = number.as_i64() {
            return Value::from(whole);
        }
        match number.as_f64().and_then(serde_json::Number::from_f64) {
            Some(finite) => Value::Number(finite),
            None => {
                self.refuse(format!("{number} is not a finite number"), "write a number such as 0.1");
                Value::Null
            }
        }
    }

    fn key(&mut self, key: &serde_yaml::Value) -> Option<String> {
        match key {
            serde_yaml::Value::String(text) => Some(text.clone()),
            serde_yaml::Value::Number(number) => Some(number.to_string()),
            serde_yaml::Value::Bool(flag) => Some(flag.to_string()),
            _ => {
                self.refuse(
                    "a key must be text".to_owned(),
                    "write `key: value`; texts with `{` or `[` in front need quotes",
                );
                None
            }
        }
    }

    fn refuse(&mut self, what: String, hint: &str) {
        self.errors.push(SpecError {
            place: Some(self.places.closest(&self.path).value.clone()),
            key: self.path.join("."),
            problem: Problem::Unsupported { what, hint: hint.to_owned() },
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_texts_and_merges() {
        let text = "a: &x {p: 1, q: 1e-3}\nb:\n  <<: *x\n  q: yes\nseed: 18446744073709551615\n";
        let document = document(text, &Path::new("a").into()).unwrap();
        assert!(document.errors.is_empty());
        assert_eq!(document.value, json!({"a": {"p": 1, "q": 0.001}, "b": {"q": "yes", "p": 1}, "seed": u64::MAX}));
        assert!(document.places.get(&["b".to_owned(), "p".to_owned()]).is_some());
    }

    #[test]
    fn values_that_specs_have_no_use_for() {
        let document = document("a: .nan\nb: !foo 1\n", &Path::new("a").into()).unwrap();
        let told: Vec<String> = document.errors.iter().map(|e| format!("{}: {}", e.key, e.problem)).collect();
        assert_eq!(told, ["a: .nan is not a finite number", "b: tag `!foo` has no meaning in a spec"]);
    }

    #[test]
    fn tabs_stand_wherever_blanks_may_separate() {
        let text = "a:\t1\nb:\t{c:\t2,\td: 3}\t# all\ne: \"x\ty\"\n";
        let document = document(text, &Path::new("a").into()).unwrap();
        assert_eq!(document.value, json!({"a": 1, "b": {"c": 2, "d": 3}, "e": "x\ty"}));
        let place = document.places.get(&["b".to_owned(), "d".to_owned()]).map(|node| node.value.clone());
        assert_eq!(place, Some(Place::File { file: Path::new("a").into(), line: 2, column: 14 }));
        assert!(super::document("a:\n\tb: 1\n", &Path::new("a").into()).is_err(), "they do not indent");
    }

    #[test]
    fn fragments() {
        assert_eq!(fragment("[1, 2]").unwrap(), json!([1, 2]));
        assert_eq!(fragment("").unwrap(), json!(null));
        assert_eq!(fragment("a/b.parquet").unwrap(), json!("a/b.parquet"));
        assert!(fragment("[1, 2").is_err());
        assert_eq!(fragment(".inf").unwrap_err(), ".inf is not a finite number");
    }
}

//! Validates a document against the JSON Schema and turns each violation into a problem that people can act on.

use std::sync::LazyLock;

use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde_json::Value;
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

use super::{
    describe::{describe, keys, range, show, type_name},
    error::SpecError,
    extends,
    locate::Place,
    problem::Problem,
    read::Document,
    schema::shared,
    suggest, sweep,
    walk::{Walker, lookup},
};

/// The form of a spec: the schema of an experiment, and the keys that are removed before the schema applies.
pub static SPEC: LazyLock<Form> = LazyLock::new(|| Form::new(shared().clone(), &[extends::KEY, sweep::KEY]));

/// The most keys of other sections that one message suggests.
const MOST_ELSEWHERE: usize = 3;

/// Pattern of texts that are printed as part of a line.
pub const ONE_LINE: &str = r"^[^\n\r]*$";

/// The schema of a kind of file, ready for validation.
pub struct Form {
    schema: Value,
    validator: Validator,
    /// Top-level keys that are removed from a file before the schema applies.
    taken: &'static [&'static str],
}

impl Form {
    /// The form of files with this schema. The top-level keys `taken` are removed before the schema applies.
    pub fn new(schema: Value, taken: &'static [&'static str]) -> Form {
        let validator = jsonschema::draft202012::new(&schema).expect("the generated schema is valid");
        Form { schema, validator, taken }
    }

    /// Every violation of the schema in `document`.
    pub fn violations(&'static self, document: &Document) -> Vec<SpecError> {
        let mut checker =
            Checker { walker: Walker { root: &self.schema }, taken: self.taken, document, errors: vec![] };
        for error in self.validator.iter_errors(&document.value) {
            checker.violation(&error);
        }
        checker.drop_consequences();
        checker.errors
    }
}

struct Checker<'d> {
    walker: Walker<'static>,
    taken: &'static [&'static str],
    document: &'d Document,
    errors: Vec<SpecError>,
}

impl<'d> Checker<'d> {
    fn violation(&mut self, error: &ValidationError) {
        let path = names(error.instance_path().as_str());
        // The last name of the schema path is the keyword. The names before it lead to the part of the schema that has the
        // keyword.
        let keyword = error.schema_path().as_str();
        let part =
            keyword.rsplit_once('/').and_then(|(part, _)| self.walker.root.pointer(part)).unwrap_or(&Value::Null);
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                for name in unexpected {
                    self.unknown_key(&path, name, part);
                }
            }
            ValidationErrorKind::Required { property } => {
                self.missing_key(&path, property.as_str().unwrap_or_default(), part);
            }
            ValidationErrorKind::OneOfNotValid { context } | ValidationErrorKind::AnyOf { context } => {
                self.alternatives(&path, part, context);
            }
            ValidationErrorKind::Type { .. }
            | ValidationErrorKind::Enum { .. }
            | ValidationErrorKind::Constant { .. } => {
                self.wrong_value(&path, part);
            }
            ValidationErrorKind::Minimum { limit } | ValidationErrorKind::Maximum { limit } => {
                self.out_of_range(&path, part, Some(limit));
            }
            ValidationErrorKind::ExclusiveMinimum { .. } | ValidationErrorKind::ExclusiveMaximum { .. } => {
                self.out_of_range(&path, part, None);
            }
            ValidationErrorKind::MinItems { .. }
            | ValidationErrorKind::MaxItems { .. }
            | ValidationErrorKind::AdditionalItems { .. } => {
                let problem = Problem::WrongLength { found: self.shown(&path), allowed: describe(self.walker, part) };
                self.at_value(&path, problem);
            }
            ValidationErrorKind::UniqueItems => {
                let problem = Problem::Repeated { found: self.shown(&path) };
                self.at_value(&path, problem);
            }
            ValidationErrorKind::Pattern { pattern } if pattern == ONE_LINE => {
                let problem = Problem::WrongType {
                    found: self.shown(&path),
                    allowed: "text without a line break".to_owned(),
                    hint: Some("it becomes part of a line: write it in one".to_owned()),
                };
                self.at_value(&path, problem);
            }
            ValidationErrorKind::Pattern { .. } => {
                let problem = Problem::BadName { found: self.shown(&path), nearest: valid_name(self.found(&path)) };
                self.at_value(&path, problem);
            }
            _ => {
                let problem = Problem::Other { reason: error.masked().to_string(), found: Some(self.shown(&path)) };
                self.at_value(&path, problem);
            }
        }
    }

    /// Reports a value that matches no alternative. If its tag or its type selects a variant, only the errors of this variant are
    /// reported.
    fn alternatives(&mut self, path: &[String], part: &'static Value, context: &[Vec<ValidationError>]) {
        let found = self.found(path);
        if let Some(index) = self.walker.chosen(part, found) {
            context[index].iter().for_each(|error| self.violation(error));
            return;
        }
        let Some(tagged) = self.walker.tagged(part) else { return self.wrong_value(path, part) };
        if !found.is_object() {
            return self.wrong_value(path, part);
        }
        let choices: Vec<&str> = tagged.variants.iter().map(|(name, _)| *name).collect();
        let mut inside = path.to_vec();
        inside.push(tagged.tag.to_owned());
        match found.get(tagged.tag) {
            Some(value) => {
                let problem = unknown_value(value, &choices);
                self.at_value(&inside, problem);
            }
            None => {
                let allowed = choices.iter().map(|name| (*name).to_owned()).collect();
                self.missing(path, tagged.tag, allowed, Some("it selects the other keys".to_owned()));
                self.misnamed_tag(path, tagged.tag, &choices);
            }
        }
    }

    /// `method: {type: snclr}`: reports that the tag `type` is called `name` here. Other keys cannot be checked without the tag.
    fn misnamed_tag(&mut self, path: &[String], tag: &str, choices: &[&str]) {
        let Some(section) = self.found(path).as_object() else { return };
        let is_tag = |name: &str, value: &Value| {
            suggest::key_synonym(name, &[tag]).is_some()
                && value.as_str().is_some_and(|text| suggest::value(text, choices).is_some())
        };
        let Some((name, value)) = section.iter().find(|(name, value)| is_tag(name, value)) else { return };
        let problem = Problem::UnknownKey {
            found: format!("{name}: {}", show(value)),
            allowed: vec![tag.to_owned()],
            nearest: vec![tag.to_owned()],
            note: None,
        };
        self.at_key(path, name, problem);
    }

    fn unknown_key(&mut self, path: &[String], name: &str, part: &'static Value) {
        let mut own = keys(part);
        if path.is_empty() {
            own.extend(self.taken.iter().map(|key| (*key).to_owned()));
        }
        let own_names: Vec<&str> = own.iter().map(String::as_str).collect();
        let value = self.found(path).get(name).unwrap_or(&Value::Null);
        let mut note = None;
        let mut nearest: Vec<String> = suggest::key_synonym(name, &own_names).map(str::to_owned).into_iter().collect();
        if nearest.is_empty() {
            note = self.belongs_to_variant(path, name);
        }
        if nearest.is_empty() && note.is_none() {
            nearest = self.elsewhere(path, |last| last == name);
        }
        if nearest.is_empty() && note.is_none() {
            nearest.extend(suggest::key_spelling(name, &own_names).map(str::to_owned));
        }
        if nearest.is_empty() && note.is_none() {
            nearest = self.elsewhere(path, |last| suggest::key_synonym(name, &[last]).is_some());
        }
        let found = format!("{name}: {}", show(value));
        self.at_key(path, name, Problem::UnknownKey { found, allowed: own, nearest, note });
    }

    /// Explains a key that belongs to another variant than the selected one, such as `eta` under `optimizer`.
    fn belongs_to_variant(&self, path: &[String], name: &str) -> Option<String> {
        let tagged = self.walker.tagged(self.walker.at(path, &self.document.value)?)?;
        let has = |part: &Value| part.get("properties").is_some_and(|properties| properties.get(name).is_some());
        let owners: Vec<&str> = tagged.variants.iter().filter(|(_, part)| has(part)).map(|(owner, _)| *owner).collect();
        if owners.is_empty() {
            return None;
        }
        let here = self.found(path).get(tagged.tag).and_then(Value::as_str)?;
        let tag = tagged.tag;
        Some(format!(
            "`{name}` belongs to `{tag}: {}`, and this section says `{tag}: {here}`; remove it, or change `{tag}`",
            owners.join("` or `")
        ))
    }

    /// Dotted keys of other sections whose last name is `wanted`.
    fn elsewhere(&self, path: &[String], wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut all = self.walker.paths(&self.document.value);
        all.retain(|other| {
            let (last, parent) = other.split_last().expect("paths are not empty");
            parent != path && wanted(last) && !is_tag(last)
        });
        // Shortest first: a key near the top is more likely meant than a deeply nested one.
        all.sort_by_key(Vec::len);
        all.truncate(MOST_ELSEWHERE);
        all.into_iter().map(|path| path.join(".")).collect()
    }

    fn missing_key(&mut self, path: &[String], name: &str, part: &'static Value) {
        let Some(property) = part.get("properties").and_then(|properties| properties.get(name)) else {
            return self.missing(path, name, vec![], None);
        };
        let about = property.get("description").or_else(|| self.walker.deref(property).get("description"));
        let mut about = about.and_then(Value::as_str).map(first_sentence);
        let section = path.join(".");
        let base = self.document.left_out.iter().rfind(|(s, _)| *s == section);
        if let (Some(about), Some((_, base))) = (&mut about, base.filter(|_| !self.is_by_option(path))) {
            about.push_str(&format!("; nothing of the base's `{base}` is kept"));
        }
        self.missing(path, name, vec![describe(self.walker, property)], about);
    }

    fn missing(&mut self, path: &[String], name: &str, allowed: Vec<String>, about: Option<String>) {
        let parent = path.join(".");
        let key = if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
        let place = self.document.places.closest(path).key.clone();
        let by_option = self.is_by_option(path);
        let problem = Problem::MissingKey { name: name.to_owned(), parent, allowed, about, by_option };
        self.push(place, key, problem);
    }

    /// Whether the section at `path` comes from `--method` or `--set`.
    fn is_by_option(&self, path: &[String]) -> bool {
        !path.is_empty() && matches!(self.document.places.closest(path).key, Place::Method(_) | Place::Set(_))
    }

    fn wrong_value(&mut self, path: &[String], part: &'static Value) {
        let found = self.found(path);
        if let Some(choices) = self.walker.choices(part)
            && (found.is_string() || found.is_number())
        {
            return self.at_value(path, unknown_value(found, &choices));
        }
        let problem = Problem::WrongType {
            found: show(found),
            allowed: describe(self.walker, part),
            hint: self.hint(path, found, part),
        };
        self.at_value(path, problem);
    }

    /// Suggests what to write instead of a value of the wrong type.
    fn hint(&self, path: &[String], found: &Value, part: &'static Value) -> Option<String> {
        let Some(name) = path.last() else {
            return Some("write lines of `key: value`".to_owned());
        };
        let wanted = type_name(self.walker.deref(part));
        match (found, wanted) {
            (Value::Null, _) => Some("give the key a value".to_owned()),
            (Value::String(text), "integer" | "number") => plain_number(path, text),
            (Value::String(text), "boolean") => {
                let flag = match text.to_lowercase().as_str() {
                    "yes" | "on" | "y" => "true",
                    "no" | "off" | "n" => "false",
                    _ => return None,
                };
                Some(format!("write `{name}: {flag}`"))
            }
            (Value::Number(number), "integer") if number.is_f64() => Some("remove the fraction".to_owned()),
            (Value::Number(_) | Value::String(_), "array") if takes_one(self.walker.deref(part)) => {
                Some(format!("write a list: `{name}: [{}]`", show(found)))
            }
            (Value::String(text), _) => self.as_section(name, text, part),
            _ => None,
        }
    }

    /// Suggests a section in place of a text: `encoder: {arch: resnet18}` for `encoder: resnet18`.
    fn as_section(&self, name: &str, text: &str, part: &'static Value) -> Option<String> {
        let sections = match self.walker.tagged(part) {
            Some(tagged) => {
                // Most likely the text names a variant.
                let names: Vec<&str> = tagged.variants.iter().map(|(name, _)| *name).collect();
                if let Some(value) = suggest::value(text, &names) {
                    return Some(format!("write a section: `{name}: {{{}: {value}}}`", tagged.tag));
                }
                tagged.variants.into_iter().map(|(_, variant)| variant).collect()
            }
            None => vec![self.walker.deref(part)],
        };
        for properties in sections.iter().filter_map(|section| section.get("properties")?.as_object()) {
            for (key, property) in properties {
                if let Some(value) = self.walker.choices(property).and_then(|choices| suggest::value(text, &choices)) {
                    return Some(format!("write a section: `{name}: {{{key}: {value}}}`"));
                }
            }
        }
        None
    }

    fn out_of_range(&mut self, path: &[String], part: &'static Value, limit: Option<&Value>) {
        let found = self.found(path);
        let is_whole = type_name(part) == "integer";
        let allowed = match range(part) {
            Some(range) if found.as_f64().is_none_or(|x| x < f64::from(u32::MAX)) => range,
            _ => format!("from {} to {}", show(&part["minimum"]), show(&part["maximum"])),
        };
        let noun = if is_whole { "a whole number" } else { "a number" };
        let nearest = limit.map(|limit| match limit.as_f64() {
            // The schema writes bounds of numbers as 0.0; people write 0.
            Some(plain) if !limit.is_u64() => plain.to_string(),
            _ => limit.to_string(),
        });
        let problem = Problem::OutOfRange { found: show(found), allowed: format!("{noun}, {allowed}"), nearest };
        self.at_value(path, problem);
    }

    /// Removes errors that follow from others. A key under a wrong name is also missing under its right name; one error covers
    /// both.
    fn drop_consequences(&mut self) {
        let explained: Vec<String> = self
            .errors
            .iter()
            .filter_map(|error| match &error.problem {
                Problem::UnknownKey { nearest, note: None, .. } => {
                    let parent = error.key.rsplit_once('.').map(|(parent, _)| format!("{parent}."));
                    let nearest = nearest.first()?;
                    Some(if nearest.contains('.') { nearest.clone() } else { parent.unwrap_or_default() + nearest })
                }
                _ => None,
            })
            .collect();
        self.errors
            .retain(|error| !(matches!(error.problem, Problem::MissingKey { .. }) && explained.contains(&error.key)));
    }

    fn found(&self, path: &[String]) -> &'d Value {
        lookup(&self.document.value, path).unwrap_or(&Value::Null)
    }

    fn shown(&self, path: &[String]) -> String {
        show(self.found(path))
    }

    fn at_value(&mut self, path: &[String], problem: Problem) {
        let place = self.document.places.closest(path).value.clone();
        self.push(place, path.join("."), problem);
    }

    fn at_key(&mut self, parent: &[String], name: &str, problem: Problem) {
        let mut path = parent.to_vec();
        path.push(name.to_owned());
        let place = self.document.places.closest(&path).key.clone();
        self.push(place, path.join("."), problem);
    }

    /// Adds an error, unless its key already has one. The first error about a value is the one that matters (its type before its
    /// bounds).
    fn push(&mut self, place: Place, key: String, problem: Problem) {
        if !self.errors.iter().any(|error| error.key == key) {
            self.errors.push(SpecError { place: Some(place), key, problem });
        }
    }
}

fn unknown_value(found: &Value, choices: &[&str]) -> Problem {
    let text = match found {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Problem::UnknownValue {
        found: show(found),
        allowed: choices.iter().map(|name| (*name).to_owned()).collect(),
        nearest: suggest::value(&text, choices).map(str::to_owned),
    }
}

/// Whether the schema of a list allows a list of one item.
fn takes_one(list: &Value) -> bool {
    list.get("minItems").and_then(Value::as_u64).is_none_or(|least| least <= 1)
}

/// The names in a JSON pointer.
fn names(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|name| name.replace("~1", "/").replace("~0", "~")).collect()
}

/// Whether a key is a tag. Tags have another meaning in every section, so they are not suggested elsewhere.
fn is_tag(name: &str) -> bool {
    name == "name" || name == "format"
}

/// The most characters of a suggested name. Up to 200 are allowed, but a long name is tedious to type.
const SUGGESTED_NAME: usize = 60;

/// A short name of allowed characters. Accents are dropped, and other characters become dashes. A name that is too long is cut
/// after a whole word, if there is one near the limit.
fn valid_name(found: &Value) -> String {
    let text: String = found.as_str().unwrap_or_default().nfd().filter(|c| !is_combining_mark(*c)).collect();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._".contains(c);
    let words: Vec<&str> = text.split(|c| !allowed(c)).filter(|word| !word.is_empty()).collect();
    let joined = words.join("-");
    let mut name = joined.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    // The name is ASCII, so byte indices are character indices.
    if name.len() > SUGGESTED_NAME {
        let end = name[..=SUGGESTED_NAME].rfind(|c: char| !c.is_ascii_alphanumeric());
        name = &name[..end.filter(|end| *end >= SUGGESTED_NAME / 2).unwrap_or(SUGGESTED_NAME)];
        name = name.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    }
    if name.is_empty() { "experiment".to_owned() } else { name.to_owned() }
}

/// Suggests how to write a number that YAML reads as text. `path` is the path of its key.
fn plain_number(path: &[String], text: &str) -> Option<String> {
    let name = path.last()?;
    let (sign, digits) = text.strip_prefix(['-', '+']).map_or(("", text), |rest| (&text[..1], rest));
    let is_number = |text: &str| text.parse::<f64>().is_ok_and(f64::is_finite);
    // Strip leading zeros. One zero stays before a decimal point, or as the only digit.
    let mut short = digits;
    while let Some(rest) = short.strip_prefix('0').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        short = rest;
    }
    let grouped = digits.replace(['_', ',', ' '], "");
    match () {
        _ if is_number(text) && short != digits => {
            Some(format!("zeros in front make it a text: write `{name}: {sign}{short}`"))
        }
        _ if is_number(text) => Some(format!("remove the quotes: `{name}: {text}`")),
        _ if is_number(&grouped) && in_thousands(digits) => {
            Some(format!("write the digits together: `{name}: {sign}{grouped}`"))
        }
        // The comma is a decimal comma, or it separates several values.
        _ if text.split(',').all(|value| is_number(value.trim())) => {
            let (key, point) = (path.join("."), text.replace(',', "."));
            let decimal = is_number(&point).then(|| format!("`{name}: {point}`, or "));
            Some(format!("write one number: {}`--sweep {key}={text}` for a run of each", decimal.unwrap_or_default()))
        }
        _ => None,
    }
}

/// Whether digits are grouped in threes, as in `10_000` and `1,281,167`.
fn in_thousands(digits: &str) -> bool {
    let mut groups = digits.split('.').next().unwrap_or_default().split(['_', ',', ' ']);
    let first = groups.next().unwrap_or_default();
    (1..=3).contains(&first.len()) && !first.starts_with('0') && groups.all(|group| group.len() == 3)
}

/// The first sentence of a doc comment, with a small first letter so that it can continue another sentence.
fn first_sentence(text: &str) -> String {
    let sentence = text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.');
    let mut chars = sentence.chars();
    match chars.next() {
        // An abbreviation (EMA, K) keeps its capitals.
        Some(first) if chars.clone().next().is_some_and(char::is_lowercase) || sentence.starts_with("A ") => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_yaml_takes_for_text_are_written_out() {
        let path = ["optimizer", "base_lr"].map(str::to_owned);
        let hint = |text: &str| plain_number(&path, text);
        let said = |hint: &str| Some(hint.to_owned());
        assert_eq!(hint("010"), said("zeros in front make it a text: write `base_lr: 10`"));
        assert_eq!(hint("-00.5"), said("zeros in front make it a text: write `base_lr: -0.5`"));
        assert_eq!(hint("000"), said("zeros in front make it a text: write `base_lr: 0`"));
        assert_eq!(hint("0.06"), said("remove the quotes: `base_lr: 0.06`"));
        assert_eq!(hint("10_000"), said("write the digits together: `base_lr: 10000`"));
        assert_eq!(hint("-1,281,167"), said("write the digits together: `base_lr: -1281167`"));
        let each = "for a run of each";
        let decimal = "write one number: `base_lr: 0.1`, or `--sweep optimizer.base_lr=0,1`";
        assert_eq!(hint("0,1"), Some(format!("{decimal} {each}")));
        let list = "write one number: `--sweep optimizer.base_lr=0.1,0.2`";
        assert_eq!(hint("0.1,0.2"), Some(format!("{list} {each}")));
        assert_eq!(hint("ten"), None);
        assert_eq!(hint(""), None);
    }

    #[test]
    fn names_that_are_suggested_are_short_and_valid() {
        let name = |text: &str| valid_name(&Value::from(text));
        assert_eq!(name(&"a".repeat(250)), "a".repeat(60));
        assert_eq!(name("my run / of  cafe\u{301} №1!"), "my-run-of-cafe-1");
        assert_eq!(name("..-x_1.-"), "x_1");
        assert_eq!(name("日本"), "experiment");
        // The name is cut after a whole word, wherever the limit falls.
        let long = format!("{} tail", ["snclr"; 30].join(" "));
        assert_eq!(name(&long), ["snclr"; 10].join("-"));
        assert_eq!(name(&format!("{}-b{}", "a".repeat(60), "b".repeat(200))), "a".repeat(60));
        assert_eq!(name(&format!("a-{}", "b".repeat(250))), format!("a-{}", "b".repeat(58)));
    }
}

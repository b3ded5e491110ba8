//! `--set a.b=c`: changes a document before it is checked. This module does not know which keys exist.

use serde_json::{Map, Value};

use super::{
    describe::show,
    error::SpecError,
    locate::{Node, Place},
    problem::Problem,
    read::{self, Document},
    variant,
};
use crate::stage::is_inside;

/// Applies `text` (`dotted.key=YAML`). Missing sections are created; list items are addressed by their index.
pub fn apply(text: &str, document: &mut Document) -> Result<(), Vec<SpecError>> {
    let place = Place::Set(text.into());
    let fail = |key: &str, reason: String, hint: &str| {
        let problem = Problem::Override { reason, hint: hint.to_owned() };
        vec![SpecError { place: Some(place.clone()), key: key.to_owned(), problem }]
    };
    let Some((key, written)) = text.split_once('=') else {
        return Err(fail("", "there is no `=`".to_owned(), "write `--set key=value`, e.g. `--set method.tau=0.2`"));
    };
    let key = key.trim();
    let names = names(key).map_err(|(reason, hint)| fail("", reason, hint))?;
    let value = read::fragment(written).map_err(|reason| {
        fail(
            key,
            format!("not a YAML value: {reason}"),
            "quote the value inside the shell's quotes: --set 'key=\"value\"'",
        )
    })?;
    let node = Node::all_at(&value, &place);
    put(document, &names, value, node).map_err(|(reason, hint)| fail(key, reason, hint))
}

/// Why a change is refused, and what to do instead.
pub type Refusal = (String, &'static str);

/// Splits a dotted key of the experiment into its names.
pub fn names(key: &str) -> Result<Vec<String>, Refusal> {
    let names: Vec<String> = key.split('.').map(str::to_owned).collect();
    if names.iter().any(String::is_empty) {
        return Err((format!("`{key}` is not a key"), "write the names with one dot between, e.g. `method.tau`"));
    }
    match names[0].as_str() {
        "extends" => Err((format!("`{key}` says what a file extends"), "write `extends:` into a spec of its own")),
        "sweep" => Err((format!("`{key}` says which keys vary"), "write `--sweep key=value,value` instead")),
        _ => Ok(names),
    }
}

/// Sets the value at `names` to `value` with the places `node`. Missing sections are created. If the value selects another
/// variant of a section, keys that this variant does not have are dropped.
pub fn put(document: &mut Document, names: &[String], value: Value, node: Node) -> Result<(), Refusal> {
    let before = variant::Before::of(document, names);
    *reach(&mut document.value, names)? = value;
    let place = node.key.clone();
    *names.iter().fold(&mut document.places, |at, name| at.child_or_insert(name, &place)) = node;
    // Earlier errors about the value that is now replaced no longer apply.
    let key = names.join(".");
    document.errors.retain(|error| !is_inside(&error.key, &key));
    if let Some(before) = before {
        variant::settle(document, names, before);
    }
    Ok(())
}

/// Applies `--method`: selects another method, and keeps the keys of the section that this method has, too.
pub fn method(name: &str, document: &mut Document) -> Result<(), Vec<SpecError>> {
    let place = Place::Method(name.into());
    let value = Value::String(name.to_owned());
    let node = Node::all_at(&value, &place);
    put(document, &variant::METHOD.map(str::to_owned), value, node).map_err(|(reason, hint)| {
        let problem = Problem::Override { reason, hint: hint.to_owned() };
        vec![SpecError { place: Some(place.clone()), key: variant::METHOD_NAME.to_owned(), problem }]
    })
}

/// The value at `names`. Missing sections and values are created.
fn reach<'v>(root: &'v mut Value, names: &[String]) -> Result<&'v mut Value, Refusal> {
    let mut at = root;
    for (depth, name) in names.iter().enumerate() {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        let around = names[..depth].join(".");
        at = match at {
            Value::Object(map) => map.entry(name.clone()).or_insert(Value::Null),
            Value::Array(items) => {
                let count = items.len();
                let index = name.parse::<usize>().ok().filter(|&index| index <= count).ok_or_else(|| {
                    let reason = format!("`{around}` is a list of {count} and has no item `{name}`");
                    (reason, "items are counted from 0; the index after the last one appends")
                })?;
                if index == count {
                    items.push(Value::Null);
                }
                &mut items[index]
            }
            scalar => {
                let reason = format!("`{around}` is {}, which has nothing inside", show(scalar));
                return Err((reason, "override the value itself, or a key of a section"));
            }
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(text: &str, override_: &str) -> Result<Document, String> {
        let mut document = read::document(text, &std::path::Path::new("a").into()).unwrap();
        apply(override_, &mut document).map_err(|errors| format!("{}: {}", errors[0].key, errors[0].problem))?;
        Ok(document)
    }

    #[test]
    fn values_sections_and_items() {
        let text = "a: {b: 1}\nl: [1, 2]\n";
        assert_eq!(set(text, "a.b=2").unwrap().value["a"], json!({"b": 2}));
        assert_eq!(set(text, "a.c.d=[x, 1.5]").unwrap().value["a"], json!({"b": 1, "c": {"d": ["x", 1.5]}}));
        assert_eq!(set(text, "a={z: true}").unwrap().value["a"], json!({"z": true}));
        assert_eq!(set(text, "l.1=5").unwrap().value["l"], json!([1, 5]));
        assert_eq!(set(text, "l.2=5").unwrap().value["l"], json!([1, 2, 5]));
        assert_eq!(set(text, "p=a=b").unwrap().value["p"], json!("a=b"));
    }

    #[test]
    fn places_are_the_override() {
        let document = set("a: {b: 1}\n", "a.c.d=2").unwrap();
        let path: Vec<String> = ["a", "c", "d"].map(str::to_owned).to_vec();
        for depth in [2, 3] {
            assert_eq!(document.places.get(&path[..depth]).unwrap().key.to_string(), "--set a.c.d=2");
        }
        assert_eq!(document.places.get(&path[..1]).unwrap().key.to_string(), "a:1:1");
    }

    #[test]
    fn a_replaced_value_is_not_complained_about() {
        assert!(set("a: .nan\n", "a=1").unwrap().errors.is_empty());
    }

    #[test]
    fn overrides_that_cannot_be_applied() {
        let fail = |override_| set("a: {b: 1}\nl: [1]\n", override_).err().unwrap();
        assert_eq!(fail("a.b"), ": there is no `=`");
        assert_eq!(fail("a..b=1"), ": `a..b` is not a key");
        assert_eq!(fail("=1"), ": `` is not a key");
        assert_eq!(fail("a.b.c=1"), "a.b.c: `a.b` is 1, which has nothing inside");
        assert_eq!(fail("sweep.seed=[1, 2]"), ": `sweep.seed` says which keys vary");
        assert_eq!(fail("extends=b.yaml"), ": `extends` says what a file extends");
        assert_eq!(fail("l.3=1"), "l.3: `l` is a list of 1 and has no item `3`");
        assert!(fail("a.b=[1").starts_with("a.b: not a YAML value: "));
    }
}

//! Checks the layers of the sources: a module may use modules of lower layers, but none of its own layer or a higher one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The layers, lowest first. Modules of one layer do not use each other.
const LAYERS: [&[&str]; 12] = [
    &["ops", "rule", "tables"],
    &["ranks"],
    &["backend"],
    &["dataset", "encoder", "method"],
    &["train"],
    &["artifact"],
    &["stage"],
    &["bench"],
    &["spec", "remote"],
    &["plan"],
    &["run", "report", "cluster"],
    &["cli"],
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The words and punctuation of a source text, without comments.
fn tokens(source: &str) -> Vec<String> {
    let code: String = source.lines().map(|line| line.split("//").next().unwrap_or("").to_owned() + "\n").collect();
    let mut tokens: Vec<String> = Vec::new();
    let mut last = ' ';
    for c in code.chars() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        match tokens.last_mut() {
            Some(token) if is_word(c) && is_word(last) || c == ':' && token == ":" => token.push(c),
            _ if !c.is_whitespace() => tokens.push(c.into()),
            _ => {}
        }
        last = c;
    }
    tokens
}

/// All paths of a source text that start with `crate` or `super`. The paths of a `use {…}` are separate.
fn paths(source: &str) -> Vec<Vec<String>> {
    /// Reads the rest of a path, which continues at token `at`. Returns the index of the token behind the path.
    fn read(tokens: &[String], mut at: usize, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
        while let Some(token) = tokens.get(at) {
            at += 1;
            if token == "{" {
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = if tokens[at] == "," { at + 1 } else { read(tokens, at, path.clone(), found) };
                }
                return at + 1;
            }
            path.push(token.clone());
            if tokens.get(at).is_none_or(|token| token != "::") {
                break;
            }
            at += 1;
        }
        found.push(path);
        if tokens.get(at).is_some_and(|token| token == "as") { at + 2 } else { at }
    }
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = ["crate", "super"].contains(&&*tokens[at]) && (at == 0 || tokens[at - 1] != "::");
        at = if begins { read(&tokens, at, Vec::new(), &mut found) } else { at + 1 };
    }
    found
}

/// Modules that a source text names in `crate::` paths.
fn uses(source: &str) -> Vec<String> {
    paths(source).into_iter().filter(|path| path[0] == "crate" && path.len() > 1).map(|path| path[1].clone()).collect()
}

fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, visit),
            false => visit(&path),
        }
    }
}

#[test]
fn imports_go_downwards_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut checked = 0;
    walk(&src, &mut |path| {
        let inner = path.strip_prefix(&src).unwrap();
        let own = inner.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if inner.extension().is_none_or(|extension| extension != "rs") || ["engine", "lib", "main"].contains(&&*own) {
            return;
        }
        let own_layer = layer(&own).unwrap_or_else(|| panic!("{}: no layer for module `{own}`", inner.display()));
        for used in uses(&fs::read_to_string(path).unwrap()) {
            checked += 1;
            match layer(&used) {
                _ if used == own => {}
                Some(used_layer) if used_layer < own_layer => {}
                Some(_) => wrong.push(format!("{}: `{own}` must not use `{used}`", inner.display())),
                None => wrong.push(format!("{}: `{used}` is no module with a layer", inner.display())),
            }
        }
    });
    assert!(checked > 10, "found hardly any imports");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_every_form() {
    let source = "
        use crate::ops::Real; // use crate::cli::x
        use crate::{
            dataset::{DataConfig, augment::Pipeline},
            encoder, method as m,
        };
        fn f() { crate::run::go(); xcrate::nothing(); }
        pub(in crate::stage) struct S;
    ";
    let expected = ["crate::ops::Real", "crate::dataset::DataConfig", "crate::dataset::augment::Pipeline"];
    let found: Vec<String> = paths(source).iter().map(|path| path.join("::")).collect();
    assert_eq!(found[..3], expected);
    assert_eq!(uses(source), ["ops", "dataset", "dataset", "encoder", "method", "run", "stage"]);
    assert_eq!(paths("use super::super::{a, b::*};").len(), 2);
}

/// The files and folders within a folder do not use each other in a cycle, so they can be read one after another. Tests may use
/// any file, and a file may use the files below it.
#[test]
fn files_beside_each_other_do_not_use_each_other_in_a_circle() {
    let mut sources: BTreeMap<Vec<String>, String> = BTreeMap::new();
    walk(Path::new("src"), &mut |path| {
        let name = |part: &std::ffi::OsStr| part.to_str().unwrap().trim_end_matches(".rs").to_owned();
        let mut module: Vec<String> = path.iter().skip(1).map(name).collect();
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        let is_test = module.iter().any(|part| part.contains("test"));
        if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
            let source = fs::read_to_string(path).unwrap();
            sources.insert(module, source.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned());
        }
    });

    // For each folder, its files with the files beside them that they use.
    let mut folders: BTreeMap<&[String], BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for (module, source) in &sources {
        for path in paths(source) {
            let above = path.iter().take_while(|part| *part == "super").count();
            let base = if above == 0 { &[][..] } else { &module[..module.len().saturating_sub(above)] };
            let target = [base, &path[above.max(1)..]].concat();
            let Some((used, _)) = (1..=target.len()).rev().find_map(|n| sources.get_key_value(&target[..n])) else {
                continue;
            };
            let shared = module.iter().zip(used).take_while(|(a, b)| a == b).count();
            if let (Some(user), Some(used)) = (module.get(shared), used.get(shared)) {
                folders.entry(&module[..shared]).or_default().entry(user).or_default().insert(used);
            }
        }
    }
    assert!(folders.len() > 10, "found hardly any imports");
    let mut circles = Vec::new();
    for (folder, uses) in &folders {
        for start in uses.keys() {
            let (mut seen, mut open) = (BTreeSet::new(), vec![*start]);
            while let Some(file) = open.pop() {
                open.extend(uses.get(file).into_iter().flatten().filter(|used| seen.insert(**used)));
            }
            if seen.contains(start) {
                circles.push(format!("{}/{start}", folder.join("/")));
            }
        }
    }
    assert!(circles.is_empty(), "files that lead back to themselves: {}", circles.join(", "));
}

/// Arguments, their names and their help belong to `src/cli`: no other module uses clap.
#[test]
fn only_the_command_line_knows_clap() {
    let mut wrong = Vec::new();
    walk(Path::new("src"), &mut |path| {
        let inside = path.starts_with("src/cli") || path.ends_with("main.rs");
        if !inside
            && path.extension().is_some_and(|e| e == "rs")
            && fs::read_to_string(path).unwrap().contains("clap::")
        {
            wrong.push(path.display().to_string());
        }
    });
    assert!(wrong.is_empty(), "clap outside src/cli: {wrong:?}");
}

/// The example of a page of `docs/contributing`, which shows how to add something of its kind.
struct Example {
    /// The section of docs/design.md that lists the files.
    section: &'static str,
    /// The word by which files name the example.
    word: &'static str,
    /// Files that use the word for something else, or for more than another example would need.
    besides: &'static [&'static str],
}

const EXAMPLES: [Example; 3] = [
    Example {
        section: "A method",
        word: "nnclr",
        besides: &["src/spec/variant.rs", "tests/docs.rs", "tests/sweep.rs"],
    },
    Example { section: "An operation", word: "gelu", besides: &["src/backend/layers.rs", "src/encoder/vit/mod.rs"] },
    Example {
        section: "A data format",
        word: "idx",
        besides: &[
            "src/cli/embed/mod.rs",
            "src/ops/topk/tests.rs",
            "src/plan/estimate.rs",
            "src/spec/merge.rs",
            "src/spec/semantic.rs",
            "src/spec/suggest.rs",
            "src/spec/walk.rs",
            "src/stage/votes.rs",
            "tests/spec_errors.rs",
        ],
    },
];

/// Whether a word of `text` starts with `word`, in upper or lower case.
fn names(text: &str, word: &str) -> bool {
    let text = text.to_lowercase();
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(char::is_alphanumeric))
}

/// The lists in the documentation name every file that a contributor has to change. A page counts only if it is listed, because
/// most pages that name an example need no change.
#[test]
fn the_files_that_name_an_example_are_those_that_the_documentation_lists() {
    let design = fs::read_to_string("docs/design.md").unwrap();
    for Example { section, word, besides } in EXAMPLES {
        let text = design.split(&format!("### {section}\n")).nth(1).unwrap().split("\n### ").next().unwrap();
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        let files = rows.flat_map(|row| row.split(", ").map(|file| file.trim_matches('`').to_owned()));
        let listed: BTreeSet<String> = files.collect();

        let mut naming: BTreeSet<String> = listed.iter().filter(|file| file.starts_with("docs/")).cloned().collect();
        naming.retain(|page| fs::read_to_string(page).is_ok_and(|text| names(&text, word)));
        for folder in ["src", "tests", "schemas"] {
            walk(Path::new(folder), &mut |path| {
                let name = path.to_str().unwrap();
                let is_read =
                    !name.starts_with("tests/golden") && !besides.contains(&name) && name != "tests/layers.rs";
                if is_read && fs::read_to_string(path).is_ok_and(|text| names(&text, word)) {
                    naming.insert(name.to_owned());
                }
            });
        }
        assert_eq!(naming, listed, "the files that name `{word}`, and the list of `{section}` in docs/design.md");
    }
}

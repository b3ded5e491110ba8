//! Imports go one way: a module may use modules of lower layers, never of its own or a higher one.

use std::{fs, path::Path};

/// Lowest first; modules of one layer do not use each other.
const LAYERS: [&[&str]; 10] = [
    &["ops", "rule", "tables"],
    &["backend"],
    &["dataset", "encoder", "method"],
    &["train"],
    &["artifact"],
    &["stage"],
    &["spec"],
    &["plan"],
    &["run", "report", "bench"],
    &["cli"],
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Modules that a source text names in `crate::` paths, `use crate::{…}` included, comments left out.
fn uses(source: &str) -> Vec<String> {
    let code: String = source.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            None => found.push(name(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in group.char_indices() {
                    match c {
                        '}' if depth == 0 => break,
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            found.push(name(&group[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
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
        if inner.extension().is_none_or(|extension| extension != "rs") || own == "lib" || own == "main" {
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
    assert_eq!(uses(source), ["ops", "dataset", "encoder", "method", "run", "stage"]);
}

/// Arguments, their names and their help are the business of the command line alone.
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

/// What names `nnclr` as one method among others, and what as an example.
const EXAMPLES: [&str; 3] = ["src/spec/variant.rs", "tests/docs.rs", "tests/sweep.rs"];

/// Whoever adds a method finds in the documentation every file that he has to change.
#[test]
fn the_files_that_name_a_method_are_those_that_the_documentation_lists() {
    let design = fs::read_to_string("docs/design.md").unwrap();
    let section = design.split("### A method\n").nth(1).unwrap().split("\n### ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut listed: Vec<String> = rows.map(str::to_owned).collect();
    listed.sort();

    let mut naming = vec!["docs/methods.md".to_owned(), "docs/reference.md".to_owned()];
    for folder in ["src", "tests", "schemas"] {
        walk(Path::new(folder), &mut |path| {
            let name = path.to_str().unwrap();
            let is_read = !name.starts_with("tests/golden") && !EXAMPLES.contains(&name) && name != "tests/layers.rs";
            let named = || fs::read_to_string(path).is_ok_and(|text| text.to_lowercase().contains("nnclr"));
            if is_read && named() {
                naming.push(name.to_owned());
            }
        });
    }
    naming.sort();
    assert_eq!(naming, listed, "the files that name `nnclr`, and the list in docs/design.md");
}

//! The tables on disk have the columns that the program declares, and the documentation lists the same columns.

mod common;

use std::{collections::BTreeSet, fs, path::Path};

use arrow::datatypes::{DataType, Schema};
use common::Scratch;
use snclr::{
    artifact::{Store, table},
    plan::Stage,
    tables::{self, Table, column::Column},
};

/// Asserts that a file has the declared columns: their names, their types, and whether a value may be missing.
fn assert_declared(declared: &Table, path: &Path) {
    let schema = table::schema(path).expect("a schema");
    let widths = schema.fields().iter().filter_map(|field| match field.data_type() {
        DataType::FixedSizeList(_, width) => Some(*width as usize),
        _ => None,
    });
    let width = widths.max().unwrap_or(0);
    let found = Schema::new(schema.fields().clone());
    assert_eq!(found, *declared.schema_of_width(width), "{}", path.display());
}

#[test]
fn every_table_of_an_experiment_is_as_its_stage_declares_it() {
    let scratch = Scratch::new();
    scratch.json("run tiny.yaml --json");
    assert_eq!(scratch.run("export tiny -o w.safetensors").code, 0);
    scratch.json("run tiny.yaml --json --set encoder.init=w.safetensors");

    let store = Store::open(&scratch.path("runs"));
    for stage in Stage::ALL {
        let declared = stage.descriptor().tables;
        let mut written = BTreeSet::new();
        for manifest in store.manifests(stage.name()) {
            let artifact = store.artifact(stage.name(), &manifest.key).expect("an artifact");
            for name in artifact.tables() {
                let table = declared.iter().find(|table| table.is(&name));
                let table = table.unwrap_or_else(|| panic!("{stage} declares no table {name}"));
                assert_declared(table, &artifact.table_path(&name).expect("a file"));
                written.insert(table.name);
            }
        }
        assert_eq!(written, declared.iter().map(|table| table.name).collect(), "tables of {stage}");
    }
    let results =
        fs::read_dir(scratch.path("runs/results")).expect("results").next().expect("a run").expect("a folder");
    assert_declared(&tables::REPORT, &results.path().join("report.parquet"));
}

/// The names in backticks in the first column of the page's table below `heading`.
fn documented(page: &str, heading: &str) -> Vec<String> {
    let page = fs::read_to_string(page).expect("a page");
    let rows = page.split(heading).nth(1).expect("the heading").lines().skip_while(|line| !line.starts_with("| `"));
    let cells = rows.map_while(|row| row.strip_prefix("| ")?.split(" |").next().map(str::to_owned));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_documentation_lists_the_columns_that_there_are() {
    let names = |columns: &[Column]| columns.iter().map(|column| column.name.to_owned()).collect::<Vec<_>>();
    assert_eq!(documented("docs/how-to/embed.md", "## Read it"), names(tables::EMBEDDINGS.columns));
    // The page leaves out the first two columns, step and epoch.
    assert_eq!(
        documented("docs/methods.md", "## Which positives did it use?"),
        names(&tables::POSITIVENESS.columns[2..])
    );
    for (page, table) in [
        ("docs/design.md", tables::FEATURES),
        ("docs/how-to/export.md", tables::FEATURES),
        ("docs/design.md", tables::WEIGHTS),
        ("docs/how-to/sql.md", tables::REPORT),
    ] {
        let columns = names(table.columns).join(", ");
        assert!(fs::read_to_string(page).expect("a page").contains(&columns), "{page} does not list {columns}");
    }
}

//! Executes the blocks of the README, CONTRIBUTING and the pages under `docs/`, or compares them with the sources.
//!
//! Each page has a folder of its own with `specs/`, a few photographs (`photos/train`, `photos/val`) and a small CIFAR-10 as
//! Parquet (`cifar10/`). The blocks of a page are handled in their order:
//!
//! - `sh`: each line runs. It must end with exit code 0, or with a code that its comment names (`# … exit code 3`).
//!   `cargo run --release --` stands for the program. Lines that start with a word of [`NOT_RUN`] do not run. Lines with a shared
//!   cache run only in a build with the feature `remote`, lines with `mpirun` only with `mpi`.
//! - `text`: the output of the block before it. Each line must be in that output, in this order. Numbers, hashes, times and
//!   frames of tables may differ (see [`stable`]). A line `…` stands for any lines.
//! - `yaml`: a spec, which must be valid. If its first line is `# NAME.yaml`, the block is a whole spec and is saved under that
//!   name. Otherwise it is a part that extends `specs/quickstart.yaml`.
//! - `python`: a script. It runs if there is a Python with the packages that it imports (see [`common::python`]).
//! - `snakemake`: the block becomes the `Snakefile`.
//! - `rust`, `cuda`: a quote. Its first line, `// FILE`, names a file of the repository. The other lines must follow each other
//!   in that file; a line `…` stands for any lines. Indentation and empty lines do not count.
//! - Blocks without a language are pictures and formulae, and are not checked. Any other language is an error.
//!
//! [`SMALLER`] holds overrides that make the specs of the pages run in seconds instead of minutes. Nothing else is changed.
//!
//! On the pages of [`common::figures::PAGES`] the digits of `text` blocks count too: they are exactly those that the full specs
//! printed when the figures were last measured. [`common::figures`] says where they are kept and how to measure them again.

mod common;

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StructArray},
    datatypes::{DataType, Field, Fields},
};
use common::{
    copy_tree,
    figures::{self, Figures},
    python,
    slurm::Slurm,
};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

/// First words of lines that do not run: they build this program, start another one, or need PyTorch or tools of a GPU.
const NOT_RUN: [&str; 10] = [
    "cargo",
    ".ci/run",
    "scripts/soak.sh",
    "python3",
    "target/torch/bin/python",
    "tensorboard",
    "torchrun",
    "scripts/cuda-setup.sh",
    "scripts/gpu-check.sh",
    "LD_LIBRARY_PATH=target/cuda-toolkit/lib64/stubs",
];

/// For each spec, the keys that are overridden so that a run takes a second.
const SMALLER: [(&str, &str); 7] = [
    (
        "quickstart.yaml",
        "data: {train_images: 240, test_images: 60, image_size: 16}\naugmentations: {size: 16}\n\
         encoder: {width_multiplier: 0.0625, stem: cifar}\nmethod: {queue_length: 64}\nepochs: 5\nbatch_size: 32\n\
         linear_probe: {epochs: 3}\n",
    ),
    ("cifar10-small.yaml", CIFAR),
    ("cifar10-equal/snclr.yaml", CIFAR),
    ("cifar10-equal/infonce.yaml", CIFAR_WITHOUT_QUEUE),
    ("cifar10-equal/nnclr.yaml", CIFAR),
    ("cifar10-equal/swav.yaml", CIFAR_SWAV),
    (
        "resnet50.yaml",
        "augmentations: {size: 32, eval: {resize: 36}}\nencoder: {arch: resnet50, width_multiplier: 0.0625}\n\
         projector: {hidden: 64}\npredictor: {hidden: 64}\nlinear_probe: {epochs: 2}\n",
    ),
];
const CIFAR: &str = "encoder: {width_multiplier: 0.0625}\nmethod: {queue_length: 64}\nepochs: 1\nbatch_size: 32\n\
    linear_probe: {epochs: 2}\n";
const CIFAR_WITHOUT_QUEUE: &str =
    "encoder: {width_multiplier: 0.0625}\nepochs: 1\nbatch_size: 32\nlinear_probe: {epochs: 2}\n";
const CIFAR_SWAV: &str = "encoder: {width_multiplier: 0.0625}\nmethod: {prototypes: 20, queue_length: 64}\nepochs: 1\n\
    batch_size: 32\nlinear_probe: {epochs: 2}\n";

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All pages, relative to the repository.
fn pages() -> Vec<String> {
    let mut pages = ["CHANGELOG.md", "CONTRIBUTING.md", "README.md"].map(str::to_owned).to_vec();
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(repository().join(&folder)).expect("a folder") {
            let path = folder.join(entry.expect("an entry").file_name());
            match repository().join(&path).is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|extension| extension == "md") => {
                    pages.push(path.to_str().expect("a name").to_owned());
                }
                false => {}
            }
        }
    }
    pages
}

fn read(page: &str) -> String {
    fs::read_to_string(repository().join(page)).expect("a page")
}

/// A fenced block.
struct Block {
    language: String,
    text: String,
    /// The line of the opening fence, from 1.
    line: usize,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in read(page).lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(language) if !open => {
                blocks.push(Block { language: language.to_owned(), text: String::new(), line: number + 1 });
                open = true;
            }
            Some(_) => open = false,
            None if open => {
                let block = blocks.last_mut().expect("an open block");
                block.text += line;
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!open, "{page}: a block without an end");
    blocks
}

/// The folder in which a page's lines run.
struct Folder {
    dir: TempDir,
    /// The configuration of the Slurm that the page's lines use, if any.
    slurm: Option<PathBuf>,
}

impl Folder {
    /// A folder in which every spec of [`SMALLER`] takes a second.
    fn new() -> Folder {
        Folder::where_smaller(|_| true)
    }

    /// A folder in which those specs of [`SMALLER`] take a second whose names are `wanted`.
    fn where_smaller(wanted: impl Fn(&str) -> bool) -> Folder {
        let folder = Folder { dir: TempDir::new().expect("a folder"), slurm: None };
        copy_tree(&repository().join("specs"), &folder.path("specs"));
        copy_tree(&repository().join("specs"), &folder.path("full/specs"));
        for (name, smaller) in SMALLER.into_iter().filter(|(name, _)| wanted(name)) {
            let up = "../".repeat(name.matches('/').count() + 1);
            let text = format!("extends: {up}full/specs/{name}\n{smaller}");
            fs::write(folder.path("specs").join(name), text).expect("a spec");
        }
        for (split, images) in [("train", 24), ("val", 12)] {
            for (number, class) in ["cat", "dog"].into_iter().enumerate() {
                for i in 0..images {
                    folder.picture(&format!("photos/{split}/{class}/{i:03}.jpg"), (2 * i + number) as u32);
                }
            }
        }
        fs::create_dir(folder.path("cifar10")).expect("a folder");
        folder.parquet("cifar10/train.parquet", 240);
        folder.parquet("cifar10/test.parquet", 40);
        fs::create_dir(folder.path("bin")).expect("a folder");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_snclr"), folder.path("bin/snclr")).expect("a link");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn picture(&self, name: &str, n: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        pixels(40, n).save(path).expect("a picture");
    }

    /// Writes images in the Hugging Face schema, with CIFAR-10's columns `img` and `label`.
    fn parquet(&self, name: &str, images: u32) {
        let png = |n: u32| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            pixels(32, n).write_to(&mut bytes, image::ImageFormat::Png).expect("a picture");
            bytes.into_inner()
        };
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values((0..images).map(png)));
        let fields = Fields::from(vec![Field::new("bytes", DataType::Binary, false)]);
        let image: ArrayRef = Arc::new(StructArray::new(fields, vec![bytes], None));
        let labels: ArrayRef = Arc::new(Int64Array::from_iter_values((0..images).map(|n| i64::from(n % 10))));
        let batch = RecordBatch::try_from_iter([("img", image), ("label", labels)]).expect("columns");
        let file = File::create(self.path(name)).expect("a file");
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("a writer");
        writer.write(&batch).expect("rows");
        writer.close().expect("an end");
    }

    /// Exit code and all output of a command.
    fn output(&self, program: &str, args: &[&str]) -> (i32, String) {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(program);
        command
            .current_dir(self.dir.path())
            .args(args)
            .env("PATH", path)
            .env("NO_COLOR", "1")
            .env_remove("RUST_BACKTRACE")
            .envs(self.slurm.iter().map(|conf| ("SLURM_CONF", conf)));
        let output = command.output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (
            output.status.code().unwrap_or(-1),
            text.replace("specs/../full/specs/", "specs/").replace("full/specs/", "specs/"),
        )
    }
}

/// A picture that depends on `n`.
fn pixels(side: u32, n: u32) -> image::RgbImage {
    image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb([(x * (n % 7 + 1)) as u8, (y * (n % 5 + 2)) as u8, (n * 37 + x * y) as u8])
    })
}

/// The commands of a block. A line that ends with a backslash, and a `for` loop up to `done`, continue on the next line.
fn commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut unfinished = false;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match (unfinished, commands.last_mut()) {
            (true, Some(last)) => write!(last, "\n{line}").expect("memory"),
            _ => commands.push(line.to_owned()),
        }
        let last = commands.last().expect("just pushed");
        unfinished = last.ends_with('\\') || (last.starts_with("for ") && !last.ends_with("\ndone"));
    }
    commands
}

/// The exit codes that a command's comment names.
fn exit_codes(command: &str) -> Vec<i32> {
    let named = command.split_once('#').and_then(|(_, comment)| comment.split_once("exit code "));
    let codes = named.map_or("0", |(_, codes)| codes).split(" or ");
    codes.map(|code| code.trim().parse().expect("an exit code")).collect()
}

/// A line without the parts that may differ. Frames of tables and marks of the best become blanks, and blanks are merged. Hashes
/// and numbers become `#`, durations `# s`, sizes `# B`, p-values `p #`.
fn stable(line: &str) -> String {
    let plain: String = line.chars().map(|c| if "│┆┌┐└┘─┬┴├┤╞╪╡═┼|*★".contains(c) { ' ' } else { c }).collect();
    let mut text = String::new();
    let mut rest = plain.as_str();
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '.')).unwrap_or(rest.len()).max(first.len_utf8());
        let (word, after) = rest.split_at(end);
        let is_hash = word.len() >= 8 && word.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
        let mut in_number = false;
        for c in word.chars() {
            let number = is_hash || c.is_ascii_digit() || (in_number && c == '.');
            if !number {
                text.push(c);
            } else if !in_number {
                // A sign belongs to its number.
                if text.ends_with(['-', '+']) {
                    text.pop();
                }
                text.push('#');
            }
            in_number = number;
        }
        rest = after;
    }
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (from, to) in [
        ("#e#", "#"),
        ("# h # min", "# s"),
        ("# min # s", "# s"),
        ("# kB", "# B"),
        ("# MB", "# B"),
        ("# GB", "# B"),
        ("# kiB", "# B"),
        ("# MiB", "# B"),
        ("# GiB", "# B"),
        ("p < #", "p #"),
    ] {
        text = text.replace(from, to);
    }
    text
}

/// The first line of `shown` that `output` lacks, or has only before the lines that were found already.
fn missing<'a>(shown: &'a str, output: &str) -> Option<&'a str> {
    let mut lines = output.lines().map(stable);
    shown.lines().find(|line| {
        let wanted = stable(line);
        !wanted.is_empty() && wanted != "…" && !lines.any(|line| line == wanted)
    })
}

/// The first line of the first part of a quote that `source` lacks, or has only earlier. Lines between two `…` must be adjacent.
fn misquoted<'a>(quote: &'a str, source: &str) -> Option<&'a str> {
    fn lines(text: &str) -> Vec<&str> {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
    }
    let (quote, source) = (lines(quote), lines(source));
    let mut rest = &source[..];
    for part in quote.split(|line| *line == "…").filter(|part| !part.is_empty()) {
        match rest.windows(part.len()).position(|window| window == part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return Some(part[0]),
        }
    }
    None
}

/// The packages that a script imports, without Python's standard library.
fn imports(script: &str) -> Vec<&str> {
    let own = ["glob", "json"];
    let lines = script.lines().filter_map(|line| line.strip_prefix("import ").or(line.strip_prefix("from ")));
    let modules = lines.flat_map(|line| line.split(" import ").next().unwrap_or(line).split(", "));
    let packages = modules.filter_map(|module| module.split([' ', '.', ';']).next());
    packages.filter(|package| !own.contains(package)).collect()
}

/// Executes the blocks of a page. Panics at the first block that is wrong.
fn execute(page: &str) {
    execute_in(&Folder::new(), page, |_, _, _| {});
}

/// Executes the blocks of a page in `folder`. `shown` is called for each `text` block with its place, the block and the output.
fn execute_in(folder: &Folder, page: &str, mut shown: impl FnMut(&str, &Block, &str)) {
    // The output of the block before; None if that block did not run.
    let mut printed: Option<String> = None;
    for block in blocks(page) {
        let at = format!("{page}:{}", block.line);
        match block.language.as_str() {
            "" => {}
            "sh" => {
                let mut all = Some(String::new());
                for command in commands(&block.text) {
                    let output = shell(folder, &command, &at);
                    all = all.zip(output).map(|(all, output)| all + &output);
                }
                printed = all;
            }
            "text" => {
                let Some(output) = &printed else { continue };
                if let Some(line) = missing(&block.text, output) {
                    panic!("{at}: this line was not printed, or not here:\n{line}\nwhat was printed:\n{output}");
                }
                shown(&at, &block, output);
            }
            "yaml" => {
                let name =
                    block.text.lines().next().and_then(|line| line.strip_prefix("# ")).filter(|n| n.ends_with(".yaml"));
                let (name, text) = match name {
                    Some(name) => (name, block.text.clone()),
                    None => ("part.yaml", format!("extends: specs/quickstart.yaml\n{}", block.text)),
                };
                fs::write(folder.path(name), text).expect("a spec");
                let (code, output) = folder.output("snclr", &["validate", name]);
                assert_eq!(code, 0, "{at}: {output}");
            }
            "python" => {
                let packages = imports(&block.text);
                printed = python(&packages).map(|python| {
                    fs::write(folder.path("snippet.py"), &block.text).expect("a script");
                    let (code, output) = folder.output(&python, &["snippet.py"]);
                    assert_eq!(code, 0, "{at}: {output}");
                    output
                });
            }
            "snakemake" => fs::write(folder.path("Snakefile"), &block.text).expect("a file"),
            "rust" | "cuda" => {
                let (first, quote) = block.text.split_once('\n').expect("a line that names a file");
                let file = first.strip_prefix("// ").unwrap_or_else(|| panic!("{at}: the first line names no file"));
                if let Some(line) = misquoted(quote, &read(file)) {
                    panic!("{at}: {file} does not have this line and those that follow it, or not here:\n{line}");
                }
            }
            other => panic!("{at}: blocks are sh, text, yaml, python, snakemake, rust or cuda, not {other:?}"),
        }
    }
}

/// The output of a command. None if it needs a Python package that is missing; empty if the command does not run here.
fn shell(folder: &Folder, command: &str, at: &str) -> Option<String> {
    let command = command.replace("cargo run --release -- ", "snclr ");
    let first = command.split_whitespace().next().unwrap_or_default();
    if NOT_RUN.contains(&first) {
        return Some(String::new());
    }
    if command.contains(" --cache ") && !cfg!(feature = "remote") {
        println!("{at}: not run in a build without the feature `remote`: {command}");
        return Some(String::new());
    }
    let mut command = command;
    if let Some(rest) = command.strip_prefix("mpirun ") {
        if !cfg!(feature = "mpi") {
            println!("{at}: not run in a build without the feature `mpi`: {command}");
            return Some(String::new());
        }
        // Allow root, the user of most containers, and more ranks than processors.
        let allowed = "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1";
        command = format!("{allowed} mpirun {rest}");
    }
    if let Some(rest) = command.strip_prefix("python -c ") {
        let package = if rest.contains("duckdb") { "duckdb" } else { "pyarrow" };
        command = format!("'{}' -c {rest}", python(&[package])?);
    }
    if let Some(rest) = command.strip_prefix("snakemake ") {
        command = format!("'{}' -m snakemake {rest}", python(&["snakemake"])?);
    }
    // Some lines wait for something: the time limit keeps them from waiting for ever.
    let (code, output) = folder.output("timeout", &["300", "sh", "-c", &format!("{{ {command}\n}} 2>&1")]);
    assert!(exit_codes(&command).contains(&code), "{at}: exit code {code}: {command}\n{output}");
    Some(output)
}

macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        /// The pages that have a test.
        const TESTED: &[&str] = &[CLUSTER, $($page),*];
        $(
            #[test]
            fn $test() {
                execute($page);
            }
        )*
    };
}

pages! {
    contributing: "CONTRIBUTING.md",
    readme: "README.md",
    tutorial: "docs/tutorial.md",
    methods: "docs/methods.md",
    cuda: "docs/cuda.md",
    write_specs: "docs/how-to/write-specs.md",
    own_images: "docs/how-to/own-images.md",
    cifar10: "docs/how-to/cifar10.md",
    imagenet: "docs/how-to/imagenet.md",
    compare: "docs/how-to/compare.md",
    sweep: "docs/how-to/sweep.md",
    resume_and_trust: "docs/how-to/resume-and-trust.md",
    health: "docs/how-to/health.md",
    export: "docs/how-to/export.md",
    embed: "docs/how-to/embed.md",
    sql: "docs/how-to/sql.md",
    shared_cache: "docs/how-to/shared-cache.md",
    many_ranks: "docs/how-to/many-ranks.md",
    clean_up: "docs/how-to/clean-up.md",
    scripts: "docs/how-to/scripts.md",
    benchmarks: "docs/benchmarks.md",
    add_a_method: "docs/contributing/add-a-method.md",
    add_an_operation: "docs/contributing/add-an-operation.md",
    add_a_format: "docs/contributing/add-a-format.md",
}

#[test]
fn every_page_is_executed() {
    let mut pages = pages();
    let runs = |page: &String| blocks(page).iter().any(|block| !block.language.is_empty());
    pages.retain(|page| !TESTED.contains(&page.as_str()) && runs(page));
    assert!(pages.is_empty(), "not executed: {pages:?}");
}

/// The page that needs a scheduler, Slurm.
const CLUSTER: &str = "docs/how-to/cluster.md";

#[test]
fn cluster() {
    let Some(slurm) = Slurm::start() else { return };
    let folder = Folder { slurm: Some(slurm.conf()), ..Folder::new() };
    execute_in(&folder, CLUSTER, |_, _, _| {});
}

/// The lines of a block that are compared: all but empty lines and `…`.
fn shown_lines(block: &Block) -> Vec<String> {
    let lines = block.text.lines().map(str::trim_end);
    lines.filter(|line| !line.is_empty() && *line != "…").map(str::to_owned).collect()
}

#[test]
fn figures_are_those_of_their_source() {
    let figures = Figures::read();
    let mut wrong = Vec::new();
    for page in figures::PAGES {
        let texts: Vec<_> = blocks(page).into_iter().filter(|block| block.language == "text").collect();
        let kept = figures.pages.get(page).map_or(&[][..], Vec::as_slice);
        if texts.len() != kept.len() {
            wrong.push(format!("{page}: {} blocks of text, {} in the source", texts.len(), kept.len()));
        }
        for (block, kept) in texts.iter().zip(kept) {
            for (shown, kept) in shown_lines(block).iter().zip(kept.iter().map(Some).chain(std::iter::repeat(None))) {
                if Some(shown) != kept {
                    wrong.push(format!("{page}:{}: {shown:?} is {kept:?} in the source", block.line));
                }
            }
        }
    }
    for (spec, _) in figures::SPECS {
        let expected = figures.expected(spec);
        if !read(spec).lines().any(|line| line == expected) {
            wrong.push(format!("{spec}: there is no line {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}\ntaken anew by: {}", wrong.join("\n"), figures::COMMAND);
}

/// Scores appear in blocks only. A score in a sentence would have no source to compare with.
#[test]
fn scores_stand_in_blocks_alone() {
    let mut wrong = Vec::new();
    for page in ["README.md", "docs/tutorial.md"] {
        let mut open = false;
        for (number, line) in read(page).lines().enumerate() {
            open ^= line.trim_start().starts_with("```");
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_score =
                |pair: &[&str]| pair[0].contains('.') && pair[0].parse::<f64>().is_ok() && pair[1].starts_with('%');
            if !open && words.windows(2).any(is_score) {
                wrong.push(format!("{page}:{}: {line}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[ignore = "takes the figures anew, in minutes"]
fn retake_figures() {
    let mut figures = Figures::read();
    for page in figures::PAGES {
        let mut taken = Vec::new();
        let mut text = read(page);
        execute_in(&Folder::where_smaller(|spec| spec != "quickstart.yaml"), page, |at, block, printed| {
            let mut lines = printed.lines().map(str::trim_end);
            let find = |shown: String| {
                let wanted = stable(&shown);
                lines
                    .find(|line| stable(line) == wanted)
                    .unwrap_or_else(|| panic!("{at}: not printed: {shown}"))
                    .to_owned()
            };
            let now: Vec<String> = shown_lines(block).into_iter().map(find).collect();
            let mut next = now.iter();
            let mut replaced = String::new();
            for line in block.text.lines() {
                let counts = !line.trim_end().is_empty() && line != "…";
                replaced += if counts { next.next().expect("a line for each") } else { line };
                replaced.push('\n');
            }
            text = text.replace(&block.text, &replaced);
            taken.push(now);
        });
        fs::write(repository().join(page), text).expect("a page");
        figures.pages.insert(page.to_owned(), taken);
        figures.write();
    }
    for (spec, settings) in figures::SPECS {
        let settings = match std::env::var(figures::CIFAR10) {
            Ok(folder) => settings.replace("CIFAR10", &folder),
            Err(_) if settings.contains("CIFAR10") => continue,
            Err(_) => settings.to_owned(),
        };
        let folder = Folder::where_smaller(|_| false);
        let line = format!("snclr run {spec} {settings} --json 2>/dev/null");
        let (code, output) = folder.output("sh", &["-c", &line]);
        assert_eq!(code, 0, "{line}: {output}");
        figures.specs.insert(spec.to_owned(), figures::scores(&serde_json::from_str(&output).expect("JSON")));
        let expected = figures.expected(spec);
        let text = read(spec);
        let lines = text.lines().map(|line| if line.starts_with("# expected ") { &expected } else { line });
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        fs::write(repository().join(spec), text).expect("a spec");
        figures.write();
    }
}

/// The targets of the links and pictures of a page, without those in blocks.
fn links(page: &str) -> Vec<String> {
    let mut open = false;
    let mut found = Vec::new();
    for line in read(page).lines() {
        open ^= line.trim_start().starts_with("```");
        if open {
            continue;
        }
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        found.extend(targets.map(|(target, _)| target.to_owned()));
    }
    found
}

/// The anchors by which links name the headings of a page.
fn anchors(page: &str) -> Vec<String> {
    let text = read(page);
    let headings =
        text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(slug).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        for link in links(&page).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let folder = Path::new(&page).parent().unwrap_or(Path::new(""));
            let target = if file.is_empty() { PathBuf::from(&page) } else { folder.join(file) };
            let there = repository().join(&target).exists();
            let target = target.to_str().expect("a name");
            if !there || anchor.is_some_and(|anchor| !anchors(target).iter().any(|own| own == anchor)) {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The names of this program's environment variables in a text. A prefix such as `SNCLR_REQUIRE_…` is not a name.
fn variables(text: &str) -> impl Iterator<Item = String> {
    let prefix = "SNCLR_";
    text.split(prefix).skip(1).filter_map(move |rest| {
        let end = rest.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
        let name = &rest[..end.unwrap_or(rest.len())];
        (!name.is_empty() && !name.ends_with('_')).then(|| format!("{prefix}{name}"))
    })
}

#[test]
fn every_variable_is_in_the_table() {
    let mut folders: Vec<PathBuf> = ["src", "tests", "benches", "scripts", ".ci"].map(PathBuf::from).into();
    let mut named = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(repository().join(&folder)).expect("a folder") {
            let path = repository().join(&folder).join(entry.expect("an entry").file_name());
            match path.is_dir() {
                true => folders.push(path),
                // Binary golden files cannot be read as text; they name no variable.
                false => named.extend(fs::read_to_string(path).iter().flat_map(|text| variables(text))),
            }
        }
    }
    let rows = read("docs/environment.md");
    let listed: BTreeSet<String> = rows.lines().filter(|line| line.starts_with('|')).flat_map(variables).collect();
    assert_eq!(named, listed, "variables in the sources, and those of docs/environment.md");
    for page in pages() {
        let unknown: Vec<String> = variables(&read(&page)).filter(|name| !listed.contains(name)).collect();
        assert!(unknown.is_empty(), "{page}: {unknown:?}");
    }
}

#[test]
fn what_may_differ_is_left_out() {
    for (a, b) in [
        ("pretrain  ran  edb0b741  in 1 min 23 s", "pretrain ran 00000000 in 0.7 s"),
        ("│ kNN  ┆  41.9 ┆ 17.7 │", "│ kNN          ┆     4.0 ┆   1.7 │"),
        ("+1.25 [-11.25, 13.75]", "-0.5 [0, 1e-4]"),
        ("results in runs/results/quickstart-2c495723", "results in runs/results/quickstart-abcdefab"),
        ("about 1.8 s and 435.1 kB", "about 2 min 1 s and 1.2 MB"),
    ] {
        assert_eq!(stable(a), stable(b));
    }
    assert_ne!(stable("linear probe ran"), stable("knn ran"));
    assert_eq!(missing("a\n…\nc 3\n", "a\nb\nc 4\n"), None);
    assert_eq!(missing("c 3\na\n", "a\nb\nc 4\n"), Some("a"));
}

#[test]
fn a_quote_is_the_source_line_by_line() {
    let source = "a\n    b\n\nc\nb\nd\n";
    assert_eq!(misquoted("  a\n  b\nc\n", source), None);
    assert_eq!(misquoted("a\n…\nb\nd\n", source), None);
    assert_eq!(misquoted("a\nc\n", source), Some("a"), "a line is left out");
    assert_eq!(misquoted("d\n…\na\n", source), Some("a"), "the order is another");
    assert_eq!(misquoted("B\n", source), Some("B"));
}

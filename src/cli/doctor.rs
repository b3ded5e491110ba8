//! `snclr doctor`: checks whether this machine and the runs folder can run experiments.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;
use sysinfo::System;

use super::{Global, cache::CacheArgs, show};
use crate::{
    artifact::{Attempt, FileSystem, Lock, Reach, cpu_model},
    ops::{matmul::bf16_unit, simd},
    remote::Cache,
    train::found_cuda,
};

/// Memory below which even small experiments may not fit.
const LITTLE_MEMORY: u64 = 2 << 30;
/// Free disk below which a run may fail for lack of space.
const LITTLE_DISK: u64 = 2 << 30;

/// Check this machine and the runs folder: CPU, memory, disk, file system, locks, devices
///
/// Ends with exit code 1 when runs would fail.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    Warning,
    Error,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Error => "error",
        }
    }
}

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// What to do about it.
    help: Option<&'static str>,
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, status: Status::Ok, found: found.into(), help: None }
}

fn bad(name: &'static str, status: Status, found: impl Into<String>, help: &'static str) -> Check {
    Check { name, status, found: found.into(), help: Some(help) }
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> anyhow::Result<ExitCode> {
    let mut checks = vec![
        ok("version", format!("snclr {}", env!("CARGO_PKG_VERSION"))),
        ok("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)),
        ok("cpu", cpu_model()),
        vectors(simd::vector_unit(), simd::chosen_by(), &simd::available()),
        ok("convolutions", "3x3 of stride 1 by Winograd's F(4x4, 3x3), others as matrix products"),
        bf16(bf16_unit()),
        threads(global.threads, std::thread::available_parallelism().ok().map(usize::from)),
        memory(),
    ];
    checks.extend(runs_root(&global.runs));
    checks.extend(args.cache.open(global)?.as_ref().map(cache));
    checks.push(ok("device cpu", "usable"));
    checks.extend(cuda(found_cuda()));
    let text = if args.json { format!("{}\n", to_json(&checks)) } else { to_text(&checks) };
    write!(std::io::stdout(), "{text}")?;
    let broken = checks.iter().any(|check| check.status == Status::Error);
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Tries the shared cache.
fn cache(cache: &Cache) -> Check {
    const NAME: &str = "cache";
    let options = cache.options();
    let found = format!("{}, mode {}", options.address, options.mode.name());
    match cache.probe() {
        Ok(()) => ok(NAME, found + ": works"),
        Err(problem) => bad(
            NAME,
            Status::Warning,
            format!("{found}: {problem}"),
            "runs work without it; check address, credentials and endpoint (AWS_…, GOOGLE_…, AZURE_…), or use --cache-mode read",
        ),
    }
}

/// The GPUs, or why there is none. Having none is an error only if `--device` asks for one.
fn cuda(found: Result<Vec<String>, String>) -> Vec<Check> {
    match found {
        Err(why) => vec![ok("device cuda", format!("not usable: {why}"))],
        Ok(devices) => {
            let check = |(i, text): (usize, &String)| ok("device cuda", format!("cuda:{i} usable: {text}"));
            devices.iter().enumerate().map(check).collect()
        }
    }
}

/// The instructions that multiply bf16. A CPU without them gets no warning, since bf16 is only slower there.
fn bf16(unit: Option<&'static str>) -> Check {
    let without = "rounded and multiplied in f32: precision bf16 is slower than f32 here";
    ok("bf16 products", unit.unwrap_or(without))
}

/// The vector unit in use, what chose it, and the available ones.
fn vectors(unit: &str, chosen_by: &str, available: &[&str]) -> Check {
    let found = format!("{unit}, chosen by {chosen_by}; available: {}", available.join(", "));
    match (unit, available) {
        ("scalar", ["scalar"]) => bad(
            "vector unit",
            Status::Warning,
            found,
            "training is several times slower than on a CPU with AVX2, AVX-512 or NEON",
        ),
        ("scalar", _) => bad(
            "vector unit",
            Status::Warning,
            found,
            "training is several times slower than with vectors, with the same bits; unset SNCLR_VECTOR_UNIT",
        ),
        _ => ok("vector unit", found),
    }
}

fn threads(wanted: Option<usize>, processors: Option<usize>) -> Check {
    let Some(processors) = processors else {
        return bad("threads", Status::Warning, "the number of processors is not known", "set --threads");
    };
    match wanted {
        Some(wanted) if wanted > processors => bad(
            "threads",
            Status::Warning,
            format!("{wanted} on {}", show::count(processors, "processor")),
            "more threads than processors slow training down; omit --threads",
        ),
        Some(wanted) => ok("threads", format!("{wanted} on {}", show::count(processors, "processor"))),
        None => ok("threads", format!("{processors}, one per processor")),
    }
}

fn memory() -> Check {
    let mut system = System::new();
    system.refresh_memory();
    let (mut total, mut free) = (system.total_memory(), system.available_memory());
    // A container may have less than its machine.
    if let Some(limits) = system.cgroup_limits().filter(|limits| (1..total).contains(&limits.total_memory)) {
        (total, free) = (limits.total_memory, free.min(limits.free_memory));
    }
    let found = format!("{} free of {}", show::bytes(free as f64), show::bytes(total as f64));
    match total {
        0 => bad("memory", Status::Warning, "unknown on this system", "watch it while training"),
        _ if free < LITTLE_MEMORY => bad(
            "memory",
            Status::Warning,
            found,
            "low: close other programs, or use a smaller batch_size with gradient_accumulation",
        ),
        _ => ok("memory", found),
    }
}

/// Checks that the runs folder, or its future place, has space, can be written and can be locked.
fn runs_root(root: &Path) -> Vec<Check> {
    let Some(place) = nearest_folder(root) else {
        let found = format!("no folder above {} exists", root.display());
        return vec![bad("runs folder", Status::Error, found, "name another with --runs")];
    };
    let found = match place == root {
        true => format!("{}, writable", root.display()),
        false => format!("{} will be created; {} is writable", root.display(), place.display()),
    };
    // Try everything in a separate folder, which is removed afterwards.
    let trial = place.join(format!(".snclr-doctor-{}", std::process::id()));
    let written = fs::create_dir(&trial).and_then(|()| fs::write(trial.join("file"), "x"));
    let mut checks = Vec::new();
    match written {
        Ok(()) => {
            checks.push(ok("runs folder", found));
            checks.push(file_system(&place, &trial));
            checks.push(locking(&trial.join("locks")));
        }
        Err(error) => {
            let found = format!("{} cannot be written: {error}", place.display());
            checks.push(bad(
                "runs folder",
                Status::Error,
                found,
                "change its permissions, or choose another folder by --runs",
            ));
        }
    }
    let _ = fs::remove_dir_all(&trial);
    checks.push(disk(&place));
    checks
}

/// `root`, or the nearest folder above it that exists.
fn nearest_folder(root: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(root).ok()?;
    if root.is_dir() {
        return Some(root.to_owned());
    }
    let exists = absolute.ancestors().find(|path| path.exists())?;
    exists.is_dir().then(|| exists.to_owned())
}

/// The kind of file system, and whether it renames folders as a store needs; `trial` is a folder to try this in.
fn file_system(place: &Path, trial: &Path) -> Check {
    const NAME: &str = "file system";
    const TWICE: &str = "several machines can share this folder safely, but may compute the same stage twice";
    let found = FileSystem::of(place);
    if let Err(problem) = renames(trial) {
        return bad(NAME, Status::Error, format!("{found}; {problem}"), FileSystem::ELSEWHERE);
    }
    match found.reach() {
        Reach::Alone | Reach::Locks => ok(NAME, found.to_string()),
        Reach::NoLocks | Reach::Unknown => bad(NAME, Status::Warning, found.to_string(), TWICE),
        Reach::Bucket => bad(NAME, Status::Error, found.to_string(), FileSystem::ELSEWHERE),
    }
}

/// Renaming must move a folder with its files, and must fail if the target is a folder with files.
fn renames(trial: &Path) -> Result<(), String> {
    let (one, two, three) = (trial.join("one"), trial.join("two"), trial.join("three"));
    let make =
        |dir: &Path| fs::create_dir(dir).and_then(|()| fs::write(dir.join("file"), dir.as_os_str().as_encoded_bytes()));
    make(&one).and_then(|()| make(&two)).map_err(|error| format!("cannot make a folder: {error}"))?;
    if fs::rename(&one, &two).is_ok() {
        return Err("a folder can replace another by renaming".to_owned());
    }
    let moved = fs::rename(&one, &three).and_then(|()| fs::read(three.join("file")));
    match moved.map_err(|error| format!("cannot rename a folder: {error}"))? {
        text if text == one.as_os_str().as_encoded_bytes() && !one.exists() => Ok(()),
        _ => Err("a folder loses its files when it is renamed".to_owned()),
    }
}

fn locking(dir: &Path) -> Check {
    const HELP: &str = "two runs at once could compute the same stage twice; mount it with locks";
    let held = match Lock::attempt(dir, "doctor") {
        Ok(held @ Attempt::Held(_)) => held,
        Ok(Attempt::Busy(_)) => return bad("locks", Status::Error, "a lock that nobody holds cannot be taken", HELP),
        Err(error) => return bad("locks", Status::Error, format!("{error:#}"), HELP),
    };
    let again = Lock::attempt(dir, "doctor");
    drop(held);
    match again {
        Ok(Attempt::Busy(_)) => ok("locks", "work"),
        Ok(Attempt::Held(_)) => bad("locks", Status::Warning, "there are none", HELP),
        Err(error) => bad("locks", Status::Error, format!("{error:#}"), HELP),
    }
}

fn disk(place: &Path) -> Check {
    match rustix::fs::statvfs(place) {
        Err(error) => bad("disk", Status::Warning, format!("free space is unknown: {error}"), "watch it"),
        Ok(figures) => {
            let (free, total) = (figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize);
            let found = format!("{} free of {}", show::bytes(free as f64), show::bytes(total as f64));
            match free < LITTLE_DISK {
                true => bad(
                    "disk",
                    Status::Warning,
                    found,
                    "low: `snclr gc` lists what no run needs; `snclr explain` estimates sizes",
                ),
                false => ok("disk", found),
            }
        }
    }
}

fn to_json(checks: &[Check]) -> serde_json::Value {
    let check = |check: &Check| json!({ "check": check.name, "status": check.status.name(), "found": check.found, "help": check.help });
    let broken = checks.iter().any(|check| check.status == Status::Error);
    let unit = json!({ "used": simd::vector_unit(), "chosen_by": simd::chosen_by(), "available": simd::available() });
    json!({ "ok": !broken, "checks": checks.iter().map(check).collect::<Vec<_>>(), "vector_unit": unit })
}

fn to_text(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, status, found, help } in checks {
        text += &format!("{:<8} {name:<12} {found}\n", status.name());
        if let Some(help) = help {
            text += &format!("{:<8} {:<12} {help}\n", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ok_says_what_to_do() {
        let text = to_text(&[ok("cpu", "a model"), threads(Some(8), Some(2))]);
        let expected = "\
ok       cpu          a model
warning  threads      8 on 2 processors
                      more threads than processors slow training down; omit --threads
";
        assert_eq!(text, expected);
        assert_eq!(threads(None, Some(2)), ok("threads", "2, one per processor"));
        assert_eq!(
            vectors("avx2", "the CPU", &["scalar", "avx2"]),
            ok("vector unit", "avx2, chosen by the CPU; available: scalar, avx2")
        );
        let forced = vectors("scalar", simd::VARIABLE, &["scalar", "avx2"]);
        assert!(forced.status == Status::Warning && forced.help.is_some_and(|help| help.contains(simd::VARIABLE)));
        assert_eq!(vectors("scalar", "the CPU", &["scalar"]).status, Status::Warning);
    }

    #[test]
    fn gpus_are_listed_or_it_is_said_why_there_is_none() {
        let none = cuda(Err("no driver".into()));
        assert_eq!(none, [ok("device cuda", "not usable: no driver")]);
        let two = cuda(Ok(vec!["A".into(), "B".into()]));
        assert_eq!(two[1], ok("device cuda", "cuda:1 usable: B"));
    }

    #[test]
    fn a_runs_root_is_tried_out_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for root in [dir.path().to_owned(), dir.path().join("not/yet")] {
            let checks = runs_root(&root);
            let names: Vec<_> = checks.iter().map(|check| (check.name, check.status)).collect();
            assert_eq!(names[..3], [("runs folder", Status::Ok), ("file system", Status::Ok), ("locks", Status::Ok)]);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        fs::write(dir.path().join("file"), "").unwrap();
        let checks = runs_root(&dir.path().join("file/runs"));
        assert_eq!((checks[0].name, checks[0].status), ("runs folder", Status::Error));
    }
}

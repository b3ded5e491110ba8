//! Tests of the shared cache in folders and on real servers of S3's protocol (PyPI's moto and localbucket). Each runs folder
//! stands for a machine. Without the servers their tests print that they are skipped; with `SNCLR_REQUIRE_REMOTE` they fail.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{Finished, Scratch, copy_tree, signal, statuses};
use expect_test::expect;
use serde_json::Value;
use snclr::{
    artifact::{Artifact, Attempt, Components, Kind, Store},
    remote::{Cache, Mode, Options},
    run::{Reporter, Verbosity},
    stage::{Interrupt, Silent},
};

const RUN: &str = "run tiny.yaml --json --set epochs=1";

/// The cache address of the folder `name` in a scratch directory.
fn folder(scratch: &Scratch, name: &str) -> String {
    format!("file://{}", scratch.path(name).display())
}

/// The content of all files below a folder, by their paths relative to it.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let walk = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.expect("an entry"));
    let files = walk.filter(|entry| entry.file_type().is_file());
    let name = |path: &Path| path.strip_prefix(dir).expect("below").display().to_string();
    files.map(|entry| (name(entry.path()), fs::read(entry.path()).expect("a file"))).collect()
}

fn warnings(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| line.starts_with("warning:")).collect()
}

/// Metrics that do not depend on the clock.
fn scores(run: &Value) -> BTreeMap<String, Value> {
    let metrics = run["metrics"].as_object().expect("metrics").iter();
    let timed = |name: &str| ["seconds", "second", "share"].iter().any(|unit| name.ends_with(unit));
    let metrics = metrics.filter(|(name, _)| !timed(name));
    metrics.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Asserts that all stages of a run have this status.
#[track_caller]
fn assert_all(run: &Value, status: &str) {
    assert!(statuses(run).values().all(|found| found == status), "{run}");
}

#[test]
fn what_one_machine_has_made_is_a_hit_on_another() {
    let scratch = Scratch::new();
    let cache = folder(&scratch, "cache");
    let first = scratch.json(&format!("{RUN} --cache {cache} --runs one"));
    assert_all(&first, "ran");
    let there = files(&scratch.path("cache"));
    assert!(fs::read_dir(scratch.path("one/uploads")).expect("marks").next().is_none(), "all of it was uploaded");

    let second = scratch.run(&format!("{RUN} --cache {cache} --runs two"));
    let run: Value = serde_json::from_str(&second.stdout).expect("JSON");
    assert_all(&run, "fetched");
    assert_eq!(run["metrics"], first["metrics"]);
    assert_eq!(run["cache"]["address"], cache.as_str());
    assert_eq!((&run["cache"]["mode"], &run["cache"]["problem"]), (&"write".into(), &Value::Null));
    assert_eq!(scratch.contents("one"), scratch.contents("two"));
    let line = second.stderr.lines().find(|line| line.starts_with("pretrain")).expect("a line");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
    let host = host.trim().split('.').next().expect("a name");
    assert!(
        line.contains(" fetched ") && line.contains(&format!("made on {host} (")) && line.ends_with(", cpu)"),
        "{line}"
    );
    assert!(
        second.stderr.contains("fetched 7 stages, 0 cached") || second.stderr.contains("fetched 6 stages, 0 cached")
    );
    assert_eq!(files(&scratch.path("cache")), there, "nothing is written of what was there");
    assert!(!scratch.path("two/uploads").exists());
    assert_eq!(scratch.run("verify --runs two").code, 0);

    // The artifacts of this runs folder need no request. The cache named here could not answer one.
    let third = scratch.run(&format!("{RUN} --cache s3://nowhere --runs two"));
    assert_eq!((third.code, warnings(&third.stderr)), (0, vec![]), "{}", third.stderr);
    assert!(third.stderr.contains("nothing to do"), "{}", third.stderr);
}

#[test]
fn a_stage_alone_takes_its_inputs_from_the_cache() {
    let scratch = Scratch::new();
    let cache = folder(&scratch, "cache");
    scratch.json(&format!("run tiny.yaml --set epochs=1 --only data --json --cache {cache} --runs one"));
    let without = scratch.run("run tiny.yaml --set epochs=1 --only pretrain --runs two");
    assert_eq!(without.code, 3, "{}", without.stderr);
    let with = scratch.json(&format!("run tiny.yaml --set epochs=1 --only pretrain --json --cache {cache} --runs two"));
    assert_eq!(statuses(&with), BTreeMap::from([("pretrain".to_owned(), "ran".to_owned())]));
}

#[test]
fn a_cache_that_is_only_read_is_not_written_to() {
    let scratch = Scratch::new();
    let cache = folder(&scratch, "cache");
    scratch.json(&format!("run tiny.yaml --set epochs=1 --only data --json --cache {cache} --runs one"));
    let there = files(&scratch.path("cache"));
    let run = scratch.json(&format!("{RUN} --cache {cache} --cache-mode read --runs two"));
    assert_eq!((statuses(&run)["data"].as_str(), statuses(&run)["pretrain"].as_str()), ("fetched", "ran"));
    assert_eq!(files(&scratch.path("cache")), there);
    assert_all(&scratch.json(&format!("{RUN} --cache {cache} --cache-mode off --runs three")), "ran");
}

/// Ways in which an object can differ from the content that its name promises.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Flipped,
    Shortened,
    Emptied,
    Missing,
    /// The content of another object of its kind.
    Swapped,
}

const HARMS: [Harm; 5] = [Harm::Flipped, Harm::Shortened, Harm::Emptied, Harm::Missing, Harm::Swapped];

/// Harms the object with the index `at` of a cache in a folder.
fn harm(dir: &Path, objects: &BTreeMap<String, Vec<u8>>, at: usize, harm: Harm) {
    let (name, bytes) = objects.iter().nth(at).expect("an object");
    let path = dir.join(name);
    let mut bytes = bytes.clone();
    let middle = bytes.len() / 2;
    match harm {
        Harm::Flipped => bytes[middle] ^= 1,
        Harm::Shortened => bytes.truncate(middle),
        Harm::Emptied => bytes.clear(),
        Harm::Missing => return fs::remove_file(path).expect("removed"),
        Harm::Swapped => {
            let kind = name.split('/').next().expect("a folder");
            let others = objects.iter().filter(|(other, _)| *other != name && other.starts_with(kind));
            bytes = others.map(|(_, bytes)| bytes.clone()).next_back().expect("another");
        }
    }
    fs::write(path, bytes).expect("written");
}

/// Harms the objects `of` a cache. A run with it must give the same results, warn at most once (and once more at its end), and
/// repair the objects that it needed.
fn harmed(scratch: &Scratch, sound: &BTreeMap<String, Vec<u8>>, first: &Value, number: usize, of: &[(usize, Harm)]) {
    let (cache, runs) = (scratch.path(&format!("cache-{number}")), format!("runs-{number}"));
    for (name, bytes) in sound {
        let path = cache.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).and_then(|()| fs::write(path, bytes)).expect("a copy");
    }
    of.iter().for_each(|(at, kind)| harm(&cache, sound, *at, *kind));
    let line = format!("{RUN} --cache file://{}", cache.display());
    let run = scratch.run(&format!("{line} --runs {runs}"));
    let json: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{of:?}: {}", run.stderr));
    assert_eq!(scores(&json), scores(first), "{of:?}");
    let told = warnings(&run.stderr).len();
    assert!(told <= 2, "{of:?}: once as it happens, and once at the end: {}", run.stderr);
    assert_eq!(scratch.run(&format!("verify --runs {runs}")).code, 0, "{of:?}");
    let again = scratch.json(&format!("{line} --runs {runs}-again"));
    assert_eq!(scores(&again), scores(first), "{of:?}");
    assert!(statuses(&again).values().all(|status| status == "fetched"), "it is mended: {of:?}: {again}");
    for dir in fs::read_dir(scratch.path(".")).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if dir.file_name().is_some_and(|name| name.to_string_lossy().contains(&format!("-{number}"))) {
            fs::remove_dir_all(dir).expect("removed");
        }
    }
}

/// Fills a cache with a run. Returns its objects and the JSON of the run.
fn filled(scratch: &Scratch) -> (BTreeMap<String, Vec<u8>>, Value) {
    let first = scratch.json(&format!("{RUN} --cache {} --runs one", folder(scratch, "cache")));
    (files(&scratch.path("cache")), first)
}

#[test]
fn damage_in_the_cache_is_never_a_hit_and_is_mended() {
    let scratch = Scratch::new();
    let (sound, first) = filled(&scratch);
    for (number, kind) in HARMS.into_iter().enumerate() {
        // Harm all objects at once; then one table alone, so that the rest is fetched.
        let all: Vec<_> = (0..sound.len()).map(|at| (at, kind)).collect();
        harmed(&scratch, &sound, &first, number, &all);
        let table = sound.keys().position(|name| name.starts_with("cas/")).expect("a table");
        harmed(&scratch, &sound, &first, 100 + number, &[(table + number, kind)]);
    }
}

#[test]
#[ignore = "minutes; run by scripts/soak.sh"]
fn soak_every_object_harmed_in_every_way() {
    let scratch = Scratch::new();
    let (sound, first) = filled(&scratch);
    for (number, (at, kind)) in (0..sound.len()).flat_map(|at| HARMS.map(|kind| (at, kind))).enumerate() {
        harmed(&scratch, &sound, &first, number, &[(at, kind)]);
    }
    println!("{} objects, each harmed in {} ways", sound.len(), HARMS.len());
}

/// Kills runs that fill a cache, `times` in all, each at a later moment. No later run may take a half-written object for a whole
/// one, and the next run uploads the missing objects.
fn killed_uploads(times: u32) {
    let scratch = Scratch::new();
    let cache = folder(&scratch, "cache");
    let whole = scratch.json(&format!("{RUN} --runs whole"));
    let begun = Instant::now();
    scratch.json(&format!("{RUN} --cache {} --runs timed", folder(&scratch, "timed-cache")));
    let length = begun.elapsed();
    for i in 0..times {
        let mut child = scratch.command(&format!("{RUN} --cache {cache} --runs one"));
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program");
        thread::sleep(length.mul_f64(f64::from(i % 10 + 1) / 10.0));
        child.kill().expect("killed");
        child.wait().expect("an end");
        if i % 10 == 9 {
            // Another machine fetches the objects of the killed uploads. Then all folders are emptied.
            let taken = scratch.run(&format!("{RUN} --cache {cache} --cache-mode read --runs two"));
            let run: Value = serde_json::from_str(&taken.stdout).expect("JSON");
            assert_eq!((scores(&run), warnings(&taken.stderr)), (scores(&whole), vec![]));
            assert_eq!(scratch.run("verify --runs two").code, 0);
            // The next run uploads the missing objects, although all its stages are cached.
            scratch.json(&format!("{RUN} --cache {cache} --runs one"));
            assert_all(&scratch.json(&format!("{RUN} --cache {cache} --runs three")), "fetched");
            for dir in ["one", "two", "three", "cache"] {
                fs::remove_dir_all(scratch.path(dir)).expect("removed");
            }
        }
    }
}

#[test]
fn killed_uploads_leave_nothing_wrong_and_are_made_up_for() {
    killed_uploads(10);
}

#[test]
#[ignore = "minutes; run by scripts/soak.sh"]
fn soak_a_hundred_killed_uploads() {
    killed_uploads(100);
}

/// Stops a child by SIGTERM once a line of its output says that it trains. Returns its output.
fn terminated(mut child: Child) -> String {
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines().map_while(Result::ok);
    let before: Vec<String> = lines.by_ref().take_while(|line| !line.contains("learning rate")).collect();
    thread::sleep(Duration::from_millis(700));
    signal(child.id(), "TERM");
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("an end").code(), Some(130), "{rest:?}");
    [before, rest].concat().join("\n")
}

#[test]
fn a_run_that_is_taken_away_goes_on_on_another_machine_to_the_same_bits() {
    let scratch = Scratch::new();
    let cache = folder(&scratch, "cache");
    let line = format!("run tiny.yaml --set epochs=25 --cache {cache} --cache-checkpoints --checkpoint-every 0.2");
    scratch.json("run tiny.yaml --json --runs whole --set epochs=25");
    let start = |runs: &str| {
        let mut command = scratch.command(&format!("{line} --runs {runs}"));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program")
    };
    terminated(start("one"));
    let steps = |name: &str| name.starts_with("checkpoints/pretrain/") && name.ends_with(".json");
    let there = files(&scratch.path("cache"));
    assert_eq!(there.keys().filter(|name| steps(name)).count(), 1, "one checkpoint: {:?}", there.keys());
    let second = terminated(start("two"));
    assert!(second.contains("pretrain: took the checkpoint after step "), "{second}");

    // A damaged checkpoint in the cache is ignored. The run resumes from the one on this machine's disk.
    let (list, bytes) = files(&scratch.path("cache")).into_iter().find(|(name, _)| steps(name)).expect("one");
    fs::write(scratch.path("cache").join(&list), &bytes[..bytes.len() - 9]).expect("written");
    let ended = scratch.run(&format!("{line} --json --runs two"));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(scratch.contents("two"), scratch.contents("whole"));
    let left = files(&scratch.path("cache"));
    assert!(left.keys().all(|name| !name.starts_with("checkpoints/")), "{:?}", left.keys());
}

#[test]
fn cleaning_takes_what_nobody_has_used_and_no_run_here_needs() {
    let scratch = Scratch::new();
    let cache = folder(&scratch, "cache");
    for (seed, runs) in [(1, "one"), (2, "two")] {
        scratch.json(&format!("{RUN} --set seed={seed} --cache {cache} --runs {runs}"));
    }
    let there = files(&scratch.path("cache"));
    let shown = scratch.json(&format!("gc --cache {cache} --json --runs one"));
    assert_eq!((&shown["items"], &shown["removed"]), (&serde_json::json!([]), &false.into()), "all of it is new");

    // All objects become 40 days old, except a table that another machine has just uploaded.
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(40 * 86_400);
    let table = there.keys().find(|name| name.starts_with("cas/")).expect("a table");
    for name in there.keys() {
        let file = fs::File::options().write(true).open(scratch.path("cache").join(name)).expect("a file");
        file.set_modified(long_ago).expect("a time");
    }
    let fresh = "0".repeat(64);
    scratch.write(&format!("cache/cas/{fresh}"), "on its way");
    let before = files(&scratch.path("cache"));
    let shown = scratch.json(&format!("gc --cache {cache} --json --runs one"));
    let count =
        |kind: &str| shown["items"].as_array().expect("items").iter().filter(|item| item["kind"] == kind).count();
    assert!(count("artifact") > 0 && count("table") > 0 && shown["kept"].as_u64() > Some(0), "{shown}");
    assert_eq!(files(&scratch.path("cache")), before, "nothing was removed");
    let removed = scratch.run(&format!("gc --cache {cache} --yes --runs one"));
    assert!(
        removed.stdout.contains("removed ") && removed.stdout.contains(" of tables stay in file://"),
        "{}",
        removed.stdout
    );

    let left = files(&scratch.path("cache"));
    assert!(left.contains_key(&format!("cas/{fresh}")) && left.len() < before.len());
    assert_all(&scratch.json(&format!("{RUN} --cache {cache} --runs three")), "fetched");
    let other = scratch.json(&format!("{RUN} --set seed=2 --cache {cache} --runs four"));
    assert!(statuses(&other).values().any(|status| status == "ran"), "{other}");
    // A hit has renewed the manifest's time.
    assert!(files(&scratch.path("cache")).contains_key(table) || !left.contains_key(table));
    let modified =
        |name: &str| scratch.path("cache").join(name).metadata().and_then(|meta| meta.modified()).expect("a time");
    let manifests = left.keys().filter(|name| name.starts_with("ac/"));
    assert!(manifests.clone().count() > 0);
    for name in manifests {
        assert!(modified(name) > long_ago + Duration::from_secs(86_400), "{name}");
    }
}

#[test]
fn addresses_and_modes_that_make_no_sense_are_refused_before_anything_runs() {
    let scratch = Scratch::new();
    let refused = [
        (
            "--cache cache",
            expect![[r#"
                error: invalid value 'cache' for '--cache <URL>': "cache": expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER

                For more information, try '--help'.
            "#]],
        ),
        (
            "--cache file://cache",
            expect![[r#"
                error: invalid value 'file://cache' for '--cache <URL>': "file://cache": a folder is given from the root, as file:///FOLDER

                For more information, try '--help'.
            "#]],
        ),
        (
            "--cache s3://x --cache-mode both",
            expect![[r#"
                error: invalid value 'both' for '--cache-mode <MODE>'
                  [possible values: read, write, off]

                For more information, try '--help'.
            "#]],
        ),
    ];
    for (arguments, expected) in refused {
        let refused = scratch.run(&format!("run tiny.yaml {arguments}"));
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        expected.assert_eq(&refused.stderr);
    }
    assert!(!scratch.path("runs").exists());
    let refused = scratch.command("gc --cache").env_remove("SNCLR_CACHE").output().expect("the program");
    expect![[r#"
        error: no cache to clean: name it by --cache URL, SNCLR_CACHE, or cache: {url: URL} in .snclr.yaml
    "#]]
    .assert_eq(&Finished::of(refused).stderr);
    // After a wrong SNCLR_CACHE, `gc` must not clean the cache that a file names instead.
    scratch.write(".snclr.yaml", format!("cache: {{url: \"{}\"}}\n", folder(&scratch, "cache")));
    let refused =
        Finished::of(scratch.command("gc --cache").env("SNCLR_CACHE", "cache").output().expect("the program"));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    expect![[r#"
        error: SNCLR_CACHE: "cache": expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER
    "#]]
    .assert_eq(&refused.stderr);
}

#[test]
fn a_file_may_name_the_cache_and_options_go_before_it() {
    let scratch = Scratch::new();
    let (cache, other) = (folder(&scratch, "cache"), folder(&scratch, "other"));
    scratch.write(".snclr.yaml", format!("cache: {{url: \"{cache}\"}}\n"));
    let first = scratch.run(&format!("{RUN} --runs one"));
    assert!(first.stderr.contains(&format!("shared cache {cache}: named in .snclr.yaml")), "{}", first.stderr);
    assert_all(&scratch.json(&format!("{RUN} --runs two")), "fetched");
    assert_all(&scratch.json(&format!("{RUN} --runs three --cache {other} --cache-mode read")), "ran");
    assert_all(&scratch.json(&format!("{RUN} --runs four --cache-mode off")), "ran");
    let cleaned = scratch.run("gc --cache --runs one");
    assert!(cleaned.stdout.contains(&format!("of tables stay in {cache}")), "{}{}", cleaned.stdout, cleaned.stderr);

    // Without a file in the folder, the user's settings name the cache.
    fs::create_dir_all(scratch.path("settings/snclr")).expect("a folder");
    fs::rename(scratch.path(".snclr.yaml"), scratch.path("settings/snclr/config.yaml")).expect("moved");
    let mut command = scratch.command(&format!("{RUN} --runs five"));
    let run = Finished::of(command.env("XDG_CONFIG_HOME", scratch.path("settings")).output().expect("the program"));
    assert_all(&serde_json::from_str(&run.stdout).expect("JSON"), "fetched");

    let refused = [
        (
            "cache: {urls: x}",
            expect![[r#"
                error: .snclr.yaml:1:9: cache.urls: unknown key
                  found:   urls: "x"
                  allowed: url, mode, checkpoints
                  help:    did you mean `url`?

                .snclr.yaml: 1 error
            "#]],
        ),
        (
            "cache: {url: \"s3://x\", mode: both}",
            expect![[r#"
                error: .snclr.yaml:1:30: cache.mode: unknown value
                  found:   "both"
                  allowed: read, write, off
                  help:    use one of the allowed values

                .snclr.yaml: 1 error
            "#]],
        ),
        (
            "cache: {url: somewhere}",
            expect![[r#"
                error: .snclr.yaml: cache.url: "somewhere": expected s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER
            "#]],
        ),
    ];
    for (text, expected) in refused {
        scratch.write(".snclr.yaml", text);
        let refused = scratch.run("run tiny.yaml");
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        expected.assert_eq(&refused.stderr);
    }
}

/// A server that answers every request in the same way.
struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn new(answer: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, requests) =
            (listener.local_addr().expect("an address").to_string(), Arc::new(AtomicUsize::new(0)));
        let (counted, answer) = (requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (counted, answer) = (counted.clone(), answer.clone());
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    let _ = stream.read(&mut buffer);
                    counted.fetch_add(1, Ordering::Relaxed);
                    answer(&mut stream);
                });
            }
        });
        Server { address, requests }
    }

    /// Runs the program with this server as S3.
    fn run(&self, scratch: &Scratch, args: &str) -> Finished {
        let mut command = scratch.command(args);
        on_s3(&mut command, &self.address);
        Finished::of(command.output().expect("the program"))
    }
}

/// Sets the environment of a program so that it uses the S3 server at `address`.
fn on_s3(command: &mut Command, address: &str) {
    command.envs([
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ENDPOINT", &format!("http://{address}")),
    ]);
}

fn answers(status: &'static str) -> impl Fn(&mut TcpStream) + Send + Sync {
    move |stream: &mut TcpStream| {
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
}

#[test]
fn a_cache_that_fails_or_hangs_costs_one_warning_and_seconds() {
    let scratch = Scratch::new();
    scratch.json(&format!("{RUN} --runs warm"));
    let begun = Instant::now();
    let whole = scratch.json(&format!("{RUN} --runs whole"));
    let without = begun.elapsed();
    let down = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        // The listener is dropped, so nothing listens on this port.
        Server { address: listener.local_addr().expect("an address").to_string(), requests: Arc::default() }
    };
    let slow = Server::new(|stream| {
        thread::sleep(Duration::from_secs(30));
        answers("404 Not Found")(stream);
    });
    // This server announces more bytes than it sends, and sends one byte every half second.
    let drops = Server::new(|stream| {
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nLast-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\nETag: \"1\"\r\n\r\n"
        );
        while stream.write_all(b"{").is_ok() {
            thread::sleep(Duration::from_millis(500));
        }
    });
    for (what, server) in [
        ("down", down),
        ("403", Server::new(answers("403 Forbidden"))),
        ("500", Server::new(answers("500 Internal Server Error"))),
        ("slow", slow),
        ("in drops", drops),
    ] {
        let begun = Instant::now();
        let runs = format!("runs-{}", what.replace(' ', "-"));
        let run = server.run(&scratch, &format!("{RUN} --cache s3://lab/x --runs {runs}"));
        let lost = begun.elapsed().saturating_sub(without);
        println!("{what}: {:.1} s lost, {} requests", lost.as_secs_f64(), server.requests.load(Ordering::Relaxed));
        assert_eq!(run.code, 0, "{what}: {}", run.stderr);
        let json: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(scores(&json), scores(&whole), "{what}");
        assert_all(&json, "ran");
        assert!(json["cache"]["problem"].is_string(), "{what}: {json}");
        let told = warnings(&run.stderr);
        assert!(told.iter().all(|line| line.starts_with("warning: shared cache s3://lab/x: ")), "{what}: {told:?}");
        assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), 1, "{what}: {told:?}");
        // The aim is 10 seconds; other tests may run at the same time.
        assert!(lost < Duration::from_secs(30), "{what}: {lost:?}");
    }
}

#[test]
fn a_cache_that_takes_nothing_costs_one_warning_and_is_still_read() {
    let scratch = Scratch::new();
    let full = Server::new(|stream| answers("404 Not Found")(stream));
    let run = full.run(&scratch, &format!("{RUN} --cache s3://lab/x --runs one"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    let told = warnings(&run.stderr);
    assert!(told.len() == 1 && told[0].ends_with("; what it lacks is uploaded by the next run with it"), "{told:?}");
    // The marks of the missing uploads stay. A writable folder stands for the server when it works again.
    assert!(fs::read_dir(scratch.path("one/uploads")).expect("marks").count() >= 6);
    let cache = folder(&scratch, "cache");
    assert_all(&scratch.json(&format!("{RUN} --cache {cache} --runs one")), "cached");
    assert_all(&scratch.json(&format!("{RUN} --cache {cache} --runs two")), "fetched");
}

/// A server of S3's protocol from PyPI.
struct S3 {
    child: Child,
    address: String,
    /// The lines that the server printed: one per request.
    log: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

impl S3 {
    /// Starts `program`, from the folder of the Python that `SNCLR_PYTHON` names, or from the path. If it cannot be started,
    /// prints a line and returns None; with `SNCLR_REQUIRE_REMOTE` it panics.
    fn start(program: &str, arguments: impl Fn(u16, &Path) -> Vec<String>) -> Option<S3> {
        let beside = std::env::var("SNCLR_PYTHON").ok().map(|python| Path::new(&python).with_file_name(program));
        let program = beside.filter(|path| path.exists()).unwrap_or(PathBuf::from(program));
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let dir = tempfile::TempDir::new().expect("a folder");
        let mut command = Command::new(&program);
        command.args(arguments(port, dir.path())).current_dir(dir.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let why = format!("{} (pip install 'moto[server]' localbucket): {error}", program.display());
                assert!(std::env::var_os("SNCLR_REQUIRE_REMOTE").is_none(), "{why}");
                println!("skipped: {why}");
                return None;
            }
        };
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().expect("stderr")).lines(), log.clone());
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| kept.lock().expect("a log").push(line)));
        let address = format!("127.0.0.1:{port}");
        let begun = Instant::now();
        while TcpStream::connect(&address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{}: {:?}", program.display(), log.lock());
            thread::sleep(Duration::from_millis(50));
        }
        Some(S3 { child, address, log, _dir: dir })
    }

    fn moto() -> Option<S3> {
        let server = S3::start("moto_server", |port, _| {
            ["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned).to_vec()
        })?;
        server.make_bucket();
        Some(server)
    }

    /// A server that ignores the conditions of conditional writes.
    fn localbucket() -> Option<S3> {
        let server =
            S3::start("localbucket", |port, dir| vec!["--port".into(), port.to_string(), dir.display().to_string()])?;
        server.make_bucket();
        Some(server)
    }

    fn make_bucket(&self) {
        let mut stream = TcpStream::connect(&self.address).expect("a server");
        write!(stream, "PUT /lab HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", self.address)
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn run(&self, scratch: &Scratch, args: &str) -> Finished {
        let mut command = scratch.command(args);
        on_s3(&mut command, &self.address);
        let finished = Finished::of(command.output().expect("the program"));
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        finished
    }

    fn json(&self, scratch: &Scratch, args: &str) -> Value {
        let finished = self.run(scratch, args);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout))
    }

    /// The number of requests since the last call, by their method.
    fn requests(&self) -> BTreeMap<String, usize> {
        // The server prints a line a moment after it has answered.
        thread::sleep(Duration::from_millis(300));
        let mut counts = BTreeMap::new();
        for line in self.log.lock().expect("a log").drain(..) {
            let Some(request) = line.split('"').nth(1) else { continue };
            let method =
                request.trim_start_matches(|c: char| !c.is_ascii_uppercase()).split(' ').next().unwrap_or_default();
            *counts.entry(method.to_owned()).or_default() += 1;
        }
        counts
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_second_machine_gets_all_from_s3_with_few_requests() {
    let Some(server) = S3::moto() else { return };
    let scratch = Scratch::new();
    let line = format!("{RUN} --cache s3://lab/team");
    let first = server.json(&scratch, &format!("{line} --runs one"));
    assert_all(&first, "ran");
    let checked = server.run(&scratch, "doctor --cache s3://lab/team");
    assert!(
        checked.stdout.lines().any(|l| l.starts_with("ok") && l.ends_with("s3://lab/team, mode write: works")),
        "{}",
        checked.stdout
    );
    server.requests();

    let second = server.json(&scratch, &format!("{line} --cache-mode read --runs two"));
    assert_all(&second, "fetched");
    assert_eq!((&second["metrics"], &second["cache"]["problem"]), (&first["metrics"], &Value::Null));
    let stages = statuses(&second).len();
    let tables = files(&scratch.path("two/store")).keys().filter(|name| name.ends_with(".parquet")).count();
    let requests = server.requests();
    println!("{requests:?} for {stages} stages and {tables} tables");
    assert_eq!(requests.keys().collect::<Vec<_>>(), ["GET"], "a cache that is only read gets no PUT or DELETE");
    assert!(requests["GET"] <= 2 * stages + tables, "{requests:?}");

    assert_all(&server.json(&scratch, &format!("{line} --runs two")), "cached");
    assert_eq!(server.requests(), BTreeMap::new(), "what is here is asked of nobody");
    let cleaned = server.json(&scratch, "gc --cache s3://lab/team --older-than 0 --yes --json --runs nowhere");
    assert!(cleaned["items"].as_array().is_some_and(|items| items.len() == stages), "{cleaned}");
    assert_all(&server.json(&scratch, &format!("{line} --runs three")), "ran");
}

#[test]
fn large_tables_go_to_s3_in_parts() {
    let Some(server) = S3::moto() else { return };
    let scratch = Scratch::new();
    // These random pixels need more than two parts of a multipart upload.
    let spec =
        common::TINY.replace("train_images: 96", "train_images: 2500").replace("image_size: 16", "image_size: 64");
    scratch.write("large.yaml", spec);
    let line = "run large.yaml --only data --json --cache s3://lab/large";
    server.json(&scratch, &format!("{line} --runs one"));
    let size = |runs: &str| files(&scratch.path(runs).join("store")).into_values().map(|bytes| bytes.len()).max();
    assert!(size("one") > Some(11 << 20), "{:?}", size("one"));
    assert!(server.requests()["PUT"] > 3);
    let second = server.json(&scratch, &format!("{line} --runs two"));
    assert_all(&second, "fetched");
    assert_eq!(files(&scratch.path("one/store")), files(&scratch.path("two/store")));
}

/// Makes an artifact in the runs folder `root`. Its only table holds `value`.
fn made(root: &Path, value: i64) -> Artifact {
    let mut components = Components::default();
    components.insert("stage", &"knn".into());
    let made = Store::open(root).build("knn", components, |out| {
        let column = Arc::new(arrow::array::Int64Array::from(vec![value; 1000])) as arrow::array::ArrayRef;
        let rows = arrow::array::RecordBatch::try_from_iter([("x", column)])?;
        let mut table = out.table("scores", rows.schema(), Kind::Content)?;
        table.write(&rows)?;
        table.finish()
    });
    made.expect("an artifact")
}

/// The cache at `address`, used with the runs folder `root`.
fn cache(address: &str, mode: Mode, root: &Path) -> Cache {
    Cache::new(Options { address: address.parse().expect("an address"), mode, checkpoints: false }, root)
}

/// Uploads an artifact and blocks until that is done.
fn upload(cache: &Cache, artifact: &Artifact) {
    cache.offer(artifact);
    cache.finish(&Silent, &Interrupt::default());
    assert_eq!(cache.problem(), None);
}

/// Fetches the artifact with the stage and key of `like` from the cache at `address` into the runs folder `root`.
fn fetched(address: &str, root: &Path, like: &Artifact) -> Artifact {
    let (store, cache) = (Store::open(root), cache(address, Mode::Read, root));
    let Ok(Attempt::Held(lock)) = store.lock("knn", like.stage_key()) else { panic!("nobody else is there") };
    let reporter = Reporter::new(Verbosity::Quiet);
    let fetched = cache.fetch(&store, &lock, "knn", like.stage_key(), &reporter);
    assert_eq!(reporter.warnings(), [] as [&str; 0]);
    fetched.expect("a whole artifact")
}

#[test]
fn of_two_results_the_first_stays() {
    let scratch = Scratch::new();
    let address = folder(&scratch, "cache");
    let [first, second] = [1, 2].map(|value| {
        let root = scratch.path(&format!("runs-{value}"));
        let artifact = made(&root, value);
        upload(&cache(&address, Mode::Write, &root), &artifact);
        artifact
    });
    assert_ne!(first.content(), second.content());
    assert_eq!(fetched(&address, &scratch.path("reader"), &second).content(), first.content());
}

/// `count` machines finish one stage at the same moment, each with tables of its `own` or all with equal tables. One manifest
/// must stay in `bucket`, with all the tables that it names.
fn at_once(bucket: &str, count: usize, own: bool) {
    let address = format!("{bucket}/at-once-{own}");
    let scratch = Scratch::new();
    let roots: Vec<PathBuf> = (0..count).map(|i| scratch.path(&format!("runs-{i}"))).collect();
    let artifacts: Vec<Artifact> =
        roots.iter().enumerate().map(|(i, root)| made(root, if own { i as i64 } else { 7 })).collect();
    let barrier = Barrier::new(count);
    thread::scope(|scope| {
        for (root, artifact) in roots.iter().zip(&artifacts) {
            let (address, barrier) = (&address, &barrier);
            scope.spawn(move || {
                let cache = cache(address, Mode::Write, root);
                barrier.wait();
                upload(&cache, artifact);
            });
        }
    });
    let left = fetched(&address, &scratch.path("reader"), &artifacts[0]);
    assert!(artifacts.iter().any(|artifact| artifact.manifest() == left.manifest()), "it is one of theirs");
}

#[test]
fn of_fifty_that_end_at_once_one_result_stays() {
    // The machines are threads of a child process, because the server's address is set in the process's environment.
    for server in [S3::moto(), S3::localbucket()].into_iter().flatten() {
        let program = std::env::current_exe().expect("this program");
        let mut command = Command::new(program);
        on_s3(&mut command, &server.address);
        command.env(AT_ONCE, "s3://lab");
        let child = Finished::of(command.args(["--exact", "fifty", "--nocapture"]).output().expect("a test"));
        assert_eq!(child.code, 0, "{}{}", child.stdout, child.stderr);
    }
}

/// The environment variable with the bucket of the test below. The test above sets it; set it by hand to try another server.
const AT_ONCE: &str = "SNCLR_TEST_AT_ONCE";

#[test]
fn fifty() {
    if let Ok(bucket) = std::env::var(AT_ONCE) {
        at_once(&bucket, 50, false);
        at_once(&bucket, 50, true);
    }
}

#[test]
fn a_server_that_ignores_conditions_is_good_enough() {
    let Some(server) = S3::localbucket() else { return };
    let scratch = Scratch::new();
    let line = format!("{RUN} --cache s3://lab/team");
    let first = server.json(&scratch, &format!("{line} --runs one"));
    assert_eq!(first["cache"]["problem"], Value::Null);
    let second = server.json(&scratch, &format!("{line} --runs two"));
    assert_all(&second, "fetched");
    assert_eq!(second["metrics"], first["metrics"]);
}

#[test]
fn a_runs_folder_that_is_copied_carries_what_is_left_to_upload() {
    let scratch = Scratch::new();
    let full = Server::new(|stream| answers("404 Not Found")(stream));
    assert_eq!(full.run(&scratch, &format!("{RUN} --cache s3://lab/x --runs one")).code, 0);
    copy_tree(&scratch.path("one"), &scratch.path("two"));
    let cache = folder(&scratch, "cache");
    assert_all(&scratch.json(&format!("{RUN} --cache {cache} --runs two")), "cached");
    assert_all(&scratch.json(&format!("{RUN} --cache {cache} --runs three")), "fetched");
}

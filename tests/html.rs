//! `snclr report`: its pages work in a real browser without a network, on a desktop and on a phone, in light and dark mode.

mod common;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use common::{METHODS, Scratch, tiny_with};
use expect_test::expect;
use serde_json::{Value, json};

/// Width and height of the browser's window in pixels.
const DESKTOP: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (390, 844);

/// Markup that must stay text.
const HOSTILE: &str = "</script><script>document.title = 'taken over'</script><img src=x onerror=alert(1)>";

/// Whether `SNCLR_WITHOUT_BROWSER` says that there is no browser. Without the variable a missing browser is a failure.
fn without_browser() -> bool {
    let without = std::env::var_os("SNCLR_WITHOUT_BROWSER").is_some();
    if without {
        eprintln!("SNCLR_WITHOUT_BROWSER is set: pages are not opened");
    }
    without
}

/// Opens a page, lets it test itself, and returns its findings and its DOM. Nothing may appear on the console.
fn browse(page: &Path, window: (u32, u32), dark: bool) -> (Value, String) {
    let profile = tempfile::tempdir().expect("a scratch directory");
    let mut command = Command::new("chromium");
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    command.args(["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("--window-size={},{}", window.0, window.1));
    if dark {
        command.arg("--blink-settings=preferredColorScheme=0");
    }
    command.arg(format!("file://{}#selftest", page.display())).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| {
        panic!("chromium does not start ({error}); install it: apt-get install -y --no-install-recommends chromium")
    });
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let console: Vec<&str> = log.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(console.is_empty(), "{console:?}");
    let found = dom.split_once("data-selftest=\"").and_then(|(_, rest)| rest.split_once('"'));
    let (found, _) = found.unwrap_or_else(|| panic!("the page did not test itself: {log}"));
    let found = found.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    (serde_json::from_str(&found).expect("JSON"), dom.into_owned())
}

/// Trains by a method and makes the page of the run, with `text` as the description of the spec.
fn report(scratch: &Scratch, method: usize, text: &str) -> std::path::PathBuf {
    let spec = tiny_with(METHODS[method], true) + &format!("description: {}\n", json!(text));
    let name = METHODS[method].0;
    scratch.write(&format!("{name}.yaml"), spec);
    let run = scratch.json(&format!("run {name}.yaml --json"));
    let finished = scratch.run(&format!("report {name}.yaml"));
    assert_eq!((finished.code, finished.stderr.as_str()), (0, ""));
    let expected = format!("runs/results/{}/report.html", common::text(&run["run"]));
    assert_eq!(finished.stdout, format!("{expected}\n"));
    scratch.path(&expected)
}

#[test]
fn the_report_of_a_run_works_in_a_browser() {
    let scratch = Scratch::new();
    let page = report(&scratch, 0, HOSTILE);
    let bytes = std::fs::read(&page).expect("the page");
    assert!(bytes.len() < 5 << 20);
    scratch.run("report snclr -o again.html --threads 3");
    assert_eq!(std::fs::read(scratch.path("again.html")).expect("the page"), bytes, "the same run, other bytes");
    if without_browser() {
        return;
    }

    let (found, dom) = browse(&page, DESKTOP, false);
    assert_eq!(found["errors"], json!([]));
    assert!(dom.contains("<title>snclr-") && !dom.contains("[object"));
    // 30 steps, and health every 4.
    for (chart, points) in
        [("loss", 30), ("momentum", 30), ("images_per_second", 30), ("std", 8), ("effective_rank", 8)]
    {
        assert_eq!(found["charts"][format!("chart-{chart}")], json!([points]), "{chart}");
    }
    for chart in ["learning_rate", "alignment", "uniformity", "same_class_mass", "queue_age", "churn"] {
        assert!(found["charts"][format!("chart-{chart}")][0].as_u64() > Some(1), "{chart}");
    }
    // There are 40 test images of 4 classes. A click on a class shows only its 10 images, a second click all of them.
    let map = &found["map"];
    assert_eq!((&map["points"], &map["filtered"], &map["cleared"]), (&json!(40), &json!(10), &json!(40)));
    assert_eq!((&map["pressed"], &map["moved"]), (&json!("true"), &json!(true)));
    assert!(map["tip"].as_str().is_some_and(|tip| tip.contains("Linear probe")), "{map}");
    assert_eq!(found["matrixCells"], 16);
    // The gallery has six images, each with two views and two small crops. Eight watched images have three neighbours each,
    // early and late in training.
    assert_eq!((&found["gallery"], &found["queries"], &found["neighbours"]), (&json!(30), &json!(8), &json!(48)));
    assert_eq!((&found["unnamed"], &found["sheets"]), (&json!(0), &json!(vec![true; 9])));

    let (dark, _) = browse(&page, DESKTOP, true);
    assert_ne!(dark["background"], found["background"]);
    let (phone, _) = browse(&page, PHONE, false);
    assert!(phone["width"][1].as_u64() <= Some(500));
    for (found, device) in [(&found, "desktop"), (&phone, "phone")] {
        let width = |axis: usize| found["width"][axis].as_u64().expect("a width");
        assert!(width(0) <= width(1), "the page scrolls sideways on a {device}: {}", found["width"]);
    }
    assert_eq!((&dark["errors"], &phone["errors"]), (&json!([]), &json!([])));
}

#[test]
fn a_comparison_lays_curves_of_all_methods_over_each_other() {
    let scratch = Scratch::new();
    report(&scratch, 0, "neighbours");
    // InfoNCE has no neighbours.
    let page = report(&scratch, 1, "none");
    if without_browser() {
        return;
    }
    let (found, dom) = browse(&page, PHONE, false);
    assert_eq!((&found["queries"], &found["errors"]), (&json!(0), &json!([])));
    assert!(dom.contains("infonce has no queue of neighbours"));

    let finished = scratch.run("report snclr infonce");
    assert_eq!((finished.code, finished.stdout.as_str()), (0, "runs/results/comparison.html\n"), "{}", finished.stderr);
    let (found, dom) = browse(&scratch.path("runs/results/comparison.html"), PHONE, false);
    assert_eq!(found["errors"], json!([]));
    assert_eq!(found["charts"]["chart-loss"], json!([30, 30]));
    assert_eq!(found["charts"]["chart-effective_positives"], json!([8, 8]));
    assert!(found["hiddenLines"].as_u64() > Some(5));
    assert!(found["width"][0].as_u64() <= found["width"][1].as_u64(), "{}", found["width"]);
    assert!(dom.contains("method.name") && dom.contains("knn/top1"));
}

#[test]
fn the_page_of_a_data_set_works_in_a_browser() {
    let scratch = Scratch::new();
    let hostile = "<img src=x onerror=alert(1)>";
    for (split, count) in [("train", 5u8), ("test", 2)] {
        for i in 0..count {
            for class in ["cat", hostile] {
                // The test images of one class are training images.
                let shift = if class == "cat" { i } else { 40 + 7 * i + split.len() as u8 };
                let pixel = |x: u32, y: u32| (x * x * (3 + shift as u32) / 7 + y * (5 + 2 * shift as u32)) as u8;
                let image = image::RgbImage::from_fn(48, 40, |x, y| image::Rgb([pixel(x, y), pixel(y, x), shift]));
                let path = scratch.path(&format!("{split}/{class}/{i}.png"));
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                image.save(path).expect("a picture");
            }
        }
    }
    let data = "data: {format: image_folder, train: train, test: test}";
    let spec = common::TINY.lines().map(|line| if line.starts_with("data:") { data } else { line });
    scratch.write("photos.yaml", spec.collect::<Vec<_>>().join("\n"));
    let finished = scratch.run("data photos.yaml -o data.html");
    assert_eq!(finished.code, 0, "{}", finished.stderr);
    if without_browser() {
        return;
    }
    let (found, dom) = browse(&scratch.path("data.html"), DESKTOP, false);
    assert_eq!((&found["errors"], &found["unnamed"]), (&json!([]), &json!(0)));
    assert!(dom.contains("<title>tiny · snclr data") && !dom.contains("[object"));
    assert_eq!((&found["gallery"], &found["sheets"]), (&json!(10), &json!([true, true, true])));
    assert!(found["twice"].as_u64() >= Some(2), "{found}");
    let (phone, _) = browse(&scratch.path("data.html"), PHONE, false);
    assert_eq!(phone["errors"], json!([]));
    assert!(phone["width"][0].as_u64() <= phone["width"][1].as_u64(), "{}", phone["width"]);
}

#[test]
fn a_run_that_is_not_there_is_an_error() {
    let scratch = Scratch::new();
    let finished = scratch.run("report tiny.yaml");
    assert_eq!(finished.code, 1);
    expect![[r#"
        error: spec "tiny" (tiny.yaml) has no finished run in runs/results; `snclr run tiny.yaml` makes one
    "#]]
    .assert_eq(&finished.stderr);
}

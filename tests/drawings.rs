//! The drawings of the documentation: each `docs/images/NAME.svg` is made from the description in `NAME.txt`.
//!
//! A drawing is a grid of boxes. Each line of a description is one of
//!
//! - `title TEXT`
//! - `band ROW [LAST ROW] TEXT`: a background behind whole rows, with a heading
//! - `box NAME COLUMN ROW HEADING | TEXT | TEXT`; a text with a `/` or the ending `.rs` is set as code
//! - `arrow FROM TO [TEXT]`: along a row or a column, or with one corner
//! - `over FROM TO [TEXT]`: from the top of a box to the top of another, above all boxes
//! - `# COMMENT`
//!
//! Nothing may overlap: a text that is too long for its place is an error.

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};

/// The command that makes the drawings again.
const COMMAND: &str = "cargo test --release --test drawings -- --ignored redraw";

/// Sizes in pixels, horizontal and vertical. A column is a box and the gap to its right; a row is a box and the gap below it.
const BOX: [f64; 2] = [236.0, 78.0];
const GAP: [f64; 2] = [62.0, 70.0];
const MARGIN: f64 = 34.0;
/// Heights of the title, and of the space for arrows that go above all boxes.
const TITLE: f64 = 52.0;
const ABOVE: f64 = 44.0;
/// How far a band extends beyond its boxes: at the sides and the bottom, and at the top, where its heading is.
const BAND: [f64; 2] = [18.0, 34.0];

/// The colours. The paper is drawn too, so that the drawing looks the same on a dark page.
const PAPER: &str = "#ffffff";
const INK: &str = "#1b2430";
const SOFT: &str = "#51606f";
const SHADE: &str = "#eef2f6";
const EDGE: &str = "#5b7794";

/// A font. `wide` is an upper bound of the average width of its characters, as a fraction of the size.
struct Font {
    size: f64,
    wide: f64,
    style: &'static str,
}

const HEADING: Font = Font { size: 15.0, wide: 0.62, style: "font-weight=\"bold\"" };
const TEXT: Font = Font { size: 13.0, wide: 0.58, style: "" };
const CODE: Font = Font { size: 12.0, wide: 0.61, style: "font-family=\"monospace\"" };
const LARGE: Font = Font { size: 20.0, wide: 0.62, style: "font-weight=\"bold\"" };

/// A rectangle: left, top, right, bottom.
type Area = [f64; 4];

/// A drawing as its description says it.
#[derive(Default)]
struct Drawing {
    title: String,
    /// First row, last row, heading.
    bands: Vec<(usize, usize, String)>,
    /// For each box, its column and row, and its texts.
    boxes: BTreeMap<String, ([usize; 2], Vec<String>)>,
    /// From, to, text, and whether the arrow goes above all boxes.
    arrows: Vec<(String, String, String, bool)>,
}

impl Drawing {
    fn read(text: &str) -> Drawing {
        let mut drawing = Drawing::default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (kind, rest) = line.split_once(' ').unwrap_or_else(|| panic!("nothing behind the first word: {line}"));
            let words: Vec<&str> = rest.split(' ').collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok());
            let needed = |at: usize| number(at).unwrap_or_else(|| panic!("word {} is no number: {line}", at + 2));
            match kind {
                "title" => drawing.title = rest.to_owned(),
                "band" => {
                    let first = needed(0);
                    let (last, behind) = number(1).map_or((first, 1), |last| (last, 2));
                    drawing.bands.push((first, last, words[behind..].join(" ")));
                }
                "box" => {
                    let place = [needed(1), needed(2)];
                    let texts = words[3..].join(" ").split(" | ").map(str::to_owned).collect();
                    let before = drawing.boxes.insert(words[0].to_owned(), (place, texts));
                    assert!(before.is_none(), "a second box of this name: {line}");
                }
                "arrow" | "over" => {
                    for name in &words[..2] {
                        assert!(drawing.boxes.contains_key(*name), "no box `{name}` above: {line}");
                    }
                    let [from, to] = [words[0], words[1]].map(str::to_owned);
                    drawing.arrows.push((from, to, words[2..].join(" "), kind == "over"));
                }
                _ => panic!("unknown: {line}"),
            }
        }
        drawing
    }

    fn above(&self) -> f64 {
        TITLE + if self.arrows.iter().any(|arrow| arrow.3) { ABOVE } else { 0.0 }
    }

    /// The rectangle of the box at a column and row.
    fn area(&self, [column, row]: [usize; 2]) -> Area {
        let left = MARGIN + column as f64 * (BOX[0] + GAP[0]);
        let top = self.above() + BAND[1] + row as f64 * (BOX[1] + GAP[1]);
        [left, top, left + BOX[0], top + BOX[1]]
    }

    /// The points of an arrow's line, the position of its text, and the text's SVG anchor: `middle` or `start`.
    fn line(&self, from: &str, to: &str, over: bool) -> (Vec<[f64; 2]>, [f64; 2], &'static str) {
        let places = [from, to].map(|name| self.boxes[name].0);
        let [a, b] = places.map(|place| self.area(place));
        let middle = |area: Area| [(area[0] + area[2]) / 2.0, (area[1] + area[3]) / 2.0];
        let ([[column, row], [to_column, to_row]], [at, to_at]) = (places, [middle(a), middle(b)]);
        if over {
            let top = TITLE + ABOVE / 2.0;
            let line = vec![[at[0], a[1]], [at[0], top], [to_at[0], top], [to_at[0], b[1]]];
            return (line, [(at[0] + to_at[0]) / 2.0, top - 7.0], "middle");
        }
        // The sides that face each other.
        let (x, to_x) = if to_column > column { (a[2], b[0]) } else { (a[0], b[2]) };
        let (y, to_y) = if to_row > row { (a[3], b[1]) } else { (a[1], b[3]) };
        if row == to_row {
            return (vec![[x, at[1]], [to_x, at[1]]], [(x + to_x) / 2.0, at[1] - 8.0], "middle");
        }
        if column == to_column {
            return (vec![[at[0], y], [at[0], to_y]], [at[0] + 9.0, (y + to_y) / 2.0 + 4.0], "start");
        }
        if self.boxes.values().any(|(place, _)| *place == [column, to_row]) {
            let line = vec![[x, at[1]], [to_at[0], at[1]], [to_at[0], to_y]];
            return (line, [to_at[0] + 9.0, (at[1] + to_y) / 2.0 + 4.0], "start");
        }
        let line = vec![[at[0], y], [at[0], to_at[1]], [to_x, to_at[1]]];
        (line, [at[0] + 9.0, (y + to_at[1]) / 2.0 + 4.0], "start")
    }

    /// The drawing as SVG. Panics if a text does not fit.
    fn svg(&self) -> String {
        let last = |axis: usize| self.boxes.values().map(|(place, _)| place[axis]).max().expect("a box");
        let corner = self.area([last(0), last(1)]);
        let [width, height] = [corner[2] + MARGIN, corner[3] + MARGIN];
        let mut page = Page::default();
        let _ = write!(
            page.svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" font-family=\"Helvetica, Arial, sans-serif\">\n<title>{}</title>\n\
             <defs><marker id=\"head\" markerWidth=\"9\" markerHeight=\"8\" refX=\"8\" refY=\"4\" orient=\"auto\">\
             <path d=\"M0 0L9 4L0 8z\" fill=\"{EDGE}\"/></marker></defs>\n\
             <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{PAPER}\"/>\n",
            escaped(&self.title)
        );
        let whole = [0.0, 0.0, width, height];
        page.text(&LARGE, INK, [MARGIN - BAND[0], 33.0], "start", &self.title, whole);
        for (first, last, heading) in &self.bands {
            let (top, bottom) = (self.area([0, *first])[1] - BAND[1], self.area([0, *last])[3] + BAND[0]);
            let area = [MARGIN - BAND[0], top, width - MARGIN + BAND[0], bottom];
            page.rect(area, SHADE, "none");
            page.text(&TEXT, SOFT, [area[2] - 10.0, top + 20.0], "end", heading, area);
        }
        for (place, texts) in self.boxes.values() {
            let area = self.area(*place);
            page.rect(area, PAPER, EDGE);
            page.boxes.push(area);
            for (number, text) in texts.iter().enumerate() {
                let code = text.contains('/') || text.ends_with(".rs");
                let font = if number == 0 {
                    &HEADING
                } else if code {
                    &CODE
                } else {
                    &TEXT
                };
                let colour = if number == 0 { INK } else { SOFT };
                let at = [(area[0] + area[2]) / 2.0, area[1] + 25.0 + 20.0 * number as f64];
                page.text(font, colour, at, "middle", text, [area[0] + 4.0, area[1], area[2] - 4.0, area[3]]);
            }
        }
        for (from, to, text, over) in &self.arrows {
            let (line, at, anchor) = self.line(from, to, *over);
            page.arrow(&line);
            if !text.is_empty() {
                page.text(&TEXT, INK, at, anchor, text, whole);
            }
        }
        page.finish()
    }
}

/// The SVG so far, and the rectangles of all that it holds.
#[derive(Default)]
struct Page {
    svg: String,
    boxes: Vec<Area>,
    texts: Vec<(Area, String)>,
    /// The straight parts of arrows.
    lines: Vec<Area>,
}

impl Page {
    fn rect(&mut self, [left, top, right, bottom]: Area, fill: &str, stroke: &str) {
        let (width, height) = (right - left, bottom - top);
        let _ = writeln!(
            self.svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{fill}\" stroke=\"{stroke}\"/>"
        );
    }

    /// Draws a text with its baseline at `at`. Panics if the text goes beyond `within`.
    fn text(&mut self, font: &Font, colour: &str, at: [f64; 2], anchor: &str, text: &str, within: Area) {
        let width = text.chars().count() as f64 * font.size * font.wide;
        let left =
            at[0] - width * ["start", "middle", "end"].iter().position(|a| *a == anchor).unwrap_or(0) as f64 / 2.0;
        let area = [left, at[1] - 0.8 * font.size, left + width, at[1] + 0.25 * font.size];
        let fits = area[0] >= within[0] && area[1] >= within[1] && area[2] <= within[2] && area[3] <= within[3];
        assert!(fits, "no room for `{text}`: {area:?} is not in {within:?}");
        self.texts.push((area, text.to_owned()));
        let space = if font.style.is_empty() { "" } else { " " };
        let _ = writeln!(
            self.svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\" font-size=\"{}\" fill=\"{colour}\"{space}{}>{}</text>",
            at[0],
            at[1],
            font.size,
            font.style,
            escaped(text)
        );
    }

    fn arrow(&mut self, line: &[[f64; 2]]) {
        let points: Vec<String> = line.iter().map(|[x, y]| format!("{x},{y}")).collect();
        for pair in line.windows(2) {
            let ([x, y], [to_x, to_y]) = (pair[0], pair[1]);
            self.lines.push([x.min(to_x), y.min(to_y), x.max(to_x), y.max(to_y)]);
        }
        let _ = writeln!(
            self.svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{EDGE}\" stroke-width=\"1.5\" marker-end=\"url(#head)\"/>",
            points.join(" ")
        );
    }

    /// The whole SVG. Panics if a text overlaps another text or an arrow, or if an arrow crosses a box.
    fn finish(mut self) -> String {
        let overlap = |a: &Area, b: &Area| a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
        for (number, (area, text)) in self.texts.iter().enumerate() {
            for (other, other_text) in &self.texts[..number] {
                assert!(!overlap(area, other), "`{text}` lies on `{other_text}`");
            }
            let line = self.lines.iter().find(|line| overlap(area, line));
            assert!(line.is_none(), "an arrow goes through `{text}`");
        }
        for line in &self.lines {
            assert!(!self.boxes.iter().any(|area| overlap(area, line)), "an arrow goes through a box: {line:?}");
        }
        self.svg += "</svg>\n";
        self.svg
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The path of each drawing, and the SVG that should be there.
fn drawings() -> Vec<(PathBuf, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    let files = fs::read_dir(folder).expect("docs/images").map(|entry| entry.expect("an entry").path());
    let sources = files.filter(|path| path.extension().is_some_and(|extension| extension == "txt"));
    let drawn = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a text");
        (path.with_extension("svg"), Drawing::read(&text).svg())
    };
    sources.map(drawn).collect()
}

#[test]
fn drawings_are_those_of_their_texts() {
    let drawings = drawings();
    assert!(drawings.len() > 1, "found no drawings");
    for (path, svg) in drawings {
        let kept = fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == svg, "{} is not what its text says; run: {COMMAND}", path.display());
    }
}

#[test]
fn files_that_drawings_name_are_there() {
    for (path, svg) in drawings() {
        let words = svg.split(['<', '>']).filter(|text| text.starts_with("src/"));
        for name in words.map(|text| text.split('*').next().expect("a beginning")) {
            let there = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name).exists();
            assert!(there, "{} names {name}, which is not there", path.display());
        }
    }
}

#[test]
#[ignore = "writes docs/images"]
fn redraw() {
    for (path, svg) in drawings() {
        fs::write(path, svg).expect("a drawing");
    }
}

#[test]
#[should_panic(expected = "no room for `a heading that is far too long`")]
fn a_text_that_is_too_long_is_refused() {
    Drawing::read("title T\nbox a 0 0 a heading that is far too long\n").svg();
}

#[test]
#[should_panic(expected = "an arrow goes through a box")]
fn an_arrow_through_a_box_is_refused() {
    Drawing::read("title T\nbox a 0 0 a\nbox b 1 0 b\nbox c 2 0 c\narrow a c\n").svg();
}


// Curves over training, one chart per figure, one line per run.
const FRAME = { width: 340, height: 210, left: 46, right: 10, top: 10, bottom: 30 };

/** About `count` round values from `low` to `high`. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const values = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) values.push(Number((i * step).toPrecision(12)));
  return values;
}

function range(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
  return [low - margin, high + margin];
}

function chart({ id, title, what, series }) {
  const { width, height, left, right, top, bottom } = FRAME;
  const [x0, x1] = [0, Math.max(...series.flatMap((s) => s.x), 1e-9)];
  const [y0, y1] = range(series.flatMap((s) => s.y));
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const last = series.map((s) => `${series.length > 1 ? `${data.runs[s.run].run}: ` : ""}from ${figure(s.y[0])} to ${figure(s.y.at(-1))}`);
  const drawing = svg("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, class: "chart", id: `chart-${id}`,
    "aria-label": `${title} over epochs, ${last.join("; ")}. Left and right arrows read values.`,
  });
  for (const y of ticks(y0, y1, 6)) {
    drawing.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }),
      svg("text", { class: "tick", x: left - 5, y: py(y) + 4, "text-anchor": "end" }, figure(y)));
  }
  for (const x of ticks(x0, x1, 5)) {
    drawing.append(svg("text", { class: "tick", x: px(x), y: height - bottom + 15, "text-anchor": "middle" }, figure(x)));
  }
  drawing.append(svg("text", { class: "tick", x: width - right, y: height - 2, "text-anchor": "end" }, "epoch"));
  for (const s of series) {
    const path = s.x.map((x, i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(s.y[i]).toFixed(1)}`).join("");
    const group = svg("g", { class: `series run-${s.run % 8}`, "data-run": s.run, "data-points": s.x.length },
      svg("path", { d: path }));
    if (s.x.length <= 24) s.x.forEach((x, i) => group.append(svg("circle", { cx: px(x), cy: py(s.y[i]), r: 2.2 })));
    drawing.append(group);
  }
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, x1: -9, x2: -9 });
  drawing.append(cursor);

  // Reading values: by pointer and by arrow keys.
  const steps = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  let at = steps.length - 1;
  const read = () => {
    const x = steps[at];
    cursor.setAttribute("x1", px(x));
    cursor.setAttribute("x2", px(x));
    const nearest = (s) => s.x.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(s.x[best] - x) ? i : best), 0);
    const visible = series.filter((s) => !hiddenRuns.has(s.run));
    const lines = visible.map((s) => html("div", {}, series.length > 1 ? swatch(s.run) : null, series.length > 1 ? `${data.runs[s.run].run}: ` : "", figure(s.y[nearest(s)])));
    showTip(...onScreen(drawing, px(x), top), html("strong", {}, `${title}, epoch ${figure(x)}`), ...lines);
  };
  const leave = () => { cursor.setAttribute("x1", -9); cursor.setAttribute("x2", -9); hideTip(); };
  byPointer(drawing, (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
    const x = x0 + ((point.x - left) / (width - left - right)) * (x1 - x0);
    at = steps.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(steps[best] - x) ? i : best), 0);
    read();
  }, leave);
  drawing.addEventListener("blur", leave);
  drawing.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    at = Math.max(0, Math.min(steps.length - 1, at + move));
    read();
  });
  const values = () => {
    const rows = steps.map((x) => [figure(x), ...series.map((s) => (s.x.includes(x) ? figure(s.y[s.x.indexOf(x)]) : "–"))]);
    return table(`${title} by epoch`, ["epoch", ...series.map((s) => data.runs[s.run].run)], rows);
  };
  return html("figure", { class: "card" }, html("figcaption", {}, html("h4", {}, title), html("p", {}, what)), drawing, onDemand("Values", values));
}

// With several runs, a legend for all charts: a click hides or shows a run.
const hiddenRuns = new Set();
const swatch = (run) => svg("svg", { viewBox: "0 0 24 10", class: "swatch", "aria-hidden": "true" },
  svg("g", { class: `series run-${run % 8}` }, svg("path", { d: "M1 5H23" })));

function legend() {
  const button = (run, i) => html("button", {
    type: "button", "aria-pressed": "true", class: "key",
    onclick: (event) => {
      const shown = hiddenRuns.delete(i) || (hiddenRuns.add(i), false);
      event.currentTarget.setAttribute("aria-pressed", shown);
      document.querySelectorAll(`.chart [data-run="${i}"]`).forEach((line) => line.classList.toggle("off", !shown));
    },
  }, swatch(i), run.run);
  return html("div", { class: "keys", role: "group", "aria-label": "Runs shown in the charts" }, data.runs.map(button));
}

function charts() {
  const groups = [...new Set(data.charts.map((c) => c.group))];
  section("curves", "Curves", data.runs.length > 1 ? legend() : null, groups.map((group) => [
    html("h3", {}, group),
    html("div", { class: "grid" }, data.charts.filter((c) => c.group === group).map(chart)),
  ]));
}

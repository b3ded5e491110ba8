
// The map: a mark per test image, its form and colour by class. A click on a class shows it alone.
const MARKS = [
  "M-8 0a8 8 0 1 0 16 0a8 8 0 1 0-16 0", "M-7-7H7V7H-7Z", "M0-9L8.5 6.5H-8.5Z", "M0-10L8.5 0L0 10L-8.5 0Z",
  "M-9-3.5H-3.5V-9H3.5V-3.5H9V3.5H3.5V9H-3.5V3.5H-9Z",
];
const colour = (i, n) => (n <= 10 ? `var(--class-${i})` : `light-dark(hsl(${(i * 137.5) % 360} 65% 40%), hsl(${(i * 137.5) % 360} 65% 68%))`);

function map() {
  const { map, evaluations } = data.run;
  if (!map) {
    section("map", "Map of the embeddings", html("p", {}, "There are no embeddings of test images."));
    return;
  }
  const tile = sheet(map.sheet);
  const labels = [...new Set(map.labels)].sort((a, b) => (a ?? -1) - (b ?? -1));
  const kind = map.labels.map((label) => labels.indexOf(label));
  const drawing = svg("svg", {
    viewBox: `-20 -20 ${map.extent + 40} ${map.extent + 40}`, role: "img", tabindex: 0, class: "map",
    "aria-label": `Map of ${map.samples.length} test images. Arrow keys go from image to image.`,
  });
  const marks = kind.map((k, i) => svg("path", { d: MARKS[k % MARKS.length], class: "mark", style: `--mark:${colour(k, labels.length)}`, "data-point": i }));
  const ring = svg("circle", { class: "ring", r: 15, visibility: "hidden" });
  drawing.append(...marks, ring);
  let points = map.projections[0].points;
  let chosen = new Set();

  const shown = (i) => !chosen.size || chosen.has(kind[i]);
  function point(i) {
    ring.setAttribute("transform", `translate(${points[i]})`);
    ring.setAttribute("visibility", "visible");
    const guesses = evaluations.map((e, j) => map.predicted[j][i] === null ? null
      : html("div", {}, `${map.predicted[j][i] === map.labels[i] ? "✓" : "✕"} ${e.name}: ${className(map.predicted[j][i])}`));
    showTip(...onScreen(drawing, ...points[i]), tile(i, className(map.labels[i])), html("div", {}, html("strong", {}, className(map.labels[i])), html("div", {}, `image ${map.samples[i]}`), guesses));
  }
  const leave = () => { ring.setAttribute("visibility", "hidden"); hideTip(); };
  function place(projection) {
    points = map.projections[projection].points.map(([x, y]) => [x, map.extent - y]);
    marks.forEach((mark, i) => mark.setAttribute("transform", `translate(${points[i]})`));
    leave();
  }
  function filter() {
    marks.forEach((mark, i) => mark.classList.toggle("off", !shown(i)));
    keys.querySelectorAll("button").forEach((button, k) => button.setAttribute("aria-pressed", chosen.has(k)));
    state.textContent = chosen.size ? `${marks.filter((_, i) => shown(i)).length} of ${marks.length} images shown` : `all ${marks.length} images shown`;
  }
  const keys = html("div", { class: "keys", role: "group", "aria-label": "Classes shown on the map" }, labels.map((label, k) => html("button", {
    type: "button", class: "key", "aria-pressed": "false",
    onclick: () => { chosen = chosen.has(k) ? new Set([...chosen].filter((other) => other !== k)) : new Set([...chosen, k]); filter(); },
  }, svg("svg", { viewBox: "-11 -11 22 22", class: "swatch small", "aria-hidden": "true" }, svg("path", { d: MARKS[k % MARKS.length], class: "mark", style: `--mark:${colour(k, labels.length)}` })), className(label))));
  const state = html("p", { class: "state", role: "status" });

  const pointer = (event) => {
    const i = event.target.closest?.("[data-point]")?.dataset.point;
    if (i === undefined) leave(); else point(current = Number(i));
  };
  byPointer(drawing, pointer, leave);
  drawing.addEventListener("blur", leave);
  let current = null;
  drawing.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    const from = current === null ? [map.extent / 2, map.extent / 2] : points[current];
    let best = null;
    points.forEach(([x, y], i) => {
      const [ahead, aside] = [(x - from[0]) * way[0] + (y - from[1]) * way[1], Math.abs((x - from[0]) * way[1] + (y - from[1]) * way[0])];
      const cost = ahead + 2 * aside;
      if (i !== current && shown(i) && ahead > 0 && (best === null || cost < best[0])) best = [cost, i];
    });
    if (best) point(current = best[1]);
  });
  const pick = choice("Projection", map.projections.map((p) => p.name), place);
  const values = () => table("Images on the map", ["image", "class", ...evaluations.map((e) => e.name)],
    map.samples.map((sample, i) => [sample, className(map.labels[i]), ...evaluations.map((_, j) => className(map.predicted[j][i]))]), false);
  const some = map.samples.length < map.images ? `${map.samples.length} of the ${map.images}` : `All ${map.images}`;
  section("map", "Map of the embeddings",
    html("p", {}, `${some} test images by their features (at unit length): near each other is what the encoder takes for alike. Training saw none of them, nor any label. Point at a mark to see its image; choose classes to see them alone.`),
    pick, keys, state, drawing, onDemand("Values", values));
  filter();
}

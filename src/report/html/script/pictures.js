
// The picture that explains the method: an image, its neighbours in the queue, and what each of them counts.
function neighbours() {
  const { queries, sheet: pictures } = data.run.neighbours;
  const title = "Neighbours, early and late";
  if (!queries.length) {
    section("neighbours", title, html("p", {}, `Nothing to show: ${data.runs[0].method} has no queue of neighbours, or the run was made before they were recorded.`));
    return;
  }
  const tile = sheet(pictures);
  const most = Math.max(...queries.flatMap((q) => q.moments.flatMap((m) => m.neighbours.map((n) => n.weight))));
  const cell = (query) => (n) => {
    const known = n.label !== null && query.label !== null;
    const same = known && n.label === query.label;
    const what = n.sample === null ? "a random vector that the queue began with" : `training image ${n.sample}, ${className(n.label)}`;
    const picture = n.tile === null ? html("span", { class: "tile empty", role: "img", "aria-label": what, title: what }, "?") : tile(n.tile, what);
    return html("li", { class: known ? (same ? "same" : "other") : null },
      picture,
      html("span", { class: "bar", "aria-hidden": "true" }, html("span", { style: `width:${(100 * n.weight) / most}%` })),
      html("span", { class: "weight" }, `w ${n.weight < 0.005 ? "< 0.01" : n.weight.toFixed(2)}`),
      html("span", { class: "label" }, known ? (same ? "✓\u00a0" : "✕\u00a0") : "", n.sample === null ? "random" : className(n.label)));
  };
  const moment = (query) => (m, i) => {
    const weight = (list) => list.reduce((sum, n) => sum + n.weight, 0);
    const total = weight(m.neighbours) + m.rest.weight;
    const same = weight(m.neighbours.filter((n) => n.label !== null && n.label === query.label));
    const share = query.label === null || m.rest.count ? "" : ` · ${percent(same / total)} of the weight on its class`;
    return html("div", { class: "moment" },
      html("h4", {}, `${i ? "Late" : "Early"}: epoch ${m.epoch.toFixed(1)}`, html("small", {}, share)),
      html("ol", {}, m.neighbours.map(cell(query))),
      m.rest.count ? html("p", {}, `and ${m.rest.count} more with a weight of ${figure(m.rest.weight)} together`) : null);
  };
  section("neighbours", title,
    html("p", {}, "Training uses the nearest images in the queue as positives of an image, each with its positiveness w; the other view of the image counts 1. ✓ marks the class of the image. Training never uses labels."),
    html("div", { class: "queries" }, queries.map((query) => html("article", { class: "card query" },
      html("div", { class: "asked" }, tile(query.tile, `training image ${query.sample}, ${className(query.label)}`),
        html("h3", {}, className(query.label)), html("small", {}, `image ${query.sample}`)),
      html("div", { class: "moments" }, query.moments.map(moment(query)))))));
}

// What the network sees: images and their crops.
function gallery() {
  const { rows, size, small, sheet: pictures } = data.run.gallery;
  const tile = sheet(pictures);
  const crops = (rows[0]?.tiles.length ?? 1) - 1;
  const names = ["image", "view 1", "view 2", ...Array.from({ length: Math.max(0, crops - 2) }, (_, i) => `small ${i + 1}`)];
  section("gallery", "Augmentations",
    html("p", {}, `Training images and their crops in the first epoch, as the network saw them: two views of ${size} pixels${small ? ` and small ones of ${small}` : ""}.`),
    html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Augmented images" },
      html("table", { class: "gallery" }, html("caption", {}, "Images and their crops"),
        html("thead", {}, html("tr", {}, ["", ...names].map((name) => html("th", { scope: "col" }, name)))),
        html("tbody", {}, rows.map((row) => html("tr", {}, html("th", { scope: "row" }, className(row.label)),
          row.tiles.map((index, i) => html("td", {}, tile(index, `${names[i]} of training image ${row.sample}`)))))))));
}

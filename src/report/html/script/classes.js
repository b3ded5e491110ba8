
// Scores per class and confusion, of whichever classifier is chosen.
function confusion({ labels, matrix, pairs, scores }) {
  if (!matrix) {
    return table("Pairs that are confused most", ["class", "taken for", "images"], pairs.map(([a, b, n]) => [className(a), className(b), n]));
  }
  const cell = (row, column) => {
    const share = matrix[row][column] / Math.max(1, scores[row][0]);
    return html("td", {
      class: `heat${row === column ? " right" : ""}`, style: `--share:${(100 * share).toFixed(1)}%`,
      title: `${className(labels[row])} taken for ${className(labels[column])}: ${matrix[row][column]} (${percent(share)})`,
    }, matrix[row][column] || html("span", { class: "zero" }, "0"));
  };
  return html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Confusion matrix" },
    html("table", { class: "matrix" }, html("caption", {}, "Confusion matrix: rows are classes, columns what they were taken for"),
      html("thead", {}, html("tr", {}, html("td"), labels.map((label) => html("th", { scope: "col" }, html("span", {}, className(label)))))),
      html("tbody", {}, labels.map((label, row) => html("tr", {}, html("th", { scope: "row" }, className(label)), labels.map((_, column) => cell(row, column)))))));
}

function perClass({ labels, scores }) {
  const rows = labels.map((label, i) => {
    const [images, right, predicted] = scores[i];
    const recall = images ? right / images : null;
    const bar = html("span", { class: "bar" }, html("span", { style: `width:${100 * (recall ?? 0)}%` }));
    return html("tr", {},
      html("th", { scope: "row" }, className(label)),
      html("td", { class: "wide" }, bar),
      html("td", { class: "number" }, recall === null ? "–" : percent(recall)),
      html("td", { class: "number" }, predicted ? percent(right / predicted) : "–"),
      html("td", { class: "number" }, images));
  });
  return html("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Scores per class" },
    html("table", {}, html("caption", {}, "Scores per class"),
      html("thead", {}, html("tr", {}, ["class", "", "recall", "precision", "images"].map((name) => html("th", { scope: "col" }, name)))),
      html("tbody", {}, rows)));
}

function classes() {
  const { evaluations } = data.run;
  if (!evaluations.length) {
    section("classes", "Classes", html("p", {}, "There are no predictions: the images have no labels, or there is no test split."));
    return;
  }
  const views = html("div", { class: "two" });
  const pick = choice("Classifier", evaluations.map((e) => e.name), (i) => views.replaceChildren(perClass(evaluations[i]), confusion(evaluations[i])));
  section("classes", "Classes", html("p", {}, "On test images and frozen features. Recall is the share of a class's images that were predicted as this class, precision the share of the images predicted as this class that belong to it."), pick, views);
}


// The page, top to bottom.
function head() {
  const [run] = data.runs;
  const one = data.runs.length === 1;
  const date = (seconds) => new Date(1000 * seconds).toISOString().slice(0, 16).replace("T", " ");
  document.getElementById("top").append(...[
    html("p", { class: "eyebrow" }, one ? "snclr report" : `snclr comparison of ${data.runs.length} runs`),
    html("h1", {}, one ? run.name : data.runs.map((r) => r.name).join(" · ")),
    one && run.description ? html("p", { class: "lead" }, run.description) : null,
    html("p", { class: "facts" }, data.runs.map((r) => html("span", {}, `${r.run}: ${r.method}, ${date(r.created)} UTC${r.state ? `, ${r.state}` : ""}`))),
  ].filter(Boolean));
}

function scores() {
  const one = data.runs.length === 1;
  const parts = [];
  if (one) {
    const { metrics } = data.runs[0];
    const card = (title, key) => metrics[key] === undefined || metrics[key] === null ? null : html("div", { class: "card score" },
      html("h3", {}, title), html("p", { class: "big" }, percent(metrics[key])),
      html("p", {}, [["untrained", "_random_init"], ["as given", "_initial"], ["shuffled labels", "_shuffled_labels"]].filter(([, end]) => metrics[key + end] !== undefined)
        .map(([name, end]) => `${name} ${percent(metrics[key + end])}`).join(" · ")),
      data.gains[0][key] ? html("p", {}, `over the weights as given, in points: ${data.gains[0][key]}`) : null);
    parts.push(html("div", { class: "cards" }, card("Linear probe, top-1", "linear/top1"), card("kNN, top-1", "knn/top1")));
  }
  const mark = (text) => (text.startsWith(data.best) ? html("strong", { class: "best" }, text) : text);
  const [header, ...rows] = data.scores;
  const all = () => table(one ? "All figures" : "What differs, and the scores", header.map((cell) => cell || "figure"), rows.map((row) => row.map(mark)));
  if (!one) parts.push(all());
  else if (rows.length) parts.push(onDemand("All figures", all));
  const notes = data.notes.concat(data.runs.flatMap((run) => run.notes.map((note) => (one ? note : `${run.run}: ${note}`))));
  if (notes.length) parts.push(html("ul", { class: "notes" }, notes.map((note) => html("li", {}, note))));
  section("scores", one ? "Scores" : "Differences and scores", parts);
}

function origins() {
  section("origin", "How it was made", data.runs.map((run) => [
    data.runs.length > 1 ? html("h3", {}, run.run) : null,
    run.stages.length ? table("Stages", ["stage", "key", "seconds"], run.stages.map((s) => [s.stage, s.key, s.seconds])) : null,
    onDemand("Resolved spec", () => html("pre", { tabindex: 0 }, run.spec)),
  ]));
}

if (data.contents) contents();
else {
  head();
  scores();
  if (data.run) neighbours();
  charts();
  if (data.run) { map(); classes(); gallery(); }
  origins();
}

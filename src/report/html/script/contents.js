
// What a data set holds: counts, pictures of its classes, images that are there twice.
function contents() {
  const { title, key, facts, classes, lists, examples, notes, sheet: pictures } = data.contents;
  const tile = sheet(pictures);
  document.getElementById("top").append(
    html("p", { class: "eyebrow" }, "snclr data"), html("h1", {}, title), html("p", { class: "facts" }, html("span", {}, `data artifact ${key}`)));
  const [header, ...rows] = facts;
  section("counts", "What is in it",
    table("Images of each split", header, rows, false),
    notes.length ? html("ul", { class: "notes" }, notes.map((note) => html("li", {}, note))) : null);
  const names = classes[0]?.images.map(([name]) => name) ?? [];
  if (names.length) {
    const most = Math.max(...classes.flatMap(({ images }) => images.map(([, count]) => count)));
    const bar = (count) => [String(count), html("span", { class: "bar", "aria-hidden": "true" }, html("span", { style: `width:${(100 * count) / most}%` }))];
    const row = (name, i) => [name, ...classes.map(({ images }) => bar(images[i]?.[1] ?? 0))];
    section("classes", "Classes", table("Images of each class", ["class", ...classes.map(({ split }) => split)], names.map(row)));
  }
  section("examples", "Pictures", html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Images of each class" },
    html("table", { class: "gallery" }, html("caption", {}, `Images of ${classes[0]?.split ?? "no split"}`),
      html("tbody", {}, examples.map(({ class: name, tiles }) => html("tr", {}, html("th", { scope: "row" }, name),
        tiles.map((index) => html("td", {}, tile(index, `an image of ${name}`)))))))));
  const side = (place) => html("figure", {}, tile(place.tile, `${place.split} ${place.name}`),
    html("figcaption", {}, html("small", {}, `${place.split} ${place.name}${place.class === null ? "" : ` (${place.class})`}`)));
  for (const { name, pairs, shown } of lists) {
    const rest = pairs > shown.length ? `The ${shown.length} worst of ${pairs} pairs; --json lists all.` : `${pairs} ${pairs === 1 ? "pair" : "pairs"}.`;
    section(name.replaceAll(" ", "-"), name[0].toUpperCase() + name.slice(1), html("p", {}, rest),
      html("div", { class: "twice" }, shown.map(({ places, likeness }) => html("article", { class: "card" }, places.map(side),
        likeness === null ? null : html("small", {}, `likeness ${likeness.toFixed(2)}`)))));
  }
}


// Building blocks. Text enters the document as text alone, so that no name can bring markup along.
const data = JSON.parse(document.getElementById("data").textContent);

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const html = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** A part of the page with an entry in the navigation. */
function section(id, title, ...children) {
  document.getElementById("sections").append(html("a", { href: `#${id}` }, title));
  const part = html("section", { id, "aria-labelledby": `${id}-title` }, html("h2", { id: `${id}-title` }, title), children);
  document.getElementById("content").append(part);
  return part;
}

/** A table; the first cell of a row is its header. `numeric` aligns the others to the right. */
function table(caption, header, rows, numeric = true) {
  const cell = (value, i) =>
    i === 0 ? html("th", { scope: "row" }, value) : html("td", { class: numeric ? "number" : null }, value);
  return html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    html("table", { class: numeric ? null : "words" }, html("caption", {}, caption),
      html("thead", {}, html("tr", {}, header.map((name) => html("th", { scope: "col" }, name)))),
      html("tbody", {}, rows.map((row) => html("tr", {}, row.map(cell))))));
}

/** A part that opens on demand and is made only then. */
function onDemand(summary, make) {
  const details = html("details", { ontoggle: () => { if (details.open && details.children.length === 1) details.append(make()); } },
    html("summary", {}, summary));
  return details;
}

/** A choice among names; `choose` hears the number of the chosen one, and of the first one at once. */
function choice(label, names, choose) {
  const select = html("select", { onchange: () => choose(select.selectedIndex) }, names.map((name) => html("option", {}, name)));
  choose(0);
  return html("label", { class: "choice" }, label, " ", select);
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const className = (label) => (label === null || label === undefined ? "no label" : data.run.classes[label] ?? String(label));

// One tip for everything that has more to say; a screen reader hears it.
const tip = document.getElementById("tip");
function showTip(x, y, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 4))}px`;
  tip.style.top = `${y + 14 + box.height > innerHeight ? Math.max(4, y - box.height - 14) : y + 14}px`;
}
const hideTip = () => { tip.hidden = true; };
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("scroll", hideTip, { passive: true });

/** A drawing that tells more under the pointer; what a finger asked for stays after it is lifted. */
function byPointer(drawing, move, leave) {
  drawing.addEventListener("pointermove", move);
  drawing.addEventListener("pointerdown", move);
  drawing.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") leave(); });
}

/** Where a point of a drawing is on the screen. */
function onScreen(drawing, x, y) {
  const point = new DOMPoint(x, y).matrixTransform(drawing.getScreenCTM());
  return [point.x, point.y];
}

// Sheets of small pictures: each is in the page once, as the background of its tiles.
const sheets = [];
function sheet(description) {
  const name = `sheet-${sheets.length}`;
  sheets.push(description);
  document.head.append(html("style", {}, `.${name}{background-image:url(${description.url});background-size:${100 * description.columns}% ${100 * description.rows}%}`));
  const place = (i, n) => (n < 2 ? 0 : (100 * i) / (n - 1));
  return (index, what) => html("span", {
    class: `tile ${name}`, role: "img", "aria-label": what, title: what,
    style: `background-position:${place(index % description.columns, description.columns)}% ${place(Math.floor(index / description.columns), description.rows)}%`,
  });
}

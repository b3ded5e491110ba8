
// With #selftest at its address, the page uses itself and leaves what came of it in an attribute: the tests read it.
async function selftest() {
  const count = (selector) => document.querySelectorAll(selector).length;
  const visible = () => [...document.querySelectorAll(".map .mark")].filter((mark) => getComputedStyle(mark).display !== "none").length;
  const result = { charts: {} };
  for (const drawing of document.querySelectorAll(".chart")) {
    result.charts[drawing.id] = [...drawing.querySelectorAll("[data-points]")].map((line) => (line.querySelector("path").getAttribute("d").match(/[ML]/g) ?? []).length);
  }
  if (data.run?.map) {
    result.map = { points: visible() };
    const [key] = document.querySelectorAll("#map .key");
    key.click();
    Object.assign(result.map, { name: key.textContent, pressed: key.getAttribute("aria-pressed"), filtered: visible() });
    key.click();
    result.map.cleared = visible();
    const before = document.querySelector(".map .mark").getAttribute("transform");
    const select = document.querySelector("#map select");
    select.selectedIndex = select.options.length - 1;
    select.dispatchEvent(new Event("change"));
    result.map.moved = document.querySelector(".map .mark").getAttribute("transform") !== before;
    document.querySelector(".map").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
    result.map.tip = tip.hidden ? "" : tip.textContent;
  }
  if (data.runs?.length > 1) {
    document.querySelector("#curves .key").click();
    result.hiddenLines = count(".chart .off");
    document.querySelector("#curves .key").click();
  }
  for (const details of document.querySelectorAll("details")) details.open = true;
  await new Promise((done) => setTimeout(done, 50));
  Object.assign(result, {
    tables: count("table"),
    matrixCells: count(".heat"),
    queries: count(".query"),
    neighbours: count(".query li"),
    gallery: count(".gallery .tile"),
    twice: count(".twice article"),
    unnamed: [...document.querySelectorAll("[role=img], button, select, [role=region]")].filter((node) => !(node.getAttribute("aria-label") || node.textContent).trim()).length,
  });
  // The load event and a drawing, not `image.decode()`: a browser under a virtual clock does not wait for a decoder of another thread.
  const picture = async (description) => {
    const image = new Image();
    await new Promise((done, failed) => Object.assign(image, { onload: done, onerror: () => failed(new Error("a sheet is no picture")), src: description.url }));
    const pen = document.createElement("canvas").getContext("2d");
    pen.drawImage(image, 0, 0);
    const [, , , opacity] = pen.getImageData(0, 0, 1, 1).data;
    return [image.naturalWidth === description.columns * description.side, image.naturalHeight === description.rows * description.side, opacity === 255];
  };
  result.sheets = (await Promise.all(sheets.map(picture))).flat();
  result.background = getComputedStyle(document.body).backgroundColor;
  result.width = [document.documentElement.scrollWidth, innerWidth];
  result.errors = errors;
  document.documentElement.dataset.selftest = JSON.stringify(result);
}
if (location.hash === "#selftest") selftest().catch((error) => { document.documentElement.dataset.selftest = JSON.stringify({ errors: [String(error), ...errors] }); });

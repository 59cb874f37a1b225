// The page: which SAEs are shown, the figures and the sortable table. Data come from the JSON block; every
// string of it (names, tokens, texts) is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const saes = data.saes;
const hidden = new Set();
const isShown = (index) => !hidden.has(index);
const figures = [];
const legends = [];
const root = document.documentElement;

// ---- light and dark

function setTheme(theme) {
  root.dataset.theme = theme;
  figures.forEach((f) => f.draw());
  legends.forEach((refresh) => refresh());
  document.querySelectorAll("[data-swatch]").forEach((cell) => cell.replaceChildren(swatch(Number(cell.dataset.swatch))));
  if (latentView) latentView();
}
let latentView = null;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
prefersDark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));

// ---- legend: one state for the page, shown with every group of figures

function legend() {
  const bar = element("div", { class: "legend", role: "group", "aria-label": "Show or hide SAEs" });
  const refresh = () => bar.replaceChildren(...saes.map((s, i) => element("button", {
    type: "button", "aria-pressed": String(isShown(i)), title: "Click to show or hide; hover to pick out",
    onclick: () => { (hidden.has(i) ? hidden.delete(i) : hidden.add(i)); refreshAll(i); },
    onpointerenter: () => figures.forEach((f) => isShown(i) && f.emphasize(i)),
    onpointerleave: () => figures.forEach((f) => f.emphasize(null)),
  }, swatch(i), s.name)));
  const refreshAll = (focused) => {
    legends.forEach((r) => r());
    figures.forEach((f) => f.draw());
    bar.children[focused].focus();
  };
  legends.push(refresh);
  refresh();
  return bar;
}

function group(id, specs) {
  const place = document.getElementById(id);
  if (!place) return;
  const made = specs.filter((spec) => spec.series.some((s) => s.points.length)).map((spec) => figure(spec, isShown));
  if (!made.length) return place.append(element("p", { class: "panel empty" }, place.dataset.empty));
  const grid = element("div", { class: "figures" }, ...made.map((f) => f.node));
  place.append(legend(), grid);
  figures.push(...made);
  made.forEach((f) => f.draw());
}

// ---- figures: the data hold them; here is only how their values are written

const WRITTEN = {
  percent: { tell: percent },
  rows: { say: (v) => `${whole(v)} rows` },
  rank: { say: (v) => `rank ${whole(v)}` },
  bin: { say: (v) => `log₁₀ density ${trim(v, 3)} to ${trim(v + 0.25, 3)}` },
  block: { say: (v) => `block ${whole(v)}` },
  share: { say: (v) => `share ${trim(v, 3)} to ${trim(v + 0.05, 3)}` },
  count: { say: (v) => `${short(v)} active latents` },
};
const axis = (a) => ({ ...a, to: a.end, ...(WRITTEN[a.unit] ?? {}) });
const figureOf = (spec) => ({
  ...spec, x: axis(spec.x), y: axis(spec.y),
  series: spec.series.map((s) => ({ ...s, name: saes[s.sae].name, index: s.sae, end: s.end ?? undefined })),
});
const figuresOf = (section) => data.figures.filter((f) => f.section === section).map(figureOf);

// ---- the table

function sortable(table) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const descending = head.getAttribute("aria-sort") === "ascending" || (!head.hasAttribute("aria-sort") && head.dataset.first === "descending");
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [u, v] = [key(a), key(b)];
      if (u === "" || v === "") return (u === "") - (v === ""); // what was not measured stays last
      const order = head.classList.contains("text") ? u.localeCompare(v, "en", { numeric: true }) : Number(u) - Number(v);
      return descending ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  }));
}

// ---- overlap

function paintMatrix() {
  document.querySelectorAll("td[data-share]").forEach((cell) => { cell.style.background = `rgba(var(--heat), ${(0.75 * Math.max(0, Math.min(1, Number(cell.dataset.share)))).toFixed(3)})`; });
}

function start() {
  chooseLooks(saes.map((s) => s.family));
  setTheme(prefersDark.matches ? "dark" : "light");
  document.querySelectorAll("table.results").forEach(sortable);
  paintMatrix();
  browseLatents();
  for (const section of ["pareto", "layers", "training", "density", "features", "calibration"]) group(`${section}-figures`, figuresOf(section));
  root.dataset.drawn = String(figures.length);
}

// The page: which SAEs are shown, the figures, the sortable table and the latents. Data come from the JSON block; every
// string of it (names, tokens, texts) is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const saes = data.saes;
const hidden = new Set();
const isShown = (index) => !hidden.has(index);
const figures = [];
const legends = [];
const root = document.documentElement;

const familyOf = (s) => JSON.stringify([s.hook, s.kind, s.num_latents]);

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

const seriesOf = (points) => saes.map((s, index) => ({ name: s.name, index, points: points(s), end: undefined }));

// ---- figures

// The points [x, y, index of the SAE] of SAEs that have the same key, from left to right.
function linked(pointsOf, keyOf) {
  const groups = new Map();
  saes.forEach((s, i) => groups.set(keyOf(s), [...(groups.get(keyOf(s)) ?? []), ...pointsOf(s, i)]));
  return [...groups.values()].map((group) => group.sort((a, b) => a[0] - b[0]));
}

function spreadsWidely(values, factor) {
  const usable = values.filter((v) => v > 0);
  return usable.length > 0 && Math.max(...usable) / Math.min(...usable) > factor;
}

function pareto() {
  const logL0 = spreadsWidely(saes.map((s) => s.l0), 4);
  const links = (value) => linked((s, i) => (value(s) === null ? [] : [[s.l0, value(s), i]]), familyOf);
  const spec = (title, note, value, y, better) => ({
    title, note, kind: "scatter", better, links: links(value), x: { label: "L0 (active latents per token)", log: logL0, pad: 0.12 }, y,
    series: seriesOf((s) => (value(s) === null ? [] : [[s.l0, value(s), [["alive latents", whole(s.alive)]]]])),
  });
  return [
    spec("L0 and FVU", "", (s) => s.fvu, { label: "fraction of variance unexplained", pad: 0.15 }, "↙ better"),
    spec("L0 and CE loss recovered", "", (s) => s.ce_recovered, { label: "CE loss recovered", pad: 0.15 }, "↖ better"),
  ];
}

function layers() {
  const spec = (title, column, y) => ({
    title, kind: "scatter", y, x: { label: "block", pad: 0.12, say: (v) => `block ${whole(v)}` },
    links: linked((s, i) => s.layers.filter((l) => l[column] !== null).map((l) => [l[0], l[column], i]), (s) => s.across_layers),
    series: seriesOf((s) => s.layers.filter((l) => l[column] !== null).map((l) => [l[0], l[column], [["L0", short(s.l0)]]])),
  });
  const shares = [...new Set(saes.flatMap((s) => Object.keys(s.decoder_shares)))].map((hook) => {
    const series = seriesOf((s) => (s.decoder_shares[hook]?.counts ?? []).map((c, i) => [s.decoder_shares[hook].edges[i], c]));
    series.forEach((one) => { one.end = 1; });
    return {
      title: `Decoder norm at ${hook}`, note: "1: latents of this hook alone", kind: "step", series,
      x: { label: "share of the decoder norm", pad: 0, say: (v) => `share ${trim(v, 3)} to ${trim(v + 0.05, 3)}` }, y: { label: "alive latents", zero: true, tell: short },
    };
  });
  return [
    spec("FVU by layer", 1, { label: "fraction of variance unexplained", pad: 0.15 }),
    spec("CE loss recovered by layer", 2, { label: "CE loss recovered", pad: 0.15 }),
    ...shares,
  ];
}

function training() {
  const spec = (title, key, y) => ({
    title, kind: "line", x: { label: "rows seen", pad: 0.01, say: (v) => `${whole(v)} rows` }, y,
    series: seriesOf((s) => (s.training ? s.training.rows.map((r, i) => [r, s.training[key][i]]).filter((p) => p[1] !== null) : [])),
  });
  const values = (key) => saes.flatMap((s) => s.training?.[key] ?? []);
  return [
    spec("FVU", "fvu", { label: "fraction of variance unexplained", log: spreadsWidely(values("fvu"), 8) }),
    spec("L0", "l0", { label: "active latents per token", log: spreadsWidely(values("l0"), 8) }),
    spec("Dead latents", "dead", { label: "dead latents", zero: true }),
  ];
}

function density() {
  const bins = (s) => s.density.histogram;
  const histogram = seriesOf((s) => bins(s).counts.map((c, i) => [bins(s).edges[i], c]));
  histogram.forEach((h, i) => { h.end = bins(saes[i]).edges.at(-1); });
  return [
    {
      title: "Density by rank", note: "alive latents, densest first", kind: "line",
      x: { label: "rank", log: true, pad: 0.01, say: (v) => `rank ${whole(v)}` }, y: { label: "density (share of tokens)", log: true, tell: percent },
      series: seriesOf((s) => s.density.rank.map((r, i) => [r, s.density.density[i]])),
    },
    {
      title: "Density histogram", note: "alive latents", kind: "step",
      x: { label: "log₁₀ density", pad: 0, say: (v) => `log₁₀ density ${trim(v, 3)} to ${trim(v + 0.25, 3)}` },
      y: { label: "latents", zero: true, tell: short }, series: histogram,
    },
  ];
}

function features() {
  const bins = saes.map(({ features_per_token: { edges, counts } }) => {
    const total = counts.reduce((a, b) => a + b, 0);
    return { edges, shares: counts.map((c) => c / total), heights: counts.map((c, i) => c / total / (edges[i + 1] - edges[i])) };
  });
  const histogram = seriesOf(() => []);
  const cumulative = seriesOf(() => []);
  bins.forEach(({ edges, shares, heights }, i) => {
    let sum = 0;
    histogram[i].points = heights.map((h, j) => [edges[j], h]);
    histogram[i].end = edges.at(-1);
    cumulative[i].points = [...(edges[1] > 1 ? [[0, 0]] : []), ...shares.map((s, j) => [edges[j + 1] - 1, (sum += s)])];
    cumulative[i].end = Math.max(...bins.map((b) => b.edges.at(-1)));
  });
  // Where the number is fixed, as for TopK, all tokens are in one bin: its spike must not flatten the others.
  const highest = bins.map(({ heights }) => Math.max(...heights));
  const spread = highest.filter((h) => h < 0.5);
  const cut = spread.length && spread.length < highest.length ? 1.25 * Math.max(...spread) : null;
  const x = { label: "active latents of a token", pad: 0.02, say: (v) => `${short(v)} active latents` };
  return [
    { title: "Active latents per token", note: cut ? "spikes of fixed L0 are cut" : "", kind: "step", x, y: { label: "share of tokens", zero: true, tell: percent, to: cut }, series: histogram },
    { title: "Cumulative", note: "tokens with at most so many", kind: "step", outline: true, x: { ...x, say: (v) => `at most ${short(v)} active latents` }, y: { label: "share of tokens", zero: true, tell: percent, to: 1.02 }, series: cumulative },
  ];
}

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

// ---- latents

const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb]/;

// A token as nodes: ordinary text as it is, line ends as ↵, tabs as →, runs of spaces as dots, and what cannot be seen
// (control characters, direction marks) by its code, so that text can neither hide nor reorder the page.
function tokenNodes(text, token) {
  const mark = (s) => element("i", {}, s);
  const nodes = [];
  let plain = "";
  const flush = () => { if (plain) nodes.push(plain); plain = ""; };
  const blank = /^\s+$/.test(token);
  for (const part of text.match(/ {2,}|\r?\n|[\s\S]/gu) ?? []) {
    if (part.endsWith("\n")) { flush(); nodes.push(mark("↵")); }
    else if (part === "\t") { flush(); nodes.push(mark("→")); }
    else if (/^ +$/.test(part) && (blank || part.length > 1)) { flush(); nodes.push(mark("·".repeat(part.length))); }
    else if (INVISIBLE.test(part)) { flush(); nodes.push(mark(`‹${part.codePointAt(0).toString(16).padStart(4, "0")}›`)); }
    else plain += part;
  }
  flush();
  if (!nodes.length) nodes.push(mark("∅"));
  return nodes;
}

function contextLine(context, most) {
  const words = element("span", { class: "words", tabindex: 0, role: "img", "aria-label": context.tokens.join("") });
  const spans = context.tokens.map((token, i) => {
    const a = context.activations[i];
    const span = element("span", { class: `t${i === context.peak ? " peak" : ""}${a === null ? " none" : ""}` }, ...tokenNodes(token, token));
    if (a) span.style.background = `rgba(var(--heat), ${(0.1 + 0.6 * Math.min(1, Math.abs(a) / most)).toFixed(3)})`;
    return span;
  });
  words.append(...spans);
  const tell = (i, x, y, say) => showTip(x, y, [
    element("div", { class: "row" }, element("span", { class: "mono" }, JSON.stringify(context.tokens[i])), element("b", {}, context.activations[i] === null ? "not measured" : short(context.activations[i]))),
    element("div", { class: "head" }, `token ${context.token_ids[i]} · document ${context.document} · sequence ${context.sequence}, position ${context.position - context.peak + i}`),
  ], say);
  words.addEventListener("pointermove", (event) => {
    const i = spans.indexOf(event.target.closest(".t"));
    if (i >= 0) tell(i, event.clientX, event.clientY, false); else hideTip();
  });
  words.addEventListener("pointerleave", hideTip);
  let at = -1;
  const leave = () => { spans[at]?.classList.remove("at"); at = -1; hideTip(); };
  words.addEventListener("blur", leave);
  words.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") leave();
    if (!step) return;
    event.preventDefault();
    spans[at]?.classList.remove("at");
    at = at < 0 ? context.peak : Math.min(spans.length - 1, Math.max(0, at + step));
    spans[at].classList.add("at");
    const box = spans[at].getBoundingClientRect();
    tell(at, box.left, box.bottom, true);
  });
  return element("div", { class: "context" }, element("span", { class: "value" }, short(context.activations[context.peak], 3)), words);
}

function sparkHistogram(histogram, index) {
  const [width, height] = [120, 34];
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Distribution of the activations" });
  svg.append(shape("line", { x1: 0, x2: width, y1: height, y2: height, stroke: cssColor("--faint") }));
  const most = Math.max(...histogram.counts, 1);
  const bar = width / histogram.counts.length;
  histogram.counts.forEach((count, i) => {
    const tall = count ? Math.max(1.5, (Math.log1p(count) / Math.log1p(most)) * (height - 2)) : 0;
    svg.append(shape("rect", { x: (i * bar).toFixed(2), y: (height - tall).toFixed(2), width: (bar - 0.8).toFixed(2), height: tall.toFixed(2), fill: seriesColor(index), opacity: 0.75 }));
  });
  svg.append(shape("title", {}, `Activations from ${short(histogram.edges[0])} to ${short(histogram.edges.at(-1))}; heights are the logarithm of counts, at most ${whole(most)}`));
  return svg;
}

const FIRST_CONTEXTS = 4;
function latentCard(latent, sae, index) {
  const lines = latent.contexts.map((c) => contextLine(c, latent.max_activation));
  const list = element("div", {}, ...lines.slice(0, FIRST_CONTEXTS));
  const rest = lines.slice(FIRST_CONTEXTS);
  const card = element("article", { class: "panel card" },
    element("div", { class: "top" },
      element("div", {}, element("h3", {}, `Latent ${latent.index}`),
        element("p", {}, `fires on ${percent(latent.density)} of tokens · rank ${whole(latent.rank)} of ${whole(sae.alive)} alive · max ${short(latent.max_activation, 3)} · mean ${short(latent.mean_activation, 3)}`)),
      sparkHistogram(latent.activation_histogram, index)),
    list);
  if (rest.length) card.append(element("button", { type: "button", class: "more", onclick: (event) => { list.append(...rest); event.target.remove(); } }, `${rest.length} more`));
  return card;
}

function latents() {
  const place = document.getElementById("latent-browser");
  const shown = saes.map((s, i) => i).filter((i) => saes[i].latents.length);
  if (!shown.length) return place.append(element("p", { class: "panel empty" }, place.dataset.empty));
  let current = shown[0];
  const tabs = element("div", { class: "tabs", role: "tablist", "aria-label": "SAE" });
  const order = element("select", {}, ...[["rank", "densest first"], ["rare", "rarest first"], ["max", "strongest first"]].map(([value, text]) => element("option", { value }, text)));
  const search = element("input", { type: "search", placeholder: "text in a context, or a number" });
  const count = element("span", {});
  const cards = element("div", { class: "cards", role: "tabpanel" });
  const compare = { rank: (a, b) => a.rank - b.rank, rare: (a, b) => b.rank - a.rank, max: (a, b) => b.max_activation - a.max_activation };
  const drawCards = () => {
    const sae = saes[current];
    const text = search.value.toLowerCase();
    const matches = (l) => !text || String(l.index) === text || l.contexts.some((c) => c.tokens.join("").toLowerCase().includes(text));
    const found = sae.latents.filter(matches).sort(compare[order.value]);
    cards.replaceChildren(...found.map((l) => latentCard(l, sae, current)));
    count.textContent = `${found.length} of ${sae.latents.length} sampled latents`;
  };
  const drawTabs = () => tabs.replaceChildren(...shown.map((i) => element("button", {
    type: "button", role: "tab", "aria-selected": String(i === current), tabindex: i === current ? 0 : -1, onclick: () => choose(i),
  }, swatch(i), saes[i].name)));
  const choose = (i) => { current = i; drawTabs(); drawCards(); tabs.children[shown.indexOf(i)].focus({ preventScroll: true }); };
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(shown[(shown.indexOf(current) + step + shown.length) % shown.length]);
  });
  order.addEventListener("change", drawCards);
  search.addEventListener("input", drawCards);
  latentView = () => { drawTabs(); drawCards(); };
  latentView();
  place.append(tabs, element("div", { class: "tools" }, element("label", {}, "Order ", order), element("label", {}, "Find ", search), count), cards);
}

chooseLooks(saes.map(familyOf));
setTheme(prefersDark.matches ? "dark" : "light");
document.querySelectorAll("table.results").forEach(sortable);
latents();
group("pareto-figures", pareto());
group("layers-figures", layers());
group("training-figures", training());
group("density-figures", density());
group("features-figures", features());
root.dataset.drawn = String(figures.length);

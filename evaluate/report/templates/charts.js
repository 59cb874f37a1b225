// Charts as inline SVG: axes, nice ticks, log scales, hover values, arrow keys. Nothing but the DOM is used, text is
// only ever set as text, and colours are written into the SVG so that a saved figure keeps them.
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];
const MARKERS = ["circle", "square", "triangle", "diamond", "cross", "down", "star", "plus"];
const EDGE = { right: 16, top: 12, bottom: 42 };

const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// How series i looks: numbers of a colour, a dash and a marker. A page of few SAEs gives each its own colour; a grid
// gives each family its own, and tells its members by their dashes.
let looks = [];
function chooseLooks(families) {
  const names = [...new Set(families)];
  const seen = new Map();
  looks = families.map((family, i) => {
    const member = seen.get(family) ?? 0;
    seen.set(family, member + 1);
    if (families.length <= 8) return { color: i, dash: 0, marker: i };
    return { color: names.indexOf(family), dash: member, marker: names.indexOf(family) };
  });
}
const seriesColor = (i) => cssColor(`--c${looks[i].color % 8}`);
const seriesDash = (i) => DASHES[(looks[i].dash + Math.floor(looks[i].color / 8)) % DASHES.length];
const seriesMarker = (i) => MARKERS[(looks[i].marker + Math.floor(looks[i].marker / 8)) % MARKERS.length];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function markerPath(kind, x, y, r) {
  const p = (...xy) => "M" + xy.map(([a, b]) => `${(x + a * r).toFixed(2)},${(y + b * r).toFixed(2)}`).join("L") + "Z";
  if (kind === "square") return p([-0.88, -0.88], [0.88, -0.88], [0.88, 0.88], [-0.88, 0.88]);
  if (kind === "triangle") return p([0, -1.15], [1.1, 0.85], [-1.1, 0.85]);
  if (kind === "down") return p([0, 1.15], [1.1, -0.85], [-1.1, -0.85]);
  if (kind === "diamond") return p([0, -1.25], [1.1, 0], [0, 1.25], [-1.1, 0]);
  if (kind === "plus" || kind === "cross") {
    const arm = [[-0.35, -1.15], [0.35, -1.15], [0.35, -0.35], [1.15, -0.35], [1.15, 0.35], [0.35, 0.35],
      [0.35, 1.15], [-0.35, 1.15], [-0.35, 0.35], [-1.15, 0.35], [-1.15, -0.35], [-0.35, -0.35]];
    const turn = Math.SQRT1_2;
    return p(...(kind === "plus" ? arm : arm.map(([a, b]) => [(a - b) * turn, (a + b) * turn])));
  }
  if (kind === "star") {
    const at = (i) => [Math.sin((i * Math.PI) / 5), -Math.cos((i * Math.PI) / 5)].map((v) => v * (i % 2 ? 0.55 : 1.3));
    return p(...Array.from({ length: 10 }, (_, i) => at(i)));
  }
  return `M${x - r},${y}a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`;
}

function swatch(i) {
  const svg = shape("svg", { width: 26, height: 12, viewBox: "0 0 26 12", class: "dot", "aria-hidden": "true" });
  const color = seriesColor(i);
  svg.append(shape("line", { x1: 1, x2: 25, y1: 6, y2: 6, stroke: color, "stroke-width": 2, "stroke-dasharray": seriesDash(i) }));
  svg.append(shape("path", { d: markerPath(seriesMarker(i), 13, 6, 4.2), fill: color }));
  return svg;
}

// ---- numbers

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const power = (e) => "10" + [...String(e)].map((c) => SUPERSCRIPT[c]).join("");

function short(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return trim(value / 1e9, digits) + "B";
  if (size >= 1e6) return trim(value / 1e6, digits) + "M";
  if (size >= 1e4) return trim(value / 1e3, digits) + "k";
  if (size !== 0 && size < 1e-3) return value.toExponential(Math.max(0, digits - 2)).replace("e", "·10").replace(/10([+-]?\d+)$/, (_, e) => power(Number(e)));
  return trim(value, digits);
}
const trim = (value, digits) => String(Number(value.toPrecision(digits)));
const whole = (value) => Math.round(value).toLocaleString("en-US");
const percent = (share) => trim(100 * share, 3) + " %";

// ---- scales

function linearTicks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 2.5, 5].find((s) => s * unit >= rough) ?? 10);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high, room) {
  const decades = Math.log10(high / low);
  const within = decades <= 1 ? [1, 2, 3, 5, 7] : decades <= 2.2 ? [1, 2, 5] : [1];
  const skip = Math.max(1, Math.ceil(decades / room));
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    if (within.length === 1 && e % skip) continue;
    for (const m of within) if (m * 10 ** e >= low * 0.999 && m * 10 ** e <= high * 1.001) ticks.push(Number((m * 10 ** e).toPrecision(6)));
  }
  return ticks;
}

function makeScale(values, { log = false, zero = false, pad = 0.04, from = null, to = null }, pixels) {
  const usable = values.filter((v) => Number.isFinite(v) && (!log || v > 0));
  let low = usable.length ? Math.min(...usable) : log ? 1 : 0;
  let high = usable.length ? Math.max(...usable) : log ? 10 : 1;
  if (zero) [low, high] = [Math.min(low, 0), high > 0 ? high : 1];
  const forward = log ? Math.log10 : (v) => v;
  const back = log ? (v) => 10 ** v : (v) => v;
  let [a, b] = [forward(low), forward(high)];
  // A flat series still gets an axis around it.
  if (b - a < (log ? 0.02 : Math.abs(a) * 1e-6 + 1e-12)) [a, b] = log ? [a - 0.2, b + 0.2] : [a - (Math.abs(a) * 0.1 || 0.5), b + (Math.abs(b) * 0.1 || 0.5)];
  const space = (b - a) * pad;
  [low, high] = [from ?? back(zero && low >= 0 ? a : a - space), to ?? back(b + space)];
  [a, b] = [forward(low), forward(high)];
  const [start, end] = pixels;
  const room = Math.abs(end - start);
  const scale = (v) => start + ((forward(v) - a) / (b - a)) * (end - start);
  scale.ticks = log ? logTicks(low, high, room / 48) : linearTicks(low, high, Math.max(2, Math.round(room / 52)));
  scale.format = log ? (v) => (v >= 0.01 && v < 1e4 ? short(v) : Number.isInteger(Math.log10(v)) ? power(Math.round(Math.log10(v))) : short(v, 2)) : (v) => short(v);
  return scale;
}

// ---- tooltip

const tip = document.getElementById("tip");
const spoken = document.getElementById("spoken");
function showTip(x, y, nodes, say = false) {
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - box.width - 12 : x + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.min(innerHeight - box.height - 4, Math.max(4, y + 14))}px`;
  if (say) spoken.textContent = tip.innerText;
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });

function tipRow(series, text) {
  return element("div", { class: "row" }, swatch(series.index), element("span", {}, series.name), element("b", {}, text));
}

// ---- charts

// One figure, as figures.py makes it. spec: { title, note, x: {label, log, zero, say}, y: {..., tell},
// kind: "line" | "step" | "scatter", series: [{name, index, points: [[x, y], ...], fit, intervals, facts}],
// links: [[number of an SAE, ...], ...], front: [[x, y], ...], better: text }.
// A "step" series is a histogram: each point is [left edge, height], and `end` is the right edge of the last bin;
// `outline` draws only its upper edge.
function figure(spec, isShown) {
  const plot = element("div", { class: "plot" });
  const save = (kind, make) => element("button", { type: "button", title: `Save this figure as ${kind}`, onclick: make }, kind);
  const node = element("figure", { class: "panel" },
    element("figcaption", {}, element("b", {}, spec.title), element("span", {}, spec.note ?? ""),
      save("SVG", () => saveSvg(plot, spec)), save("CSV", () => saveCsv(spec))), plot);
  let emphasis = null;
  const draw = () => { if (plot.clientWidth) plot.replaceChildren(drawChart(spec, plot, isShown, emphasis)); };
  new ResizeObserver(draw).observe(plot);
  return { node, draw, emphasize: (index) => { emphasis = index; draw(); } };
}

let frames = 0;
function drawChart(spec, plot, isShown, emphasis) {
  const [width, height] = [plot.clientWidth, plot.clientHeight];
  const svg = shape("svg", { xmlns: SVG, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": describe(spec),
    "font-family": "system-ui, sans-serif", "font-size": 11.5 });
  const series = spec.series.filter((s) => isShown(s.index) && s.points.length);
  const text = cssColor("--muted");
  const bounds = (from) => series.flatMap((s) => (s.intervals ?? []).flatMap((i) => i.slice(from, from + 2)).filter((v) => v !== null));
  const y = makeScale([...series.flatMap((s) => s.points.map((p) => p[1])), ...bounds(2)], spec.y, [height - EDGE.bottom, EDGE.top]);
  const tickText = spec.y.tell ?? y.format;
  const left = 32 + 6.4 * Math.max(2, ...y.ticks.map((tick) => tickText(tick).length));
  const xs = [...series.flatMap((s) => [...s.points.map((p) => p[0]), ...(s.end !== undefined ? [s.end] : [])]), ...bounds(0)];
  const x = makeScale(xs, spec.x, [left, width - EDGE.right]);
  for (const tick of y.ticks) {
    svg.append(shape("line", { x1: left, x2: width - EDGE.right, y1: y(tick), y2: y(tick), stroke: cssColor("--grid") }));
    svg.append(shape("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end", fill: text }, tickText(tick)));
  }
  for (const tick of x.ticks) {
    svg.append(shape("line", { x1: x(tick), x2: x(tick), y1: EDGE.top, y2: height - EDGE.bottom, stroke: cssColor("--grid") }));
    svg.append(shape("text", { x: x(tick), y: height - EDGE.bottom + 16, "text-anchor": "middle", fill: text }, x.format(tick)));
  }
  svg.append(shape("path", { d: `M${left},${EDGE.top}V${height - EDGE.bottom}H${width - EDGE.right}`, fill: "none", stroke: cssColor("--faint") }));
  svg.append(shape("text", { x: (left + width - EDGE.right) / 2, y: height - 6, "text-anchor": "middle", fill: text }, spec.x.label));
  const middle = (EDGE.top + height - EDGE.bottom) / 2;
  svg.append(shape("text", { x: 13, y: middle, "text-anchor": "middle", fill: text, transform: `rotate(-90 13 ${middle})` }, spec.y.label));
  if (spec.better) {
    const upper = spec.better.startsWith("↖");
    svg.append(shape("text", { x: left + 9, y: upper ? EDGE.top + 15 : height - EDGE.bottom - 9, fill: cssColor("--faint") }, spec.better));
  }
  if (!series.length) svg.append(shape("text", { x: width / 2, y: middle, "text-anchor": "middle", fill: text }, "nothing to show"));
  const pointsOf = (sae) => series.find((s) => s.index === sae)?.points ?? [];
  if (spec.front?.length > 1) svg.append(shape("path", { d: linePath(spec.front, x, y), fill: "none", stroke: cssColor("--faint"), "stroke-width": 5, "stroke-opacity": 0.35, "stroke-linejoin": "round", class: "front" }));
  for (const link of spec.links ?? []) {
    const shown = link.flatMap(pointsOf).sort((a, b) => a[0] - b[0]);
    const one = new Set(link.map((sae) => looks[sae].color)).size === 1;
    if (shown.length > 1) svg.append(shape("path", { d: linePath(shown, x, y), fill: "none", stroke: one ? seriesColor(link[0]) : cssColor("--faint"), "stroke-dasharray": "3 3", class: "link" }));
  }
  // Where no label may go: the markers, and then the labels themselves.
  const labels = spec.kind === "scatter" ? series.flatMap((s) => s.points.map((p) => [x(p[0]) - 6, y(p[1]) - 6, x(p[0]) + 6, y(p[1]) + 6])) : [];
  const frame = shape("clipPath", { id: `frame${++frames}` });
  frame.append(shape("rect", { x: left, y: EDGE.top - 8, width: width - left, height: height - EDGE.top - EDGE.bottom + 9 }));
  svg.append(frame);
  for (const s of series) drawSeries(svg, s, spec, x, y, emphasis !== null && emphasis !== s.index ? 0.18 : 1, labels, [left, width]);
  const marks = shape("g", { "pointer-events": "none" });
  svg.append(marks);
  addPointer(svg, marks, spec, series, x, y, plot);
  return svg;
}

const describe = (spec) => `${spec.title}. ${spec.y.label} over ${spec.x.label}, ${spec.series.length} series. Arrow keys read the values.`;
const linePath = (points, x, y) => "M" + points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join("L");

function drawSeries(svg, s, spec, x, y, opacity, labels, size) {
  const color = seriesColor(s.index);
  const group = shape("g", { opacity, class: "series", ...(spec.kind === "scatter" ? {} : { "clip-path": `url(#frame${frames})` }) });
  const usable = s.points.filter((p) => (!spec.x.log || p[0] > 0) && (!spec.y.log || p[1] > 0) && p[1] !== null);
  if (s.fit?.length) group.append(shape("path", { d: linePath(s.fit, x, y), fill: "none", stroke: color, "stroke-width": 1.2, "stroke-dasharray": "1 3", class: "fit" }));
  (s.intervals ?? []).forEach((interval, i) => drawInterval(group, s.points[i], interval, x, y, color, spec));
  if (spec.kind === "scatter") {
    for (const [px, py] of usable) {
      group.append(shape("path", { d: markerPath(seriesMarker(s.index), x(px), y(py), 6), fill: color, stroke: cssColor("--panel"), "stroke-width": 1.2 }));
      placeLabel(group, s.name, x(px), y(py), labels, size);
    }
  } else if (spec.kind === "step" && usable.length) {
    const base = y(0);
    const path = [`M${x(usable[0][0]).toFixed(1)},${base}`];
    s.points.forEach((p, i) => path.push(`V${y(p[1]).toFixed(1)}H${x(i + 1 < s.points.length ? s.points[i + 1][0] : s.end).toFixed(1)}`));
    if (!spec.outline) path.push(`V${base}`);
    group.append(shape("path", { d: path.join(""), fill: spec.outline ? "none" : color, "fill-opacity": spec.series.length > 8 ? 0 : 0.09, stroke: color, "stroke-width": 1.8, "stroke-dasharray": seriesDash(s.index) }));
  } else if (usable.length) {
    group.append(shape("path", { d: linePath(usable, x, y), fill: "none", stroke: color, "stroke-width": 2, "stroke-linejoin": "round", "stroke-dasharray": seriesDash(s.index) }));
    // A few markers on the line, so that it can be told by its shape as well; a lone point is only a marker.
    const every = Math.max(1, Math.floor(usable.length / 4));
    for (let i = Math.floor(every / 2); i < usable.length; i += every) group.append(shape("path", { d: markerPath(seriesMarker(s.index), x(usable[i][0]), y(usable[i][1]), 3.6), fill: color }));
  }
  svg.append(group);
}

// Bars over a 95 % interval: [low x, high x, low y, high y], null where it is not known.
function drawInterval(group, [px, py], [x0, x1, y0, y1], x, y, color, spec) {
  const bar = (d) => group.append(shape("path", { d, fill: "none", stroke: color, "stroke-width": 1.2, class: "interval" }));
  if (x0 !== null && (!spec.x.log || x0 > 0)) bar(`M${x(x0).toFixed(1)},${y(py).toFixed(1)}H${x(x1).toFixed(1)}`);
  if (y0 !== null && (!spec.y.log || y0 > 0)) bar(`M${x(px).toFixed(1)},${y(y0).toFixed(1)}V${y(y1).toFixed(1)}`);
}

function placeLabel(group, name, px, py, labels, [first, last]) {
  const label = name.length > 22 ? name.slice(0, 21) + "…" : name;
  const reach = label.length * 6.3;
  for (const [dx, dy, anchor] of [[10, 4, "start"], [-10, 4, "end"], [0, -12, "middle"], [0, 19, "middle"], [10, -9, "start"], [-10, 17, "end"]]) {
    const left = px + dx - (anchor === "end" ? reach : anchor === "middle" ? reach / 2 : 0);
    const box = [left, py + dy - 10, left + reach, py + dy + 3];
    const inside = box[0] > first && box[2] < last - 4 && box[1] > 0;
    if (!inside || labels.some((o) => box[0] < o[2] && o[0] < box[2] && box[1] < o[3] && o[1] < box[3])) continue;
    labels.push(box);
    group.append(shape("text", { x: px + dx, y: py + dy, "text-anchor": anchor, fill: cssColor("--text") }, label));
    return;
  }
}

// Hover and arrow keys: the nearest x of all shown series (lines, histograms) or the nearest point (scatter).
function addPointer(svg, marks, spec, series, x, y, plot) {
  const stops = spec.kind === "scatter"
    ? series.flatMap((s) => s.points.map((p) => ({ x: p[0], y: p[1], s, p }))).sort((a, b) => a.x - b.x)
    : [...new Set(series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b).map((v) => ({ x: v }));
  if (!stops.length) return;
  const at = (stop) => x(stop.x);
  let current = -1;
  const show = (i, client, say) => {
    current = i;
    const stop = stops[i];
    const box = svg.getBoundingClientRect();
    const [nodes, dots] = spec.kind === "scatter" ? tellPoint(stop, spec) : tellColumn(stop.x, spec, series);
    marks.replaceChildren();
    if (spec.kind !== "scatter") marks.append(shape("line", { x1: at(stop), x2: at(stop), y1: EDGE.top, y2: plot.clientHeight - EDGE.bottom, stroke: cssColor("--faint"), "stroke-dasharray": "2 2" }));
    for (const [s, px, py] of dots) {
      if (spec.y.log && !(py > 0)) continue;
      marks.append(shape("circle", { cx: x(px), cy: y(py), r: spec.kind === "scatter" ? 10 : 4, fill: spec.kind === "scatter" ? "none" : seriesColor(s.index), stroke: spec.kind === "scatter" ? seriesColor(s.index) : cssColor("--panel"), "stroke-width": 1.5 }));
    }
    const [cx, cy] = client ?? [box.left + at(stop), box.top + (stop.y !== undefined ? y(stop.y) : box.height / 3)];
    showTip(cx, cy, nodes, say);
  };
  const clear = () => { marks.replaceChildren(); hideTip(); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const [mx, my] = [event.clientX - box.left, event.clientY - box.top];
    let [best, distance] = [-1, Infinity];
    stops.forEach((stop, i) => {
      let d = Math.abs(at(stop) - mx);
      if (spec.kind === "scatter") d = Math.hypot(d, y(stop.y) - my);
      if (spec.kind === "step" && at(stop) > mx + 1) return; // the bin that the pointer is in
      if (d < distance) [best, distance] = [i, d];
    });
    if (best < 0 || (spec.kind === "scatter" && distance > 45)) return clear();
    show(best, [event.clientX, event.clientY], false);
  });
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") clear();
    if (!step) return;
    event.preventDefault();
    show(Math.min(stops.length - 1, Math.max(0, current + step)), null, true);
  });
}

function tellPoint(stop, spec) {
  const lines = [[spec.x.label, short(stop.x)], [spec.y.label, (spec.y.tell ?? short)(stop.y)], ...intervalLines(stop, spec), ...(stop.s.facts ?? [])];
  const nodes = [element("div", { class: "row" }, swatch(stop.s.index), element("b", {}, stop.s.name))];
  for (const [label, value] of lines) nodes.push(element("div", { class: "row" }, element("span", { class: "head" }, label), element("b", {}, value)));
  return [nodes, [[stop.s, stop.x, stop.y]]];
}

function intervalLines(stop, spec) {
  const [x0, x1, y0, y1] = stop.s.intervals?.[stop.s.points.indexOf(stop.p)] ?? [null, null, null, null];
  const line = (axis, low, high) => (low === null ? [] : [[`95 % of ${axis.label}`, `${short(low)} to ${short(high)}`]]);
  return [...line(spec.x, x0, x1), ...line(spec.y, y0, y1)];
}

function tellColumn(at, spec, series) {
  const dots = [];
  for (const s of series) {
    const point = spec.kind === "step" ? binOf(s, at) : nearest(s.points, at, spec.x.log);
    if (point && point[1] !== null) dots.push([s, point[0], point[1]]);
  }
  dots.sort((a, b) => b[2] - a[2]);
  const head = spec.x.say ? spec.x.say(at, dots) : `${spec.x.label}: ${short(at)}`;
  return [[element("div", { class: "head" }, head), ...dots.map(([s, , v]) => tipRow(s, (spec.y.tell ?? short)(v)))], spec.kind === "step" ? [] : dots];
}

function nearest(points, at, log) {
  const far = (v) => (log ? Math.abs(Math.log(v / at)) : Math.abs(v - at));
  const last = points[points.length - 1][0];
  if (at > last * (1 + 1e-9) && far(last) > (log ? 0.05 : 0.02 * Math.abs(last))) return null;
  return points.reduce((best, p) => (far(p[0]) < far(best[0]) ? p : best));
}

function binOf(s, at) {
  if (at >= s.end) return null;
  return s.points.findLast((p) => p[0] <= at + 1e-9) ?? null;
}

// ---- saving

function saveAs(name, type, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const fileName = (spec) => spec.title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");

function saveSvg(plot, spec) {
  const svg = plot.querySelector("svg").cloneNode(true);
  svg.setAttribute("width", plot.clientWidth);
  svg.setAttribute("height", plot.clientHeight);
  saveAs(`${fileName(spec)}.svg`, "image/svg+xml", new XMLSerializer().serializeToString(svg));
}

function saveCsv(spec) {
  // A leading = + - @ would make a spreadsheet take a name for a formula.
  const cell = (v) => (typeof v === "string" ? `"${v.replace(/^[=+\-@]/, "'$&").replaceAll('"', '""')}"` : String(v));
  const lines = [["sae", spec.x.label, spec.y.label], ...spec.series.flatMap((s) => s.points.map((p) => [s.name, p[0], p[1]]))];
  saveAs(`${fileName(spec)}.csv`, "text/csv", lines.map((line) => line.map(cell).join(",")).join("\n") + "\n");
}

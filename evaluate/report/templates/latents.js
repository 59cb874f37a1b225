// The latents of every SAE: a list that is searched, filtered and sorted, and the latent that is chosen in it. What they
// show comes in parts (parts.py), which are in this page or served beside it, and are read when they are needed.

// ---- parts

const TYPED = { f4: Float32Array, u4: Uint32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array, u1: Uint8Array };

async function readPart(name) {
  const inside = document.querySelector(`script[data-part="${name}"]`);
  if (!inside) {
    const answer = await fetch(`parts/${name}`);
    if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
    return unpack(await answer.arrayBuffer());
  }
  const packed = Uint8Array.from(atob(inside.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return unpack(await new Response(stream).arrayBuffer());
}

// The arrays of a part by name; those of two axes have the length of a row as `width`.
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const arrays = {};
  for (const [name, [type, shape, at]] of Object.entries(header)) {
    arrays[name] = new TYPED[type](buffer, 4 + length + at, shape.reduce((a, b) => a * b, 1));
    arrays[name].width = shape[1] ?? 1;
  }
  return arrays;
}

// ---- tokens

const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb]/;

// A token as nodes: ordinary text as it is, line ends as ↵, tabs as →, runs of spaces as dots, and what cannot be seen
// (control characters, direction marks) by its code, so that text can neither hide nor reorder the page.
function tokenNodes(token) {
  const mark = (s) => element("i", {}, s);
  const nodes = [];
  let plain = "";
  const flush = () => { if (plain) nodes.push(plain); plain = ""; };
  const blank = /^\s+$/.test(token);
  for (const part of token.match(/ {2,}|\r?\n|[\s\S]/gu) ?? []) {
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

// The text that contexts are cut from.
class Text {
  constructor(arrays) {
    Object.assign(this, arrays);
    const decoder = new TextDecoder();
    const { vocabulary_ptr: ptr, vocabulary_utf8: utf8 } = arrays;
    this.words = Array.from({ length: ptr.length - 1 }, (_, i) => decoder.decode(utf8.subarray(ptr[i], ptr[i + 1])));
  }
  word(token) { return this.words[this.text[token]]; }
  passage(token) {
    let [low, high] = [0, this.passage_ptr.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.passage_ptr[middle] <= token) low = middle; else high = middle;
    }
    return low;
  }
  window(token, radius) {
    const passage = this.passage(token);
    return [Math.max(this.passage_ptr[passage], token - radius), Math.min(this.passage_ptr[passage + 1], token + radius + 1), passage];
  }
  // Where the text, in lower case, has `wanted`: 1 for each token that a place begins in. Passages are searched one by one.
  find(wanted) {
    const found = new Uint8Array(this.text.length);
    for (let passage = 0; passage + 1 < this.passage_ptr.length; passage++) {
      const [first, end] = [this.passage_ptr[passage], this.passage_ptr[passage + 1]];
      const words = Array.from(this.text.subarray(first, end), (i) => this.words[i].toLowerCase());
      const whole = words.join("");
      let [token, begins] = [0, 0];
      for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + 1)) {
        while (begins + words[token].length <= at) begins += words[token++].length;
        found[first + token] = 1;
      }
    }
    return found;
  }
}

// ---- one latent

function contextLine(context, text, largest) {
  const { token, first, end, passage, values } = context;
  const numbers = Array.from({ length: end - first }, (_, i) => first + i);
  const words = element("span", { class: "words", tabindex: 0, role: "img", "aria-label": numbers.map((t) => text.word(t)).join("") });
  const valueAt = (t) => values.get(t) ?? (text.measured[t] ? 0 : null);
  const spans = numbers.map((t) => {
    const value = valueAt(t);
    const span = element("span", { class: `t${t === token ? " peak" : ""}${value === null ? " none" : ""}` }, ...tokenNodes(text.word(t)));
    if (value) span.style.background = `rgba(var(--heat), ${(0.1 + 0.6 * Math.min(1, Math.abs(value) / largest)).toFixed(3)})`;
    return span;
  });
  words.append(...spans);
  const tell = (i, x, y, say) => {
    const t = numbers[i];
    const value = valueAt(t);
    const id = text.vocabulary ? `token ${text.vocabulary[text.text[t]]} · ` : "";
    showTip(x, y, [
      element("div", { class: "row" }, element("span", { class: "mono" }, JSON.stringify(text.word(t))), element("b", {}, value === null ? "not measured" : short(value))),
      element("div", { class: "head" }, `${id}document ${text.document[passage]} · sequence ${text.sequence[passage]}, position ${text.position[passage] + t - text.passage_ptr[passage]}`),
    ], say);
  };
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
    at = at < 0 ? token - first : Math.min(spans.length - 1, Math.max(0, at + step));
    spans[at].classList.add("at");
    const box = spans[at].getBoundingClientRect();
    tell(at, box.left, box.bottom, true);
  });
  return element("div", { class: "context" }, element("span", { class: "value" }, short(valueAt(token), 3)), words);
}

function sparkHistogram(counts, end, index) {
  const last = counts.findLastIndex((count) => count > 0) + 1;
  const [width, height] = [180, 42];
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", class: "histogram", "aria-label": "Distribution of the activations" });
  svg.append(shape("line", { x1: 0, x2: width, y1: height, y2: height, stroke: cssColor("--faint") }));
  const most = Math.max(...counts, 1);
  const bar = width / Math.max(last, 1);
  counts.subarray(0, last).forEach((count, i) => {
    const tall = count ? Math.max(1.5, (Math.log1p(count) / Math.log1p(most)) * (height - 2)) : 0;
    svg.append(shape("rect", { x: (i * bar).toFixed(2), y: (height - tall).toFixed(2), width: Math.max(0.5, bar - 0.6).toFixed(2), height: tall.toFixed(2), fill: seriesColor(index), opacity: 0.75 }));
  });
  svg.append(shape("title", {}, `Activations from 0 to ${short((end * last) / counts.length)}; heights are the logarithm of counts, at most ${whole(most)}`));
  return svg;
}

const FIFTHS = ["0 to 20 %", "20 to 40 %", "40 to 60 %", "60 to 80 %", "80 to 100 %"];

// The contexts of row `at` of a block, in groups: the top ones, and those of each fifth of the activations.
function contextGroups(block, at, text, radius, largest) {
  const groups = [];
  let previous = null;
  for (let c = block.context_ptr[at]; c < block.context_ptr[at + 1]; c++) {
    const token = block.context_token[c];
    const [first, end, passage] = text.window(token, radius);
    const values = new Map();
    for (let a = block.activation_ptr[c]; a < block.activation_ptr[c + 1]; a++) values.set(token + block.activation_distance[a], (block.activation_share[a] / 32767) * largest);
    const fifth = block.context_fifth[c];
    if (fifth !== previous) groups.push([fifth < 0 ? "Top contexts" : `Activations from ${FIFTHS[fifth]} of the latent's`, []]);
    previous = fifth;
    groups.at(-1)[1].push(contextLine({ token, first, end, passage, values }, text, largest));
  }
  return groups;
}

function related(title, block, name, share, at, shown, choose) {
  const width = block[name].width;
  const chips = [];
  for (let k = at * width; k < (at + 1) * width; k++) {
    const number = block[name][k];
    if (number < 0) continue;
    const words = [`${number} `, element("span", { class: "d" }, share(block, k))];
    chips.push(shown.has(number) ? element("button", { type: "button", title: `Show latent ${number}`, onclick: () => choose(number) }, ...words) : element("span", { title: "Not in this page" }, ...words));
  }
  return chips.length ? element("div", {}, element("h4", {}, title), element("div", { class: "chips" }, ...chips)) : "";
}

function tokenChips(title, block, name, at, text) {
  if (!block[name]) return "";
  const width = block[name].width;
  const chips = Array.from({ length: width }, (_, k) => {
    const place = at * width + k;
    return element("span", { class: "mono" }, ...tokenNodes(text.words[block[name][place]]), element("b", {}, short(block[`${name}_effect`][place], 2)));
  });
  return element("div", {}, element("h4", {}, title), element("div", { class: "chips" }, ...chips));
}

function explanationNode(found) {
  if (!found) return "";
  const score = (label, value, help) => value === null ? "" : element("span", { title: help }, `${label} `, element("b", {}, value.toFixed(3)));
  return element("div", { class: "explanation" },
    element("p", {}, found.text ?? element("i", {}, "The judge gave no usable explanation.")),
    element("div", { class: "chips" }, score("detection", found.detection, found.detectionHelp), score("fuzzing", found.fuzzing, found.fuzzingHelp)),
    found.note ? element("p", { class: "note" }, found.note) : "");
}

// ---- the list

const ROW = 34;
const TALLEST = 8e6; // browsers do not scroll elements that are much taller

const ORDERS = {
  rank: ["densest first", (v) => (a, b) => v.density[b] - v.density[a]],
  rare: ["rarest first", (v) => (a, b) => (v.density[a] || 2) - (v.density[b] || 2)],
  max: ["strongest first", (v) => (a, b) => v.largest[b] - v.largest[a]],
  near: ["nearest to another first", (v) => (a, b) => v.nearest[b] - v.nearest[a]],
  number: ["by number", () => (a, b) => a - b],
  best: ["best explained first", (v) => (a, b) => v.score(b, -1) - v.score(a, -1)],
  worst: ["worst explained first", (v) => (a, b) => v.score(a, 2) - v.score(b, 2)],
};
const DENSITIES = { all: ["all densities", -1, 2], over: ["over 10 %", 0.1, 2], ten: ["1 to 10 %", 0.01, 0.1], one: ["0.1 to 1 %", 0.001, 0.01], low: ["under 0.1 %", 0, 0.001], dead: ["dead", -1, 0] };

class LatentView {
  constructor(index) {
    this.index = index;
    this.about = saes[index].latents;
    this.explained = new Map(saes[index].explained.map(([number, text, detection, detectionHelp, fuzzing, fuzzingHelp, note]) => [number, { text, detection, detectionHelp, fuzzing, fuzzingHelp, note }]));
    this.blocks = new Map();
  }
  async open() {
    const own = `${this.index}`;
    const [index, text] = await Promise.all([readPart(`${own}/index`), LatentView.text(this.about.text)]);
    Object.assign(this, index, { textParts: text });
    this.rowOf = new Map(Array.from(index.number, (number, row) => [number, row]));
  }
  static async text(owner) {
    LatentView.texts ??= new Map();
    if (!LatentView.texts.has(owner)) LatentView.texts.set(owner, readPart(`${owner}/text`).then((arrays) => new Text(arrays)));
    return LatentView.texts.get(owner);
  }
  block(row) {
    const number = Math.floor(row / this.about.block);
    if (!this.blocks.has(number)) {
      this.blocks.set(number, readPart(`${this.index}/block-${number}`));
      if (this.blocks.size > 64) this.blocks.delete(this.blocks.keys().next().value);
    }
    return this.blocks.get(number);
  }
  explanation(row) { return this.explained.get(this.number[row]); }
  // The detection score of a row, or else the fuzzing score; `none` where a judge has given neither.
  score(row, none) { const found = this.explanation(row); return found?.detection ?? found?.fuzzing ?? none; }
  // The rows to show, in order. Text is searched in all contexts, only at the tokens that they were chosen for, or in
  // explanations, which leaves latents that have one.
  async rows(wanted, where, density, order) {
    const [, low, high] = DENSITIES[density];
    let rows = Array.from(this.density.keys()).filter((row) => this.density[row] > low && this.density[row] <= high);
    if (where === "judge") {
      const lower = wanted.toLowerCase();
      rows = rows.filter((row) => this.explanation(row)?.text?.toLowerCase().includes(lower) || (wanted && this.number[row] === Number(wanted)));
    } else if (wanted) {
      const byNumber = this.rowOf.get(Number(wanted));
      const inText = await this.search(wanted.toLowerCase(), where);
      rows = rows.filter((row) => row === byNumber || inText[row]);
    }
    return rows.sort(ORDERS[order][1](this));
  }
  async search(wanted, where) {
    this.contexts ??= await readPart(`${this.index}/contexts`);
    const { ptr, token } = this.contexts;
    const text = this.textParts;
    const found = new Uint8Array(this.number.length);
    const upTo = new Uint32Array(text.text.length + 1);
    if (where === "peak") text.words.forEach((word, i) => { if (word.toLowerCase().includes(wanted)) (this.hits ??= new Set()).add(i); });
    else text.find(wanted).forEach((hit, t) => { upTo[t + 1] = upTo[t] + hit; });
    for (let row = 0; row < found.length; row++) {
      for (let c = ptr[row]; c < ptr[row + 1] && !found[row]; c++) {
        if (where === "peak") found[row] = Number(this.hits?.has(text.text[token[c]]) ?? false);
        else { const [first, end] = text.window(token[c], this.about.radius); found[row] = Number(upTo[end] > upTo[first]); }
      }
    }
    this.hits = null;
    return found;
  }
}

function browseLatents() {
  const place = document.getElementById("latent-browser");
  const shown = saes.map((s, i) => i).filter((i) => saes[i].latents);
  if (!shown.length) return place.append(element("p", { class: "panel empty" }, place.dataset.empty));
  const select = (choices) => element("select", {}, ...Object.entries(choices).map(([value, [text]]) => element("option", { value }, text)));
  const judged = shown.some((i) => saes[i].explained.length);
  const { best, worst, ...unjudged } = ORDERS;
  const [order, density] = [select(judged ? ORDERS : unjudged), select(DENSITIES)];
  const where = select({ text: ["in contexts"], peak: ["at the token itself"], ...(judged ? { judge: ["in explanations"] } : {}) });
  const search = element("input", { type: "search", placeholder: "text, or a number" });
  const count = element("span", { "aria-live": "polite" });
  const tabs = element("div", { class: "tabs", role: "tablist", "aria-label": "SAE" });
  const spacer = element("div", {});
  const list = element("div", { class: "panel list", role: "listbox", tabindex: 0, "aria-label": "Latents" }, spacer);
  const detail = element("article", { class: "panel card", "aria-live": "off" });
  let [view, rows, at, asked] = [null, [], 0, 0];

  const scale = () => { const whole = rows.length * ROW; return whole > TALLEST ? (whole - list.clientHeight) / (TALLEST - list.clientHeight) : 1; };
  const drawRows = () => {
    if (!view) return;
    const top = list.scrollTop * scale();
    const first = Math.max(0, Math.floor(top / ROW) - 4);
    const last = Math.min(rows.length, Math.ceil((top + list.clientHeight) / ROW) + 4);
    spacer.replaceChildren(...rows.slice(first, last).map((row, i) => {
      const token = view.first[row];
      const log = view.density[row] > 0 ? Math.max(0.03, 1 + Math.log10(view.density[row]) / 5) : 0;
      const line = element("div", { class: "row", role: "option", id: `latent-row-${first + i}`, "aria-selected": String(first + i === at), onclick: () => choose(first + i) },
        element("span", { class: "n" }, String(view.number[row])),
        view.explanation(row)?.text ? element("span", { class: "said", title: view.explanation(row).text }, view.explanation(row).text)
          : element("span", { class: "word" }, ...(token === 0xffffffff ? [] : tokenNodes(view.textParts.word(token)))),
        element("span", { class: "bar", title: "density, logarithmic" }, element("i", {})),
        element("span", { class: "d" }, percent(view.density[row])));
      line.style.top = `${(first + i) * ROW - top + list.scrollTop}px`;
      line.querySelector(".bar i").style.width = `${100 * log}%`;
      return line;
    }));
    list.setAttribute("aria-activedescendant", `latent-row-${at}`);
  };
  const reveal = () => {
    const top = list.scrollTop * scale();
    if (at * ROW < top) list.scrollTop = (at * ROW) / scale();
    else if ((at + 1) * ROW > top + list.clientHeight) list.scrollTop = ((at + 1) * ROW - list.clientHeight) / scale();
  };
  const choose = (row) => { at = Math.max(0, Math.min(rows.length - 1, row)); reveal(); drawRows(); return drawDetail(); };
  const chooseNumber = (number) => {
    const row = view.rowOf.get(number);
    const here = rows.indexOf(row);
    if (here >= 0) return choose(here);
    [search.value, density.value] = ["", "all"];
    return refresh(row);
  };

  const sayUnread = (error) => detail.replaceChildren(element("p", { class: "empty" }, `The latents could not be read (${error.message}). Is 'saecache browse' still running?`));
  const drawDetail = async () => {
    const mine = ++asked;
    if (!rows.length) return detail.replaceChildren(element("p", { class: "empty" }, "No latent matches."));
    const [own, row] = [view, rows[at]];
    let block;
    try { block = await own.block(row); } catch (error) { own.blocks.clear(); return sayUnread(error); }
    if (mine !== asked) return;
    const k = row % own.about.block;
    const [number, largest, text] = [own.number[row], own.largest[row], own.textParts];
    const end = block.histogram_end[k];
    const counts = block.histogram.subarray(k * block.histogram.width, (k + 1) * block.histogram.width);
    const groups = contextGroups(block, k, text, own.about.radius, largest);
    detail.replaceChildren(
      element("div", { class: "top" },
        element("div", {}, element("h3", {}, `Latent ${number}`),
          element("p", {}, own.density[row] > 0 ? `fires on ${percent(own.density[row])} of tokens · max ${short(largest, 3)} · mean ${short(block.mean[k], 3)}` : `dead: it fires on none of ${whole(own.about.rows)} tokens`)),
        sparkHistogram(counts, end, own.index)),
      explanationNode(own.explanation(row)),
      element("div", { class: "pair" }, tokenChips("Promoted tokens", block, "promoted", k, text), tokenChips("Suppressed tokens", block, "suppressed", k, text)),
      element("div", { class: "pair" },
        related("Nearest decoder directions (cosine)", block, "nearest", (b, i) => short(b.nearest_cosine[i], 2), k, own.rowOf, chooseNumber),
        related("Fires together with (share of its rows)", block, "coactive", (b, i) => percent(b.coactive_share[i]), k, own.rowOf, chooseNumber)),
      ...groups.flatMap(([title, lines]) => [element("h4", {}, title), element("div", { class: "contexts" }, ...lines)]));
    history.replaceState(null, "", `#latent-${own.index}-${number}`);
    detail.dataset.number = number;
  };

  const refresh = async (row) => {
    const [own, mine] = [view, ++asked];
    let found;
    try { found = await own.rows(search.value.trim(), where.value, density.value, order.value); } catch (error) { return sayUnread(error); }
    if (own !== view || mine !== asked) return;
    rows = found;
    count.textContent = `${whole(rows.length)} of ${whole(own.about.all)} latents`;
    spacer.style.height = `${Math.min(rows.length * ROW, TALLEST)}px`;
    list.scrollTop = 0;
    return choose(row === undefined ? 0 : rows.indexOf(row));
  };
  const drawTabs = () => tabs.replaceChildren(...shown.map((i) => element("button", {
    type: "button", role: "tab", "aria-selected": String(view !== null && i === view.index), tabindex: view !== null && i === view.index ? 0 : -1, onclick: () => openSae(i, true),
  }, swatch(i), saes[i].name)));
  const views = new Map();
  const openSae = async (i, focus, number) => {
    const own = views.get(i) ?? new LatentView(i);
    views.set(i, own);
    view = own;
    drawTabs();
    if (focus) tabs.children[shown.indexOf(i)].focus({ preventScroll: true });
    try { if (!own.number) await own.open(); } catch (error) { return sayUnread(error); }
    if (view === own) await refresh(own.rowOf.get(number));
  };

  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    openSae(shown[(shown.indexOf(view.index) + step + shown.length) % shown.length], true);
  });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    choose(step === -Infinity ? 0 : step === Infinity ? rows.length - 1 : at + step);
  });
  list.addEventListener("scroll", drawRows, { passive: true });
  new ResizeObserver(drawRows).observe(list);
  let pause = 0;
  search.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(() => refresh(), 120); });
  for (const control of [order, density, where]) control.addEventListener("change", () => refresh());
  latentView = () => { drawTabs(); if (view?.number) { drawRows(); drawDetail(); } };
  const readLink = () => {
    const link = location.hash.match(/^#latent-(\d+)-(\d+)$/);
    return link && shown.includes(Number(link[1])) ? [Number(link[1]), Number(link[2])] : null;
  };
  const linked = readLink();
  addEventListener("hashchange", async () => {
    const wanted = readLink();
    if (!wanted) return;
    [search.value, density.value, where.value] = ["", "all", "text"];
    await openSae(wanted[0], false, wanted[1]);
    place.scrollIntoView();
  });
  place.append(tabs, element("div", { class: "tools" }, element("label", {}, "Find ", search), where, density, order, count),
    element("div", { class: "browser" }, list, detail));
  openSae(linked ? linked[0] : shown[0], false, linked ? linked[1] : undefined)
    .then(() => { if (linked) place.scrollIntoView(); root.dataset.opened = "true"; });
}

start();

"use strict";
// What all parts of the page share: elements, numbers, polynomials, the models, and who wants to know of a change.

// An element with attributes, listeners (onclick: f), and children: elements or text, never markup.
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text", "rect", "title", "polyline", "defs", "pattern"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style" && typeof value === "object") for (const [k, v] of Object.entries(value)) { if (v !== null) element.style.setProperty(k, v); }
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter(c => c !== null && c !== undefined && c !== ""));
  return element;
}

// --- numbers as people read them, as in figures.py

const UNITS = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const digits = x => Math.abs(x) >= 99.95 ? x.toFixed(0) : Math.abs(x) >= 9.995 ? x.toFixed(1) : x.toFixed(2);
function scaled(n) {
  const [unit, letter] = UNITS.find(([u]) => Math.abs(n) >= u * 0.9995);
  return `${digits(n / unit)} ${letter}`;
}
const full = n => Math.round(n).toLocaleString("en");
const count = n => n === null || n === undefined ? "?" : Math.abs(n) < 9999.5 ? full(n) : scaled(n);
const size = n => !n ? "0 B" : n < 999.5 ? `${Math.round(n)} B` : `${scaled(n)}B`;
const bits = n => size(n / 8);
const ratio = x => x === 0 ? "0" : x >= 0.01 && x < 9999.5 ? digits(x) : x >= 9999.5 ? scaled(x) : x.toExponential(1);
function time(s) {
  if (!s) return "0 s";
  if (s >= 100) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  for (const [unit, name] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) if (s >= unit * 0.9995) return `${digits(s / unit)} ${name}`;
  return `${digits(s / 1e-9)} ns`;
}
const share = x => !x ? "0%" : x < 0.001 ? "<0.1%" : `${(100 * x).toFixed(1)}%`;
function change(before, after) {
  if (before === after) return "same";
  if (!before || !after) return before ? "gone" : "new";
  const factor = Math.max(before, after) / Math.min(before, after), word = after < before ? "less" : "more";
  if (factor >= 1.995) return `${factor < 99.5 ? factor.toFixed(1) : full(factor)}× ${word}`;
  const part = 100 * Math.abs(before - after) / before;
  return `${part >= 0.95 ? part.toFixed(0) + "%" : part >= 0.095 ? part.toFixed(1) + "%" : "<0.1%"} ${word}`;
}

// --- polynomials

const OPERATIONS = {
  div: (a, b) => Math.trunc(a / b), floor: (a, b) => Math.floor(a / b), ceil: (a, b) => Math.ceil(a / b),
  mod: (a, b) => a - b * Math.floor(a / b), min: Math.min, max: Math.max,
};
function number(d, at) {
  if (d === null || typeof d === "number") return d;
  let total = 0;
  for (const term of d.terms) {
    let product = term.factor;
    for (const atom of term.of)
      product *= typeof atom === "string" ? at[atom] ?? 1 : OPERATIONS[atom.op](...atom.of.map(a => number(a, at)));
    total += product;
  }
  return total;
}
// `2·B·⌈T/2⌉²` of `2*B*ceil(T/2)^2`; long names of free dimensions by their letters.
function formula(text, letters = {}) {
  for (const name of Object.keys(letters).sort((a, b) => b.length - a.length)) text = text.replaceAll(name, letters[name]);
  return text.replace(/(ceil|floor)\(((?:[^()]|\([^()]*\))*)\)/g, (_, f, x) => f === "ceil" ? `⌈${x}⌉` : `⌊${x}⌋`).replaceAll("*", "·")
    .replace(/(?<![\w.^])\d{5,}(?!\w)/g, n => full(+n)).replace(/\^(\d+)/g, (_, n) => [...n].map(c => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join(""));
}

// --- kinds of operators

const KINDS = {
  convolution: /^(QLinear|Deform)?Conv(Transpose|Integer)?$/,
  "matrix product": /^(QLinear)?MatMul(Integer|NBits)?$|^(Gemm|Einsum)$|::.*(Linear|MatMul|Gemm)/,
  attention: /Attention|^RotaryEmbedding$/,
  recurrent: /^(LSTM|GRU|RNN)$/,
  normalisation: /Normalization$|^(Log)?Softmax$|^Hardmax$|^LRN$/,
  reduction: /^Reduce|Pool$|^Arg(Max|Min)$|^CumSum$|^TopK$/,
  movement: new RegExp("^(Reshape|Transpose|Slice|Gather(Elements|ND)?|Scatter(Elements|ND)?|Concat|Split|Pad|Expand|" +
    "Squeeze|Unsqueeze|Flatten|Identity|Cast(Like)?|Shape|Size|Constant(OfShape)?|Range|Tile|DepthToSpace|SpaceToDepth|" +
    "Resize|Upsample|QuantizeLinear|DequantizeLinear|DynamicQuantizeLinear|EyeLike|OneHot|NonZero|Compress|Trilu|Where)$"),
};
const KIND_NAMES = [...Object.keys(KINDS), "element-wise", "unknown"];
const kindCache = new Map();
function kindOf(layer) {
  if (layer.unknown) return "unknown";
  if (!kindCache.has(layer.op))
    kindCache.set(layer.op, Object.keys(KINDS).find(k => KINDS[k].test(layer.op)) ?? "element-wise");
  return kindCache.get(layer.op);
}
const colour = kind => `var(--kind-${KIND_NAMES.indexOf(kind)})`;

// --- metrics: what a layer has much or little of

const METRICS = {
  macs: { name: "MACs", form: count },
  parameters: { name: "Parameters", form: count },
  weight_bits: { name: "Stored size", form: bits },
  flops: { name: "FLOPs", form: count },
  moved: { name: "Bytes moved", form: size },
  effective_macs: { name: "Effective MACs", form: count },
  bops: { name: "Bit operations", form: count },
  seconds: { name: "Measured time", form: time },
};
const SUMMED = [...Object.keys(METRICS), "special", "int_ops"];

// --- a model: its document, and its figures at the current sizes of free dimensions

class Model {
  constructor(doc, label, letters = {}) {
    this.doc = doc;
    this.letters = letters;
    this.label = label;
    this.at = { ...doc.sizes };
    this.layers = doc.layers.map((layer, index) => ({
      index, name: layer.name, op: layer.op, path: layer.path, raw: layer, kind: kindOf(layer),
      short: layer.name.replace(/^\/+|\/+$/g, "").split("/").slice(layer.path.length ? -1 : 0).join("/") || layer.op,
      shape: shapeText(layer.outputs[0], letters), figures: {},
    }));
    this.tree = grow(this.layers, doc.source.split("/").pop());
    this.evaluate();
  }
  evaluate() {
    const n = d => number(d, this.at);
    for (const layer of this.layers) {
      const raw = layer.raw, f = layer.figures;
      for (const key of ["macs", "flops", "special", "int_ops", "effective_macs", "bops", "parameters", "weight_bits"]) f[key] = n(raw[key]);
      f.moved = n(raw.read) + n(raw.written);
      f.seconds = raw.seconds ?? 0;
      f.intensity = f.moved ? (f.flops + f.special) / f.moved : 0;
    }
    this.live = this.doc.memory.live.map(n);
    sumUp(this.tree);
    this.totals = {};
    for (const [key, value] of Object.entries(this.doc.totals)) this.totals[key] = n(value);
    this.packed = this.totals.zeros !== null || 8 * this.totals.bytes < 30 * this.totals.parameters;
    if (this.live.length) this.totals.peak_activation_bytes = Math.max(...this.live.map(x => x), 0);
  }
  get symbols() { return Object.keys(this.at); }
}
const shapeText = (shape, letters) => shape === undefined ? "" : shape === null ? "?" : !shape.length ? "scalar" :
  shape.map(d => typeof d === "string" ? formula(d, letters) : d ?? "?").join("×");

// Modules by path; layers are the leaves. A module that only holds one other is one with it.
function grow(layers, name) {
  const root = { name, parts: new Map(), children: [], layer: null, parent: null, path: [] };
  for (const layer of layers) {
    let node = root;
    for (const part of layer.path) {
      if (!node.parts.has(part)) {
        const child = { name: part, parts: new Map(), children: [], layer: null, parent: node, path: [...node.path, part] };
        node.parts.set(part, child);
        node.children.push(child);
      }
      node = node.parts.get(part);
    }
    layer.node = { name: layer.short, children: [], layer, parent: node, path: layer.path };
    node.children.push(layer.node);
  }
  const stack = [root];
  while (stack.length) {
    const node = stack.pop();
    while (node !== root && node.children.length === 1 && !node.children[0].layer) {
      const only = node.children[0];
      Object.assign(node, { name: `${node.name}.${only.name}`, path: only.path, children: only.children });
      for (const child of node.children) child.parent = node;
    }
    stack.push(...node.children);
  }
  return root;
}
function sumUp(node) {
  if (node.layer) {
    node.figures = node.layer.figures;
    node.count = 1;
    node.kind = node.layer.kind;
    return;
  }
  node.figures = Object.fromEntries(SUMMED.map(k => [k, 0]));
  node.count = 0;
  const kinds = {};
  for (const child of node.children) {
    sumUp(child);
    for (const key of SUMMED) node.figures[key] += child.figures[key];
    node.count += child.count;
    kinds[child.kind] = (kinds[child.kind] ?? 0) + child.figures.macs + child.figures.moved / 1e3;
  }
  node.kind = Object.keys(kinds).sort((a, b) => kinds[b] - kinds[a])[0] ?? "element-wise";
}

// --- state: which model, which module, which layer

const state = { models: [], index: 0, zoom: null, layer: null };
const listeners = {};
const on = (event, f) => (listeners[event] ??= []).push(f);
const tell = event => (listeners[event] ?? []).forEach(f => f());
const model = () => state.models[state.index];
function zoomTo(node) {
  state.zoom = node;
  state.layer = null;
  tell("zoom");
}
function choose(layer) {
  state.layer = layer;
  tell("layer");
}
// The module of another model with this one's path, or the nearest above it.
function sameIn(other, node) {
  let found = other.tree;
  const wanted = node.path.join("\0");
  for (let next = found; next;) {
    found = next;
    next = found.children.find(c => !c.layer && (`${wanted}\0`).startsWith(c.path.join("\0") + "\0"));
  }
  return found;
}

// --- pieces

function section(id, title, ...children) {
  return make("section", { id, "aria-label": title }, make("h2", {}, title), ...children);
}
// Buttons of which one is pressed.
function choice(label, options, current, pick) {
  const group = make("div", { class: "choice", role: "group", "aria-label": label });
  for (const [key, text] of options)
    group.append(make("button", {
      type: "button", "aria-pressed": String(key === current), "data-key": key,
      onclick: () => {
        for (const b of group.children) b.setAttribute("aria-pressed", String(b.dataset.key === String(key)));
        pick(key);
      },
    }, text));
  return group;
}
const tip = make("div", { class: "tip", hidden: true, role: "status" });
function showTip(x, y, ...lines) {
  tip.replaceChildren(...lines.map((line, i) => make("div", { class: i ? "" : "strong" }, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + box.height + 24 > innerHeight ? Math.max(8, y - box.height - 12) : y + 14}px`;
}
const hideTip = () => { tip.hidden = true; };
// Draws again whenever the width of `box` changes.
function responsive(box, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(box.clientWidth);
    if (now && now !== width) draw(width = now);
  }).observe(box);
  return () => { if (box.clientWidth) draw(width = Math.floor(box.clientWidth)); };
}
function save(name, text, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}
// Round numbers that an axis is marked at.
function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted), power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough) ?? power;
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high * 1.0001; x += step) found.push(x);
  return found;
}

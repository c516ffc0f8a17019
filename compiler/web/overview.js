"use strict";
// Figures of the whole, sizes of free dimensions, what is unknown, two models side by side; and putting all together.

function cards() {
  const host = make("div", { class: "cards", id: "totals" });
  function draw() {
    const m = model(), t = m.totals, other = state.models.length > 1 ? state.models[0].totals : null;
    const n = key => key === "moved" ? t.read + t.written : t[key];
    const was = (key, form) => {
      if (!other) return null;
      const before = key === "moved" ? other.read + other.written : other[key];
      return m === state.models[0] ? state.models[0].label : `${change(before, n(key))}, was ${form(before)}`;
    };
    const measured = m.layers.reduce((s, l) => s + l.figures.seconds, 0), moved = t.read + t.written;
    const rows = [
      ["MACs", count(t.macs), was("macs", count) ?? full(t.macs)],
      ["FLOPs", count(t.flops), was("flops", count) ?? (t.special ? `and ${count(t.special)} special functions` : full(t.flops))],
      ["Parameters", count(t.parameters), was("parameters", count) ?? full(t.parameters)],
      ["Stored weights", size(t.bytes), was("bytes", size) ?? (t.parameters ? `${digits(8 * t.bytes / t.parameters)} bits per parameter` : "")],
      ["Peak activations", size(t.peak_activation_bytes), was("peak_activation_bytes", size) ?? (m.doc.memory.optimal ? "in the best order" : "in the best order found")],
      ["Bytes moved", size(moved), was("moved", size) ?? (moved ? `${ratio((t.flops + t.special) / moved)} FLOPs per byte` : "")],
    ];
    if (t.int_ops * 100 > t.flops) rows.push(["Integer operations", count(t.int_ops), was("int_ops", count) ?? full(t.int_ops)]);
    if (t.zeros !== null && t.parameters) rows.push(["Effective MACs", count(t.effective_macs), `${share(t.zeros / t.parameters)} of the weights are zero`]);
    if (t.bops && m.packed) rows.push(["Bit operations", count(t.bops), was("bops", count) ?? full(t.bops)]);
    const run = m.doc.measured;
    if (run) rows.push(["Measured", time(run.optimised), `${scaled(run.achieved)}OP/s; layer by layer ${time(measured)}`]);
    host.replaceChildren(...rows.map(([label, big, small]) => make("div", { class: "card" },
      make("div", { class: "label" }, label), make("div", { class: "big" }, big), make("div", { class: "small" }, small))));
  }
  for (const event of ["model", "sizes"]) on(event, draw);
  draw();
  return host;
}

function sizesForm() {
  const names = [...new Set(state.models.flatMap(m => m.symbols))];
  if (!names.length) return null;
  const fields = names.map(name => {
    const owner = state.models.find(m => name in m.at), where = owner.doc.symbols[name] ?? "not known before it runs";
    const field = make("input", { type: "number", min: 1, value: owner.at[name], id: `size-${name}`, oninput: e => {
      const value = Math.round(+e.target.value);
      if (!(value >= 1)) return;
      for (const m of state.models) if (name in m.at) { m.at[name] = value; m.evaluate(); }
      tell("sizes");
    } });
    return make("span", { class: "size", title: `${name}: ${where}` }, make("label", { for: `size-${name}` }, owner.letters[name] ?? name, " = "), field);
  });
  return section("sizes", "Free dimensions", make("p", { class: "controls" }, ...fields, make("span", { class: "soft" }, "All figures follow.")));
}

function notices() {
  const found = [];
  for (const m of state.models) {
    const of = state.models.length > 1 ? `, ${m.label}` : "", n = m.doc.unknown.length;
    if (n) {
      const part = make("section", { class: "warn", id: found.length ? null : "unknown" },
        make("h2", {}, `Unknown${of}: ${n === 1 ? "one node is" : `${full(n)} nodes are`} counted as zero`),
        make("ul", { class: "plain" }, m.doc.unknown.slice(0, 8).map(u => make("li", {}, u))));
      if (n > 8) part.append(make("details", {}, make("summary", {}, `${full(n - 8)} more`), make("ul", {}, m.doc.unknown.slice(8, 500).map(u => make("li", {}, u)))));
      found.push(part);
    }
    if (m.doc.warnings.length) found.push(make("section", { class: "warn" }, make("h2", {}, `Warnings${of}`), make("ul", { class: "plain" }, m.doc.warnings.map(w => make("li", {}, w)))));
  }
  return found;
}

function switcher() {
  if (state.models.length < 2) return null;
  const pick = key => {
    const path = state.zoom;
    state.index = +key;
    state.zoom = sameIn(model(), path);
    state.layer = null;
    tell("model");
  };
  return make("div", { class: "switcher" }, make("span", { class: "soft" }, "Showing"), choice("Model", state.models.map((m, i) => [i, `${m.label}: ${m.doc.source.split("/").pop()}`]), state.index, pick));
}

// Modules of both models, matched by path, those that cost most first.
function sideBySide() {
  if (state.models.length < 2) return null;
  const columns = [["macs", count], ["parameters", count], ["weight_bits", bits], ["moved", size], ["flops", count]];
  // What changed most is shown first.
  const [a, b] = state.models.map(m => m.tree.figures), moved = k => Math.abs(a[k] - b[k]) / Math.max(a[k], b[k], 1);
  let metric = columns.map(([k]) => k).reduce((best, k) => moved(k) > moved(best) + 0.005 ? k : best);
  const body = make("tbody"), note = make("p", { class: "soft" });
  const table = make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "module"), ["before", "after", "change"].map(h => make("th", { class: "n" }, h)))), body);
  const host = section("compare", "Before and after, by module", choice("Figure", columns.map(([k]) => [k, METRICS[k].name]), metric, k => { metric = k; draw(); }), make("div", { class: "scroll tall" }, table), note);
  function draw() {
    const form = columns.find(([k]) => k === metric)[1], pairs = new Map();
    state.models.slice(0, 2).forEach((m, side) => {
      for (const l of m.layers) for (let n = 0; n <= Math.min(3, l.path.length); n++) {
        const key = l.path.slice(0, n).join("\0");
        if (!pairs.has(key)) pairs.set(key, { path: l.path.slice(0, n), values: [null, null] });
        pairs.get(key).values[side] = (pairs.get(key).values[side] ?? 0) + l.figures[metric];
      }
    });
    const all = [...pairs.values()], worth = p => Math.max(p.values[0] ?? 0, p.values[1] ?? 0);
    const kept = new Set(all.filter(p => p.path.length && worth(p)).sort((a, b) => worth(b) - worth(a)).slice(0, 60));
    const silent = [0, 1].filter(side => ![...kept].some(p => p.values[side] !== null)).length;
    const rows = all.filter(p => !p.path.length || (!silent && kept.has(p))).sort((a, b) => order(a.path, b.path));
    body.replaceChildren(...rows.map(p => {
      const [a, b] = p.values, word = a === null ? "new" : b === null ? "gone" : change(a, b);
      return make("tr", {}, make("td", { style: { "padding-left": `${Math.max(0, p.path.length - 1) * 18}px` } }, p.path.length ? p.path.at(-1) : make("b", {}, "the whole model")),
        make("td", { class: "n soft" }, a === null ? "none" : form(a)), make("td", { class: "n" }, b === null ? "none" : form(b)),
        make("td", { class: `n ${word === "same" ? "soft" : (b ?? 0) < (a ?? 0) ? "good" : "warnt"}` }, word));
    }));
    const left = all.filter(p => p.path.length && worth(p)).length - kept.size;
    note.textContent = silent ? `${silent === 1 ? "One model does not say" : "Neither model says"} which modules its nodes came from.` : left > 0 ? `${full(left)} smaller modules are not shown.` : "";
  }
  // As the models list them, what is in a module behind it.
  const met = new Map();
  const place = path => { const key = path.join("\0"); if (!met.has(key)) met.set(key, met.size); return met.get(key); };
  for (const m of state.models) for (const l of m.layers) for (let n = 1; n <= Math.min(3, l.path.length); n++) place(l.path.slice(0, n));
  function order(a, b) {
    for (let n = 1; n <= Math.min(a.length, b.length); n++) {
      const by = place(a.slice(0, n)) - place(b.slice(0, n));
      if (by) return by;
    }
    return a.length - b.length;
  }
  on("sizes", draw);
  draw();
  return host;
}

function start() {
  const data = JSON.parse(document.getElementById("analyses").textContent);
  state.models = data.models.map(({ label, document: d, letters }) => new Model(d, label, letters));
  Object.assign(state, { devices: data.devices ?? [], device: data.device, range: data.range });
  state.index = data.models.length - 1;
  state.zoom = model().tree;
  const host = document.getElementById("analysis");
  const parts = [sizesForm(), data.cards === false ? null : cards(), ...notices(), sideBySide(), switcher(), treemap(), roofline(), memory(), growth(), layerTable()];
  host.append(...parts.filter(Boolean), tip);
  document.addEventListener("keydown", e => { if (e.key === "Escape") hideTip(); });
  document.getElementById("save-analysis")?.addEventListener("click", () =>
    save("analysis.json", JSON.stringify(data.models.length > 1 ? { version: data.models[0].document.version, a: data.models[0].document, b: data.models[1].document } : data.models[0].document, null, 1), "application/json"));
}
start();

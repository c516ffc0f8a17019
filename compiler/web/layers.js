"use strict";
// All layers, searchable and sortable. Only the rows in view are in the page: 10,000 layers stay quick.

const ROW = 30;
const HEADS = { parameters: "params", weight_bits: "stored", moved: "moved", intensity: "FLOP/B", effective_macs: "eff. MACs", seconds: "time" };

function layerTable() {
  const has = key => state.models.some(m => m.tree.figures[key]);
  const columns = [
    { key: "index", name: "#", value: l => l.index, form: l => full(l.index + 1), width: "3.6em", number: true },
    { key: "layer", name: "layer", value: l => l.short, form: l => l.short, width: "minmax(10em, 2fr)" },
    ...(state.models.some(m => m.layers.some(l => l.path.length)) ? [{ key: "module", name: "module", value: l => l.path.join("."), form: l => l.path.join("."), width: "minmax(9em, 2fr)" }] : []),
    { key: "op", name: "operator", value: l => l.op, form: l => l.unknown ? `${l.op} (unknown)` : l.op, width: "minmax(7.5em, 1fr)" },
    { key: "shape", name: "output", value: l => l.shape, form: l => l.shape, width: "minmax(7em, 1fr)" },
    ...[["macs", count], ["flops", count], ["parameters", count], ["weight_bits", bits], ["moved", size], ["intensity", ratio], ["effective_macs", count], ["seconds", time]]
      .filter(([key]) => key === "intensity" || (key === "effective_macs" ? state.models.some(m => m.totals.zeros !== null) : has(key)))
      .map(([key, form]) => ({ key, name: HEADS[key] ?? METRICS[key].name, value: l => l.figures[key], form: l => l.figures[key] ? form(l.figures[key]) : "", width: "5.2em", number: true })),
  ];
  let sorted = "index", down = false, rows = [], everywhere = false;
  const template = columns.map(c => c.width).join(" ");
  const search = make("input", { type: "search", id: "search", placeholder: "Search name, module, operator, shape", "aria-label": "Search layers", oninput: () => refresh() });
  const found = make("span", { id: "found", class: "soft", role: "status" });
  const scope = make("button", { type: "button", class: "link", onclick: () => { everywhere = !everywhere; refresh(); } });
  const download = make("button", { type: "button", class: "link", onclick: () => save("layers.csv", csv(), "text/csv") }, "Save these as CSV");
  const heads = columns.map(c => make("div", { role: "columnheader", class: c.number ? "n" : null }, make("button", { type: "button", "data-key": c.key, onclick: () => sort(c) }, c.name)));
  const body = make("div", { class: "rows" }), spacer = make("div", { class: "spacer", role: "rowgroup" }, body);
  const head = make("div", { class: "row head", role: "row", style: { "grid-template-columns": template } }, heads);
  const view = make("div", { class: "layers", role: "table", "aria-label": "Layers", style: { "--wide": `${38 + 6.1 * columns.filter(c => c.number).length}em` }, tabindex: "0", onscroll: () => paint() }, head, spacer);
  const host = section("layers", "Layers", make("p", { class: "controls" }, search, found, scope, download), view);

  const texts = new Map();
  const text = l => {
    if (!texts.has(l)) texts.set(l, `${l.name} ${fullName(l.node)} ${l.op} ${l.shape} ${l.kind} ${l.raw.unknown ? "unknown" : ""}`.toLowerCase());
    return texts.get(l);
  };
  function sort(column) {
    down = sorted === column.key ? !down : Boolean(column.number && column.key !== "index");
    sorted = column.key;
    refresh();
  }
  function refresh() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean), root = everywhere ? model().tree : state.zoom;
    const inside = root.parent ? l => { for (let n = l.node; n; n = n.parent) if (n === root) return true; return false; } : () => true;
    rows = model().layers.filter(l => inside(l) && words.every(w => text(l).includes(w)));
    const column = columns.find(c => c.key === sorted), sign = down ? -1 : 1;
    const keys = new Map(rows.map(l => [l, column.value(l)]));
    rows.sort((a, b) => sign * (column.number ? keys.get(a) - keys.get(b) : keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : 0) || a.index - b.index);
    heads.forEach((h, i) => columns[i].key === sorted ? h.setAttribute("aria-sort", down ? "descending" : "ascending") : h.removeAttribute("aria-sort"));
    found.textContent = `${full(rows.length)} of ${full(model().layers.length)} layers`;
    scope.textContent = !state.zoom.parent ? "" : everywhere ? `Only those in ${fullName(state.zoom)}` : `in ${fullName(state.zoom)}; show all`;
    spacer.style.height = `${rows.length * ROW}px`;
    view.setAttribute("aria-rowcount", rows.length + 1);
    view.scrollTop = 0;
    paint();
  }
  function paint() {
    const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 5), last = Math.min(rows.length, first + Math.ceil(view.clientHeight / ROW) + 10);
    body.style.transform = `translateY(${first * ROW}px)`;
    body.replaceChildren(...rows.slice(first, last).map((l, i) => make("div", {
      class: `row${l.raw.unknown ? " unknown" : ""}${l === state.layer ? " chosen" : ""}`, role: "row", "aria-rowindex": first + i + 2, style: { "grid-template-columns": template },
      onclick: () => { choose(l); document.getElementById("map").scrollIntoView({ block: "nearest", behavior: "smooth" }); },
    }, columns.map((c, k) => make("div", { role: "cell", class: c.number ? "n" : null, title: c.number ? null : k === 1 ? l.name : c.form(l) },
      k === 1 ? [make("i", { style: { background: colour(l.kind) } }), c.form(l)] : c.form(l))))));
  }
  function csv() {
    const cell = v => /[",\n]/.test(String(v)) ? `"${String(v).replaceAll('"', '""')}"` : String(v);
    return [columns.slice(1).map(c => c.name), ...rows.map(l => columns.slice(1).map(c => c.value(l)))].map(r => r.map(cell).join(",")).join("\n") + "\n";
  }
  on("zoom", () => { everywhere = false; refresh(); });
  for (const event of ["model", "sizes"]) on(event, refresh);
  on("layer", paint);
  refresh();
  new ResizeObserver(paint).observe(view);
  return host;
}

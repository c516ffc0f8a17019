"use strict";
// Where it goes: modules as areas. A click zooms into a module, Escape and the path above the map lead back.

const CELLS = 1200;

function treemap() {
  let metric = "macs", cells = [], focus = 0;
  const map = make("div", { class: "map", role: "group", "aria-label": "Map of modules; arrows move, Enter opens, Escape goes back" });
  const crumbs = make("nav", { class: "crumbs", "aria-label": "Module" });
  const list = make("div", { class: "list" });
  const available = Object.entries(METRICS).filter(([key]) =>
    state.models.some(m => m.tree.figures[key]) &&
    (key !== "bops" || state.models.some(m => m.packed)) &&
    !(key === "effective_macs" && state.models.every(m => m.totals.zeros === null)));
  const switches = choice("Area shows", available.map(([k, m]) => [k, m.name]), metric, key => { metric = key; redraw(); });
  const legend = make("p", { class: "kinds" });
  const host = section("map", "Where it goes", switches, crumbs, make("div", { class: "split" }, map, list), legend);

  function rectangles(nodes, x, y, w, h) {
    // Squarified: rows along the shorter side, each filled as long as its areas grow squarer (Bruls et al., 2000).
    const total = nodes.reduce((s, n) => s + n.figures[metric], 0), found = [];
    let left = nodes.map(n => ({ node: n, area: n.figures[metric] / total * w * h })), i = 0;
    while (i < left.length) {
      const side = Math.min(w, h);
      let sum = 0, worst = Infinity, end = i;
      while (end < left.length) {
        const area = sum + left[end].area, long = area / side;
        const now = Math.max(left[i].area / (long * long), (long * long) / left[end].area);
        if (now > worst) break;
        [worst, sum] = [now, area];
        end++;
      }
      const thick = sum / side;
      let along = 0;
      for (const item of left.slice(i, end)) {
        const length = item.area / thick;
        found.push(w >= h
          ? { node: item.node, x, y: y + along, w: thick, h: length }
          : { node: item.node, x: x + along, y, w: length, h: thick });
        along += length;
      }
      if (w >= h) { x += thick; w -= thick; } else { y += thick; h -= thick; }
      i = end;
    }
    return found;
  }
  const sorted = node => node.children.filter(c => c.figures[metric] > 0).sort((a, b) => b.figures[metric] - a.figures[metric]);

  function open(node) {
    if (node.layer) choose(node.layer);
    else zoomTo(node);
  }
  function up() {
    if (state.layer) choose(null);
    else if (state.zoom.parent) zoomTo(state.zoom.parent);
  }
  function cell(r, title, group, label) {
    const value = METRICS[metric].form(r.node.figures[metric]);
    const part = share(r.node.figures[metric] / model().tree.figures[metric]);
    const element = make("button", {
      type: "button", tabindex: "-1", class: group ? "cell group" : "cell", "data-name": label,
      "aria-label": `${title}: ${value}, ${part}`,
      style: { left: `${r.x}px`, top: `${r.y}px`, width: `${Math.max(0, r.w - 1)}px`, height: `${Math.max(0, r.h - 1)}px`, background: group ? null : colour(r.node.kind) },
      onclick: () => open(r.node),
      onmousemove: e => showTip(e.clientX, e.clientY, title, `${METRICS[metric].name}: ${value}, ${part}`,
        r.node.layer ? `${r.node.layer.op} ${r.node.layer.shape}` : `${full(r.node.count)} layers`),
      onmouseleave: hideTip,
    });
    if (r.w > 34 && r.h > 18) element.append(make("span", { class: "name" }, r.node.layer && r.w > 70 ? r.node.layer.op + " " : "", r.node.layer ? make("span", { class: "faint" }, label) : label));
    if (group) element.querySelector(".name").append(make("span", { class: "faint" }, ` ${part}`));
    else if (r.w > 46 && r.h > 38) element.append(make("span", { class: "value" }, r.w > 110 ? `${value} · ${part}` : value));
    cells.push(element);
    return element;
  }
  const drawMap = width => {
    const height = Math.round(Math.max(280, Math.min(520, width * 0.62))), root = state.zoom;
    map.style.height = `${height}px`;
    cells = [];
    const found = [];
    // What is in a module is drawn inside it as long as it stays large enough to be read.
    function drawIn(node, x, y, w, h, depth) {
      for (const r of rectangles(sorted(node), x, y, w, h)) {
        if (r.w * r.h < 6 || found.length >= CELLS) continue;
        // Modules of which only one other shows are drawn as that one, under both names.
        let inside = sorted(r.node), label = r.node.name;
        while (inside.length === 1 && !inside[0].layer) {
          r.node = inside[0];
          label += `.${r.node.name}`;
          inside = sorted(r.node);
        }
        const nested = inside.length > 1 && r.w > 64 && r.h > 58 && depth < 5;
        found.push(cell(r, fullName(r.node), nested, label));
        if (nested) drawIn(r.node, r.x + 3, r.y + 20, r.w - 7, r.h - 24, depth + 1);
      }
    }
    drawIn(root, 0, 0, width, height, 0);
    if (!found.length) found.push(make("p", { class: "soft empty" }, `Nothing here has any ${METRICS[metric].name}.`));
    const focused = map.contains(document.activeElement);
    map.replaceChildren(...found);
    focus = 0;
    if (cells[0]) cells[0].tabIndex = 0;
    if (focused) cells[0]?.focus();
  };
  const draw = responsive(map, drawMap);
  map.addEventListener("keydown", e => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
    if (step && cells.length) {
      cells[focus].tabIndex = -1;
      focus = (cells.indexOf(document.activeElement) + step + cells.length) % cells.length;
      cells[focus].tabIndex = 0;
      cells[focus].focus();
      e.preventDefault();
    } else if (e.key === "Escape" || e.key === "Backspace") {
      up();
      cells[0]?.focus();
      e.preventDefault();
    }
  });

  function drawCrumbs() {
    const chain = [];
    for (let node = state.zoom; node; node = node.parent) chain.unshift(node);
    crumbs.replaceChildren(...chain.flatMap((node, i) => {
      const here = i === chain.length - 1;
      const item = make("button", { type: "button", "aria-current": here ? "page" : null, onclick: () => zoomTo(node) }, node.name);
      return i ? [make("span", { class: "soft", "aria-hidden": "true" }, "/"), item] : [item];
    }));
  }
  function drawList() {
    if (state.layer) return list.replaceChildren(layerCard(state.layer));
    const parts = sorted(state.zoom), shown = parts.slice(0, 11), rest = parts.slice(11), top = parts[0]?.figures[metric] || 1;
    const total = model().tree.figures[metric] || 1;
    const rows = shown.map(node => make("button", { type: "button", class: "item", onclick: () => open(node) },
      make("span", { class: "name" }, node.layer ? `${node.layer.op} ` : "", node.layer ? make("span", { class: "soft" }, node.name) : node.name),
      make("span", { class: "value" }, METRICS[metric].form(node.figures[metric])),
      make("span", { class: "soft value" }, share(node.figures[metric] / total)),
      make("span", { class: "bar", style: { width: `${100 * node.figures[metric] / top}%`, background: colour(node.kind) } })));
    const left = rest.reduce((s, n) => s + n.figures[metric], 0);
    const none = state.zoom.children.length - parts.length;
    const notes = [rest.length ? `${full(rest.length)} more: ${METRICS[metric].form(left)}` : "", none ? `${full(none)} without any` : ""].filter(Boolean);
    list.replaceChildren(
      make("h3", {}, `${state.zoom.name}: ${METRICS[metric].form(state.zoom.figures[metric])}`),
      ...rows, make("p", { class: "soft" }, notes.join(" · ")));
  }
  function layerCard(layer) {
    const f = layer.figures, raw = layer.raw;
    const rows = [
      ["operator", layer.op], ["module", layer.path.join(".")], ["inputs", raw.inputs.map(s => shapeText(s, model().letters)).join(", ")],
      ["outputs", raw.outputs.map(s => shapeText(s, model().letters)).join(", ")], ["runs", raw.runs === 1 ? "" : count(number(raw.runs, model().at))],
      ["MACs", full(f.macs)], ["effective MACs", raw.zeros === null ? "" : full(f.effective_macs)], ["FLOPs", full(f.flops)],
      ["special functions", f.special ? full(f.special) : ""], ["integer operations", f.int_ops ? full(f.int_ops) : ""],
      ["parameters", f.parameters ? full(f.parameters) : ""], ["stored", f.weight_bits ? bits(f.weight_bits) : ""],
      ["zeros", raw.zeros === null || !f.parameters ? "" : share(raw.zeros / f.parameters)],
      ["bytes moved", size(f.moved)], ["FLOPs per byte", f.moved ? ratio(f.intensity) : ""],
      ["measured", raw.seconds === null ? "" : time(raw.seconds)], ["unknown", raw.unknown],
    ].filter(([, v]) => v !== "");
    return make("div", { class: "layer" }, make("h3", {}, layer.name || layer.op),
      make("dl", {}, rows.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])),
      make("button", { type: "button", class: "link", onclick: () => choose(null) }, "Back to the module"));
  }
  function drawLegend() {
    const here = new Set(model().layers.filter(l => l.figures[metric] > 0).map(l => l.kind));
    legend.replaceChildren(...KIND_NAMES.filter(k => here.has(k)).map(k => make("span", {}, make("i", { style: { background: colour(k) } }), k)));
  }
  function redraw() { hideTip(); draw(); drawCrumbs(); drawList(); drawLegend(); }
  for (const event of ["zoom", "model", "sizes"]) on(event, redraw);
  on("layer", drawList);
  redraw();
  return host;
}
const fullName = node => node.layer ? [...node.path, node.name].join(".") : node.path.join(".") || node.name;

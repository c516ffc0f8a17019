"use strict";
// Roofline, memory over time, growth: plots drawn as SVG at the width that there is.

// Log axes: a mark at each power of ten, at most `wanted` of them.
function powers(low, high, wanted) {
  const from = Math.ceil(Math.log10(low) - 1e-9), to = Math.floor(Math.log10(high) + 1e-9);
  const step = Math.max(1, Math.ceil((to - from + 1) / wanted)), found = [];
  for (let p = from; p <= to; p += step) found.push(10 ** p);
  return found;
}

function frame(width, height, margin, label) {
  const svg = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "plot" });
  return {
    svg, left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom,
    add(name, attributes, ...children) { const e = make(name, attributes, ...children); svg.append(e); return e; },
  };
}
function axes(f, xs, ys, x, y, formX, formY, titleX, titleY) {
  for (const v of xs) {
    f.add("line", { x1: x(v), x2: x(v), y1: f.top, y2: f.bottom, class: "grid" });
    f.add("text", { x: x(v), y: f.bottom + 16, "text-anchor": "middle" }, formX(v));
  }
  for (const v of ys) {
    f.add("line", { x1: f.left, x2: f.right, y1: y(v), y2: y(v), class: "grid" });
    f.add("text", { x: f.left - 8, y: y(v) + 4, "text-anchor": "end" }, formY(v));
  }
  f.add("line", { x1: f.left, x2: f.right, y1: f.bottom, y2: f.bottom, class: "axis" });
  f.add("text", { x: (f.left + f.right) / 2, y: f.bottom + 34, "text-anchor": "middle", class: "title" }, titleX);
  f.add("text", { x: f.left - 4, y: f.top - 10, "text-anchor": "start", class: "title" }, titleY);
}

// --- roofline

const POINTS = 1500;

// The time that a device needs at least: for arithmetic or for bytes, whichever takes longer. A roof may be unknown.
function bound(figures, device) {
  const compute = device.ops ? 2 * figures.macs / device.ops : 0, bytes = device.bandwidth ? figures.moved / device.bandwidth : 0;
  return { seconds: Math.max(compute, bytes), by: !compute && !bytes ? "" : compute >= bytes ? "compute" : "memory" };
}
const roof = (x, device) => Math.min(device.ops ?? Infinity, device.bandwidth ? x * device.bandwidth : Infinity);

function roofline() {
  const devices = state.devices;
  if (!devices.length) return null;
  let device = devices.find(d => d.name === state.device) ?? devices.find(d => d.ops && d.bandwidth) ?? devices[0];
  const box = make("div", { class: "plotbox" }), words = make("p", { class: "facts" }), source = make("ul", { class: "plain sources" });
  const picker = make("select", { id: "device", onchange: e => { device = devices[e.target.value]; redraw(); } },
    devices.map((d, i) => make("option", { value: i, selected: d === device }, d.title)));
  const host = section("roofline", "Roofline",
    make("p", { class: "controls" }, make("label", { for: "device" }, "Device"), picker), words, box, source);

  function say(layers, drawn) {
    const least = layers.reduce((s, l) => s + bound(l.figures, device).seconds, 0);
    const waiting = layers.reduce((s, l) => { const b = bound(l.figures, device); return s + (b.by === "memory" ? b.seconds : 0); }, 0);
    const measured = layers.reduce((s, l) => s + l.figures.seconds, 0), parts = [];
    if (device.ops && device.bandwidth) parts.push(`${share(least ? waiting / least : 0)} of it waiting for memory. Above ${ratio(device.ops / device.bandwidth)} operations per byte, arithmetic is the limit.`);
    else parts.push(device.ops ? "arithmetic alone: its memory bandwidth is not published." : "memory alone: its peak rate is not published.");
    if (device.element) parts.push(`The peak is for ${device.element}.`);
    if (measured) parts.push(`Points are what was measured, layer by layer: ${time(measured)} in all.`);
    if (drawn.length === POINTS) parts.push(`The ${full(POINTS)} costliest layers are drawn.`);
    words.replaceChildren("No faster than ", make("b", { id: "least" }, time(least)), ` a run, ${parts.join(" ")}`);
    return least;
  }
  function drawPlot(width) {
    const all = model().layers.filter(l => l.figures.moved > 0 && l.figures.macs > 0);
    const points = all.map(layer => ({ layer, x: 2 * layer.figures.macs / layer.figures.moved, ...bound(layer.figures, device) }))
      .sort((a, b) => b.seconds - a.seconds).slice(0, POINTS);
    const least = say(model().layers, points);
    for (const p of points) p.y = p.layer.figures.seconds ? 2 * p.layer.figures.macs / p.layer.figures.seconds : roof(p.x, device);
    const ridge = device.ops && device.bandwidth ? device.ops / device.bandwidth : null;
    const xs = [...points.map(p => p.x), ...(ridge ? [ridge] : [])], ys = [...points.map(p => p.y), ...(device.ops ? [device.ops] : [])];
    if (!xs.length) xs.push(1);
    if (!ys.length) ys.push(device.bandwidth);
    const low = [10 ** Math.floor(Math.log10(Math.min(...xs) * 0.8)), 10 ** Math.floor(Math.log10(Math.min(...ys) * 0.8))];
    const high = [10 ** Math.ceil(Math.log10(Math.max(...xs) * 1.2)), 10 ** Math.ceil(Math.log10(Math.max(...ys) * 2))];
    const f = frame(width, Math.round(Math.max(280, Math.min(440, width * 0.5))), { left: 74, right: 16, top: 28, bottom: 44 }, `Roofline of ${device.title}`);
    const scale = (lo, hi, from, to) => v => from + (Math.log10(v) - Math.log10(lo)) / (Math.log10(hi) - Math.log10(lo)) * (to - from);
    const x = scale(low[0], high[0], f.left, f.right), y = scale(low[1], high[1], f.bottom, f.top);
    axes(f, powers(low[0], high[0], width / 90), powers(low[1], high[1], 7), x, y, v => v >= 1e4 ? scaled(v).replace(".00", "") : String(+v.toPrecision(1)),
      v => v >= 1000 ? scaled(v).replace(/\.0+ /, " ") : String(+v.toPrecision(2)), "operations per byte moved", "operations per second");
    const start = device.bandwidth ? Math.max(low[0], low[1] / device.bandwidth) : low[0], bend = ridge ?? (device.ops ? low[0] : high[0]);
    const corners = [...(device.bandwidth ? [[start, roof(start, device)]] : []), [bend, roof(bend, device)], ...(device.ops ? [[high[0], device.ops]] : [])];
    f.add("path", { d: corners.map(([a, b], i) => `${i ? "L" : "M"}${x(a)},${y(b)}`).join(""), class: "roof" });
    if (device.ops) f.add("text", { x: f.right - 4, y: y(device.ops) - 18, "text-anchor": "end", class: "strong" }, `${scaled(device.ops)}OP/s`);
    if (device.bandwidth) {
      const ends = [[x(start), y(roof(start, device))], [x(bend), y(roof(bend, device))]];
      const slope = Math.atan2(ends[1][1] - ends[0][1], ends[1][0] - ends[0][0]) * 180 / Math.PI;
      f.add("text", { transform: `translate(${(ends[0][0] + ends[1][0]) / 2 - 12},${(ends[0][1] + ends[1][1]) / 2 - 16}) rotate(${slope})`, "text-anchor": "middle", class: "strong" }, `${size(device.bandwidth)}/s`);
    }
    const most = points[0]?.seconds || 1;
    for (const p of points.reverse())
      f.add("circle", {
        cx: x(p.x), cy: y(p.y), r: 3 + 9 * Math.sqrt(p.seconds / most), class: "point", fill: colour(p.layer.kind),
        "data-bound": p.by, onclick: () => choose(p.layer), onmouseleave: hideTip,
        onmousemove: e => showTip(e.clientX, e.clientY, fullName(p.layer.node), p.layer.op, `${ratio(p.x)} operations per byte${p.by ? p.by === "compute" ? ": bound by arithmetic" : ": bound by memory" : ""}`,
          `at least ${time(p.seconds)} (${share(least ? p.seconds / least : 0)})`, ...(p.layer.figures.seconds ? [`measured ${time(p.layer.figures.seconds)}: ${scaled(p.y)}OP/s`] : [])),
      });
    box.replaceChildren(f.svg);
    source.replaceChildren(...device.sources.map(s => make("li", {}, `\u201c${s.text}\u201d `, make("a", { href: s.url, rel: "noreferrer" }, s.url.split("/")[2]))));
  }
  const redraw = responsive(box, drawPlot);
  for (const event of ["model", "sizes"]) on(event, redraw);
  return host;
}

// --- memory over time

function memory() {
  if (!state.models.some(m => m.live.length)) return null;
  const box = make("div", { class: "plotbox" }), words = make("p", { class: "facts" }), list = make("p", { class: "soft live" });
  const host = section("memory", "Memory over time", words, box, list);
  function drawPlot(width) {
    const m = model(), live = m.live, doc = m.doc.memory, peak = Math.max(...live), at = live.indexOf(peak);
    const given = number(doc.peak_given, m.at), layerAt = i => m.layers[doc.layers[i]] ?? null;
    words.replaceChildren("Activations need at most ", make("b", { id: "peak" }, size(peak)), ` at step ${full(at + 1)} of ${full(live.length)}, ` +
      (doc.optimal ? "in the best order there is" : "in the best order found") +
      (given > peak ? `; in the order of the file ${size(given)}.` : ", which is no worse than that of the file."));
    const f = frame(width, 260, { left: 74, right: 16, top: 30, bottom: 44 }, "Live activations, step by step");
    const x = i => f.left + i / live.length * (f.right - f.left), y = v => f.bottom - v / (peak * 1.08 || 1) * (f.bottom - f.top);
    axes(f, ticks(0, live.length, width / 110).filter(Number.isInteger), ticks(0, peak * 1.05, 4), x, y, full, size, "step", "live bytes");
    // One column per pixel: the largest of the steps in it.
    const columns = Math.min(live.length, Math.floor(f.right - f.left)), heights = new Array(columns).fill(0);
    live.forEach((v, i) => { const c = Math.min(columns - 1, Math.floor(i * columns / live.length)); heights[c] = Math.max(heights[c], v); });
    const line = heights.map((v, c) => `${c ? "V" : "M" + f.left + ","}${y(v).toFixed(1)}H${(f.left + (c + 1) / columns * (f.right - f.left)).toFixed(1)}`).join("");
    f.add("path", { d: `${line}V${f.bottom}H${f.left}Z`, class: "area" });
    f.add("path", { d: line, class: "line" });
    const px = x(at + 0.5), end = px > (f.left + f.right) / 2;
    f.add("line", { x1: px, x2: px, y1: y(peak), y2: f.bottom, class: "peak" });
    f.add("circle", { cx: px, cy: y(peak), r: 4, class: "peakdot" });
    f.add("text", { x: px + (end ? -8 : 8), y: y(peak) - 6, "text-anchor": end ? "end" : "start", class: "strong" },
      `peak ${size(peak)}${layerAt(at) ? ` at ${shorten(fullName(layerAt(at).node), Math.floor(width / 16))}` : ""}`);
    const cursor = f.add("line", { y1: f.top, y2: f.bottom, class: "cursor", visibility: "hidden" });
    const step = e => Math.max(0, Math.min(live.length - 1, Math.floor((e.clientX - f.svg.getBoundingClientRect().left - f.left) / (f.right - f.left) * live.length)));
    f.add("rect", {
      x: f.left, y: f.top, width: f.right - f.left, height: f.bottom - f.top, fill: "transparent",
      onmousemove: e => {
        const i = step(e), layer = layerAt(i);
        for (const k of ["x1", "x2"]) cursor.setAttribute(k, x(i + 0.5));
        cursor.setAttribute("visibility", "visible");
        showTip(e.clientX, e.clientY, size(live[i]), `step ${full(i + 1)}`, layer ? `${layer.op} ${fullName(layer.node)}` : "");
      },
      onmouseleave: () => { hideTip(); cursor.setAttribute("visibility", "hidden"); },
      onclick: e => { const layer = layerAt(step(e)); if (layer) choose(layer); },
    });
    box.replaceChildren(f.svg);
    const names = doc.at_peak, shown = names.slice(0, 12);
    list.replaceChildren(...(names.length ? ["Live at the peak: ", ...shown.flatMap((n, i) => [i ? ", " : "", make("code", {}, n)]), names.length > 12 ? ` and ${names.length - 12} more` : ""] : []));
  }
  const redraw = responsive(box, drawPlot);
  for (const event of ["model", "sizes"]) on(event, redraw);
  return host;
}
const shorten = (text, most) => text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(-Math.floor(most / 2))}`;

// --- growth

const GROWN = {
  macs: ["MACs", count], flops: ["FLOPs", count], moved: ["Bytes moved", size], peak_activation_bytes: ["Peak activations", size],
};

function growth() {
  if (!model().symbols.length) return null;
  const letter = name => model().letters[name] ?? name;
  let symbol = model().symbols.find(s => model().at[s] > 1) ?? model().symbols[0], metric = "macs", logarithmic = false;
  const box = make("div", { class: "plotbox" }), words = make("p", { class: "soft formula" }), table = make("div", { class: "scroll" });
  const from = make("input", { type: "number", min: 1, value: 1, "aria-label": "from" }), to = make("input", { type: "number", min: 2, value: 2, "aria-label": "to" });
  const reset = () => { from.value = Math.max(1, Math.round(model().at[symbol] / 8)); to.value = Math.max(8, model().at[symbol] * 4); };
  const picker = make("select", { id: "symbol", onchange: e => { symbol = e.target.value; reset(); redraw(); } },
    model().symbols.map(s => make("option", { value: s, selected: s === symbol }, letter(s))));
  for (const field of [from, to]) field.addEventListener("input", () => redraw());
  const host = section("growth", "How cost grows",
    make("p", { class: "controls" }, make("label", { for: "symbol" }, "with "), picker, " from ", from, " to ", to,
      choice("Cost", Object.entries(GROWN).map(([k, [n]]) => [k, n]), metric, k => { metric = k; redraw(); }),
      choice("Scale", [["linear", "linear"], ["log", "log"]], "linear", k => { logarithmic = k === "log"; redraw(); })),
    words, box, table);
  reset();
  const asked = state.range;
  if (asked) { symbol = picker.value = asked.symbol; from.value = asked.values[0]; to.value = asked.values.at(-1); }

  function costs(m, value) {
    const at = { ...m.at, [symbol]: value }, t = m.doc.totals, n = d => number(d, at);
    const live = m.doc.memory.live;
    return { macs: n(t.macs), flops: n(t.flops) + n(t.special), moved: n(t.read) + n(t.written), peak_activation_bytes: live.length ? Math.max(...live.map(n)) : n(t.peak_activation_bytes) };
  }
  function drawPlot(width) {
    const low = Math.max(1, Math.round(+from.value || 1)), high = Math.max(low + 1, Math.round(+to.value || 2));
    const [name, form] = GROWN[metric], m = model(), steps = Math.min(48, high - low);
    const at = i => logarithmic ? low * (high / low) ** (i / steps) : low + (high - low) * i / steps;
    const values = [...new Set(Array.from({ length: steps + 1 }, (_, i) => Math.round(at(i))))];
    const rows = values.map(v => [v, costs(m, v)]);
    const ys = rows.map(([, c]) => c[metric]), top = Math.max(...ys) || 1;
    const f = frame(width, 300, { left: 74, right: 20, top: 30, bottom: 44 }, `${name} by ${symbol}`);
    const least = Math.max(Math.min(...ys.filter(v => v > 0)), top / 1e9);
    const x = logarithmic ? v => f.left + Math.log(v / low) / Math.log(high / low) * (f.right - f.left) : v => f.left + (v - low) / (high - low) * (f.right - f.left);
    const y = logarithmic ? v => f.bottom - Math.log(Math.max(v, least) / least) / Math.log(top / least * 1.2 || 2) * (f.bottom - f.top) : v => f.bottom - v / (top * 1.05) * (f.bottom - f.top);
    const marks = logarithmic ? doublings(low, high, width / 90) : ticks(low, high, width / 110);
    axes(f, marks, logarithmic ? powers(least, top * 1.2, 6) : ticks(0, top, 5), x, y, full, form, letter(symbol), name);
    const line = rows.map(([v, c], i) => `${i ? "L" : "M"}${x(v).toFixed(1)},${y(c[metric]).toFixed(1)}`).join("");
    f.add("path", { d: `${line}L${x(values.at(-1))},${f.bottom}L${x(values[0])},${f.bottom}Z`, class: "area" });
    f.add("path", { d: line, class: "line" });
    const now = m.at[symbol];
    if (now >= low && now <= high) {
      // Costs grow: left of the point there is room above the line, right of it below.
      const c = costs(m, now)[metric], px = x(now), end = px - f.left > 150;
      f.add("line", { x1: px, x2: px, y1: f.top, y2: f.bottom, class: "peak" });
      f.add("circle", { cx: px, cy: y(c), r: 4, class: "peakdot" });
      f.add("text", { x: px + (end ? -9 : 9), y: end ? Math.max(f.top + 12, y(c) - 10) : Math.min(f.bottom - 6, y(c) + 18), "text-anchor": end ? "end" : "start", class: "strong" }, `${letter(symbol)} = ${full(now)}: ${form(c)}`);
    }
    f.add("rect", {
      x: f.left, y: f.top, width: f.right - f.left, height: f.bottom - f.top, fill: "transparent", onmouseleave: hideTip,
      onmousemove: e => {
        const part = (e.clientX - f.svg.getBoundingClientRect().left - f.left) / (f.right - f.left);
        const v = Math.max(low, Math.min(high, Math.round(logarithmic ? low * (high / low) ** part : low + part * (high - low)))), c = costs(m, v);
        showTip(e.clientX, e.clientY, `${letter(symbol)} = ${full(v)}`, ...Object.entries(GROWN).map(([k, [n, g]]) => `${n}: ${g(c[k])}`));
      },
    });
    box.replaceChildren(f.svg);
    const d = m.doc.totals[metric];
    words.textContent = d && typeof d === "object" ? `${name} = ${formula(d.text, m.letters)}` : "";
    const lines = asked && asked.symbol === symbol ? asked.values : doublings(low, high, 12);
    table.replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, make("th", { class: "n" }, letter(symbol)), Object.values(GROWN).map(([n]) => make("th", { class: "n" }, n)))),
      make("tbody", {}, lines.map(v => { const c = costs(m, v); return make("tr", {}, make("td", { class: "n" }, full(v)), Object.entries(GROWN).map(([k, [, g]]) => make("td", { class: "n" }, g(c[k])))); }))));
  }
  const redraw = responsive(box, drawPlot);
  for (const event of ["model", "sizes"]) on(event, redraw);
  return host;
}
function doublings(low, high, most) {
  let factor = 2;
  while (Math.log(high / low) / Math.log(factor) + 1 > Math.max(2, most)) factor *= 2;
  const found = [];
  for (let v = low; v < high; v *= factor) found.push(Math.round(v));
  if (found.length > 1 && high / found.at(-1) < Math.sqrt(factor)) found.pop();
  return [...found, high];
}

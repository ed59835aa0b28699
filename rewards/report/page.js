"use strict";
// Draws the page's charts as SVG from the data in #charts. Nothing here knows what the numbers mean.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const NS = "http://www.w3.org/2000/svg";
  const colours = ["var(--s0)", "var(--s1)", "var(--s2)"];
  const HEIGHT = { normal: 260, low: 170 };

  const svg = (name, attributes, parent, text) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };
  const element = (name, className, parent, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };

  // Round steps of 1, 2 or 5 times a power of ten that cover low..high.
  const ticks = (low, high, wanted) => {
    const raw = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step || 0);
    return { found, step };
  };
  const written = (value, step, share) => {
    const digits = Math.max(0, -Math.floor(Math.log10((share ? 100 * step : step) * 1.0001)));
    const number = ((share ? 100 * value : value) || 0).toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return share ? `${number} %` : number;
  };
  const exact = (value, share) => (share ? `${(100 * value).toFixed(1)} %` : Math.abs(value) >= 100 ? value.toFixed(1) : value.toFixed(3));

  const extent = (spec) => {
    const xs = [], ys = [], bands = [];
    for (const line of spec.series)
      for (const [x, y, low, high] of line.points) {
        if (y === null) continue;
        xs.push(x);
        ys.push(y);
        if (low !== null && high !== null) bands.push(low, high);
      }
    let [bottom, top] = [Math.min(...ys), Math.max(...ys)];
    // A single wide interval must not flatten the line: bands widen the frame by at most its own height on either side.
    const reach = top - bottom || Math.abs(top) || 1;
    if (bands.length) {
      bottom = Math.max(Math.min(bottom, ...bands), bottom - reach);
      top = Math.min(Math.max(top, ...bands), top + reach);
    }
    if (spec.zero) bottom = Math.min(0, bottom);
    if (spec.share) [bottom, top] = [Math.max(0, bottom), Math.min(1, top)];
    if (top === bottom) [bottom, top] = [bottom - 0.5, top + 0.5];
    const edge = (top - bottom) * 0.06;
    let [left, right] = spec.range || [Math.min(...xs), Math.max(...xs)];
    if (left === right) [left, right] = [left - 1, right + 1];
    const side = spec.kind === "path" ? (right - left) * 0.04 : 0;
    return { left: left - side, right: right + side, bottom: spec.zero && bottom >= 0 ? 0 : bottom - edge, top: top + edge };
  };

  const runs = (points) => {
    // Consecutive points with values: a gap in the data is a gap in the line.
    const found = [[]];
    for (const point of points) point[1] === null ? found.push([]) : found[found.length - 1].push(point);
    return found.filter((run) => run.length);
  };

  function rows(marks, place) {
    // Marks that would cover each other go to rows of their own.
    const ends = [];
    return marks.map((mark) => {
      const x = place(mark.x);
      let row = ends.findIndex((end) => x - end >= 32);
      if (row < 0) row = ends.push(0) - 1;
      ends[row] = x;
      return row;
    });
  }

  function draw(stage) {
    const spec = charts[stage.dataset.chart];
    const width = Math.max(260, stage.clientWidth);
    stage.replaceChildren();
    if (spec.series.length > 1) legend(stage, spec);
    const plot = element("div", "plot", stage);
    const box = extent(spec);
    const margin = { left: 54, right: 14, bottom: 40 };
    const place = (x) => margin.left + ((x - box.left) / (box.right - box.left)) * (width - margin.left - margin.right);
    const marks = spec.marks.filter((mark) => mark.x >= box.left - 1e-9 && mark.x <= box.right + 1e-9);
    const levels = rows(marks, place);
    const top = marks.length ? 12 + 26 * (Math.max(...levels) + 1) : 10;
    const height = (spec.low ? HEIGHT.low : HEIGHT.normal) + top;
    const lift = (y) => height - margin.bottom - ((y - box.bottom) / (box.top - box.bottom)) * (height - margin.bottom - top);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: 0 }, plot);
    root.setAttribute("aria-label", `${spec.y} over ${spec.x}. ${spec.series.map((s) => s.name).join("; ")}. Arrow keys read the points.`);
    frame(root, spec, box, { width, height, top, margin, place, lift });
    const clip = `clip-${stage.dataset.chart.replace(/[^a-zA-Z0-9-]/g, "_")}`;
    svg("rect", { x: margin.left, y: top, width: width - margin.left - margin.right, height: height - margin.bottom - top }, svg("clipPath", { id: clip }, root));
    const inside = svg("g", { "clip-path": `url(#${clip})` }, root);
    spec.series.forEach((line, k) => curve(inside, line, colours[k % 3], place, lift, spec.kind === "path"));
    const tip = element("div", "tip", plot);
    const live = element("div", "hidden", plot);
    live.setAttribute("aria-live", "polite");
    marks.forEach((mark, k) => {
      const x = place(mark.x);
      svg("line", { x1: x, x2: x, y1: 12 + 26 * levels[k], y2: height - margin.bottom, class: "rule", stroke: mark.kind === "recalibration" ? "var(--mark-r)" : "var(--mark-m)" }, root);
      const button = element("button", `mark ${mark.kind}`, plot, mark.tag);
      button.type = "button";
      button.style.left = `${x}px`;
      button.style.top = `${4 + 26 * levels[k]}px`;
      button.setAttribute("aria-label", mark.text);
      const say = () => show(tip, mark.text, x, 32 + 26 * levels[k], width);
      for (const event of ["focus", "mouseenter", "click"]) button.addEventListener(event, say);
      for (const event of ["blur", "mouseleave"]) button.addEventListener(event, () => (tip.style.visibility = "hidden"));
    });
    reading(root, spec, { tip, live, place, lift, top, width, height, margin });
  }

  function legend(stage, spec) {
    const list = element("ul", "legend", stage);
    spec.series.forEach((line, k) => {
      const item = element("li", "", list);
      const swatch = svg("svg", { width: 26, height: 8, "aria-hidden": "true" }, item);
      svg("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: colours[k % 3], "stroke-width": 2, "stroke-dasharray": line.dashed ? "5 3" : "none" }, swatch);
      item.append(line.name);
    });
  }

  function frame(root, spec, box, at) {
    const right = at.width - at.margin.right, floor = at.height - at.margin.bottom;
    const across = ticks(box.left, box.right, Math.max(3, Math.floor(at.width / 110)));
    const up = ticks(box.bottom, box.top, spec.low ? 4 : 5);
    for (const y of up.found) {
      svg("line", { x1: at.margin.left, x2: right, y1: at.lift(y), y2: at.lift(y), class: "grid" }, root);
      svg("text", { x: at.margin.left - 8, y: at.lift(y) + 4, "text-anchor": "end" }, root, written(y, up.step, spec.share));
    }
    svg("line", { x1: at.margin.left, x2: right, y1: floor, y2: floor, class: "axis" }, root);
    for (const x of across.found) svg("text", { x: at.place(x), y: floor + 17, "text-anchor": "middle" }, root, written(x, across.step, false));
    svg("text", { x: right, y: at.height - 4, "text-anchor": "end" }, root, spec.x);
    if (!spec.marks.length && spec.kind === "path") svg("text", { x: at.margin.left, y: at.height - 4 }, root, `vertical: ${spec.y}`);
  }

  function curve(parent, line, colour, place, lift, path) {
    for (const run of runs(line.points)) {
      const banded = run.filter((p) => p[2] !== null && p[3] !== null);
      if (banded.length > 1) {
        const upper = banded.map((p) => `${place(p[0])},${lift(p[3])}`);
        const lower = banded.map((p) => `${place(p[0])},${lift(p[2])}`).reverse();
        svg("polygon", { points: [...upper, ...lower].join(" "), class: "band", fill: colour }, parent);
      }
      const points = run.map((p) => `${place(p[0])},${lift(p[1])}`).join(" ");
      svg("polyline", { points, class: "line", stroke: colour, "stroke-dasharray": line.dashed ? "5 3" : "none", opacity: path ? 0.3 : 1 }, parent);
      if (path || run.length === 1)
        run.forEach((p, k) => svg("circle", { cx: place(p[0]), cy: lift(p[1]), r: 3, fill: colour, opacity: path ? 0.25 + (0.75 * (k + 1)) / run.length : 1 }, parent));
    }
    if (path) {
      const known = line.points.filter((p) => p[1] !== null);
      for (const [point, word] of [[known[0], "first"], [known[known.length - 1], "last"]])
        svg("text", { x: place(point[0]), y: lift(point[1]) - 8, "text-anchor": "middle" }, parent, word);
    }
  }

  function show(tip, text, x, y, width) {
    tip.textContent = text;
    tip.style.visibility = "visible";
    const half = tip.offsetWidth / 2;
    tip.style.left = `${Math.min(Math.max(x - half, 0), width - 2 * half)}px`;
    tip.style.top = `${y}px`;
  }

  function reading(root, spec, at) {
    const xs = spec.series[0].points.map((p) => p[0]);
    const guide = svg("line", { y1: at.top, y2: at.height - at.margin.bottom, class: "guide" }, root);
    const dots = spec.series.map((_, k) => svg("circle", { r: 4, class: "dot", fill: colours[k % 3] }, root));
    let current = -1;
    const point = (k) => {
      current = Math.min(Math.max(k, 0), xs.length - 1);
      const x = at.place(xs[current]);
      if (spec.kind === "line") {
        guide.setAttribute("x1", x);
        guide.setAttribute("x2", x);
        guide.style.visibility = "visible";
      }
      const said = [spec.series[0].points[current][5]];
      spec.series.forEach((line, s) => {
        const p = line.points[current];
        const known = p && p[1] !== null;
        dots[s].style.visibility = known ? "visible" : "hidden";
        if (!known) return said.push(`${line.name}: no value`);
        dots[s].setAttribute("cx", at.place(p[0]));
        dots[s].setAttribute("cy", at.lift(p[1]));
        const between = p[2] === null ? "" : ` (${exact(p[2], spec.share)} to ${exact(p[3], spec.share)})`;
        const value = spec.kind === "path" ? `KL ${exact(p[0])}, reward ${exact(p[1])}` : `${line.name}: ${exact(p[1], spec.share)}`;
        said.push(`${value}${between}, n ${p[4]}`);
      });
      const anchor = spec.series[0].points[current][1];
      const below = anchor === null ? at.top : at.lift(anchor);
      const high = below > at.height * 0.45;
      show(at.tip, said.join("\n"), x, 0, at.width);
      at.tip.style.top = `${high ? Math.max(at.top, below - at.tip.offsetHeight - 14) : below + 16}px`;
      return said.join(". ");
    };
    const hide = () => {
      for (const node of [guide, at.tip, ...dots]) node.style.visibility = "hidden";
    };
    root.addEventListener("pointermove", (event) => {
      const frame = root.getBoundingClientRect();
      const [px, py] = [event.clientX - frame.left, event.clientY - frame.top];
      const far = (p) => (p[1] === null ? Infinity : Math.hypot(at.place(p[0]) - px, spec.kind === "path" ? at.lift(p[1]) - py : 0));
      let best = 0;
      spec.series[0].points.forEach((p, k) => {
        const gap = spec.kind === "path" ? far(p) : Math.abs(at.place(p[0]) - px);
        const least = spec.kind === "path" ? far(spec.series[0].points[best]) : Math.abs(at.place(xs[best]) - px);
        if (gap < least) best = k;
      });
      point(best);
    });
    root.addEventListener("pointerleave", hide);
    root.addEventListener("blur", hide);
    root.addEventListener("keydown", (event) => {
      const next = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: xs.length - 1 }[event.key];
      if (event.key === "Escape") hide();
      if (next === undefined) return;
      event.preventDefault();
      at.live.textContent = point(next);
    });
  }

  const stages = [...document.querySelectorAll("[data-chart]")];
  const widths = new Map();
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries)
      if (widths.get(target) !== target.clientWidth) {
        widths.set(target, target.clientWidth);
        draw(target);
      }
  });
  for (const stage of stages) {
    widths.set(stage, stage.clientWidth);
    draw(stage);
    observer.observe(stage);
  }
})();

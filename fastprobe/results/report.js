// Draw the views of a report. Texts enter the page as text nodes only, never as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const select = document.getElementById("metric");
  const pictures = document.getElementById("pictures");
  const tip = document.getElementById("tip");
  if (!select) return;

  const SVG = "http://www.w3.org/2000/svg";

  function add(parent, name, attributes = {}, text = "") {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== "") node.textContent = text;
    parent.append(node);
    return node;
  }

  function number(value, digits = 4) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e5 || size < 1e-4 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  }

  function shortened(name, letters) {
    if (name.length <= letters) return name;
    const end = Math.floor((letters - 1) / 3);
    return name.slice(0, letters - 1 - end) + "…" + name.slice(name.length - end);
  }

  // Round numbers that divide a range into at most `count` parts.
  function ticks(low, high, count) {
    if (!(high > low)) return [low];
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return found;
  }

  function spread(count, room) {
    const shown = Math.min(count, room);
    return [...new Set(Array.from({ length: shown }, (_, k) => Math.round((k * (count - 1)) / Math.max(1, shown - 1))))];
  }

  function range(values, more = []) {
    const finite = [...values, ...more].filter((value) => value !== null);
    let [low, high] = [Math.min(...finite), Math.max(...finite)];
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    const margin = (high - low) * 0.04;
    return [low - margin, high + margin];
  }

  const scaled = (low, high, from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);

  function colour(value, [low, high]) {
    const place = high > low ? ((value - low) / (high - low)) * (data.scale.length - 1) : (data.scale.length - 1) / 2;
    const before = Math.min(Math.floor(place), data.scale.length - 2);
    const channel = (text, k) => parseInt(text.slice(1 + 2 * k, 3 + 2 * k), 16);
    const mixed = [0, 1, 2].map((k) => {
      const [a, b] = [channel(data.scale[before], k), channel(data.scale[before + 1], k)];
      return Math.round(a + (place - before) * (b - a));
    });
    return `rgb(${mixed})`;
  }

  function show(event, text) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, window.innerWidth - box.width - 8);
    const above = event.clientY - box.height - 12;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above < 8 ? event.clientY + 16 : above}px`;
  }

  function hide() {
    tip.hidden = true;
  }

  // Make an element tell its numbers to a pointer, a finger and a screen reader.
  function tells(node, text) {
    node.addEventListener("pointerenter", (event) => show(event, text));
    node.addEventListener("pointermove", (event) => show(event, text));
    node.addEventListener("pointerleave", hide);
  }

  function canvas(holder, width, height, label) {
    const svg = add(holder, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    svg.style.maxWidth = `${width}px`;
    return svg;
  }

  function axes(svg, box, x, y, view, xTicks, yTicks) {
    for (const [value, text] of yTicks) {
      add(svg, "line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), stroke: "#e5e5e5" });
      add(svg, "text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, text);
    }
    for (const [value, text] of xTicks) {
      add(svg, "line", { x1: x(value), x2: x(value), y1: box.bottom, y2: box.bottom + 4, stroke: "#777" });
      add(svg, "text", { x: x(value), y: box.bottom + 17, "text-anchor": "middle" }, text);
    }
    add(svg, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: "#777" });
    add(svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle" }, view.x);
    if (view.y) add(svg, "text", { x: 4, y: 12 }, view.y);
  }

  function reference(svg, box, view, position, across) {
    if (!view.reference) return;
    const at = position(view.reference.value);
    const ends = across ? { x1: box.left, x2: box.right, y1: at, y2: at } : { x1: at, x2: at, y1: box.top, y2: box.bottom };
    const line = add(svg, "line", { ...ends, stroke: "#D55E00", "stroke-dasharray": "6 4", "stroke-width": 2 });
    tells(line, `${view.reference.label}: ${number(view.reference.value)}`);
    add(svg, "text", { x: across ? box.right : at + 4, y: across ? at - 5 : box.top + 10, "text-anchor": across ? "end" : "start" }, view.reference.label);
  }

  function profiles(holder, view, width) {
    const hidden = new Set();
    const chart = document.createElement("div");
    const legend = document.createElement("div");
    legend.className = "legend";
    holder.append(chart, legend);
    const draw = () => {
      chart.replaceChildren();
      const box = { left: 52, right: width - 12, top: 24, bottom: 300 };
      const svg = canvas(chart, width, 344, `${view.y} over ${view.x}`);
      const [low, high] = range(view.lines.flatMap((line) => line.y), view.reference ? [view.reference.value] : []);
      const places = view.lines.flatMap((line) => line.x);
      const [first, last] = [Math.min(...places), Math.max(...places)];
      const x = scaled(first, last === first ? first + 1 : last, box.left + 12, box.right - 12);
      const y = scaled(low, high, box.bottom, box.top);
      const room = Math.floor(width / 45);
      const names = view.names ? spread(view.names.length, room).map((k) => [k, shortened(view.names[k], 8)]) : null;
      const whole = ticks(first, last, room).filter((value) => Number.isInteger(value));
      axes(svg, box, x, y, view, names || whole.map((value) => [value, number(value)]), ticks(low, high, 6).map((value) => [value, number(value)]));
      reference(svg, box, view, y, true);
      view.lines.forEach((line, index) => {
        if (hidden.has(index)) return;
        const points = line.x.map((place, k) => [place, line.y[k], k]).filter(([, value]) => value !== null);
        const path = points.map(([place, value], k) => `${k ? "L" : "M"}${x(place)} ${y(value)}`).join("");
        add(svg, "path", { d: path, fill: "none", stroke: line.colour, "stroke-width": 2, "stroke-dasharray": line.dashed ? "6 4" : "none" });
        for (const [place, value, k] of points) {
          add(svg, "circle", { cx: x(place), cy: y(value), r: 3.5, fill: line.colour });
          const target = add(svg, "circle", { cx: x(place), cy: y(value), r: 11, fill: "transparent" });
          const error = line.errors[k] === null ? "" : ` ± ${number(line.errors[k], 2)}`;
          const where = `${view.x} ${view.names ? view.names[k] : number(place)}`;
          tells(target, `${line.label ? line.label + "\n" : ""}${where}: ${number(value)}${error}`);
        }
      });
    };
    view.lines.forEach((line, index) => {
      if (!line.label) return;
      const button = document.createElement("button");
      const sample = document.createElement("i");
      sample.style.borderColor = line.colour;
      sample.style.borderTopStyle = line.dashed ? "dashed" : "solid";
      button.append(sample, line.label);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        if (!hidden.delete(index)) hidden.add(index);
        button.setAttribute("aria-pressed", String(!hidden.has(index)));
        draw();
      });
      legend.append(button);
    });
    draw();
  }

  function heatmap(holder, view, width) {
    const letters = width < 500 ? 12 : 28;
    const longest = Math.max(...view.rows.map((name) => Math.min(name.length, letters)));
    const left = Math.max(36, 14 + 7 * longest);
    const columns = view.columns.length;
    const isSquare = view.rows.join() === view.columns.join();
    const side = Math.min(56, (Math.min(width, 720) - left - 12) / columns);
    const rowHeight = isSquare ? side : 20;
    const top = 46;
    const height = top + rowHeight * view.rows.length + 24;
    const svg = canvas(holder, left + side * columns + 12, height, `${view.label}: ${view.y} and ${view.x}`);
    add(svg, "text", { x: 4, y: 12 }, `${view.y ? view.y + " ↓   " : ""}${view.x} →`);
    for (const j of spread(columns, Math.floor((side * columns) / 28)))
      add(svg, "text", { x: left + side * (j + 0.5), y: top - 8, "text-anchor": "middle" }, shortened(view.columns[j], 6));
    for (const i of spread(view.rows.length, Math.floor((rowHeight * view.rows.length) / 15)))
      add(svg, "text", { x: left - 6, y: top + rowHeight * (i + 0.5) + 4, "text-anchor": "end" }, shortened(view.rows[i], letters));
    view.matrix.forEach((row, i) =>
      row.forEach((value, j) => {
        if (value === null) return;
        const [x, y] = [left + side * j, top + rowHeight * i];
        const cell = add(svg, "rect", { x, y, width: side + 0.5, height: rowHeight + 0.5, fill: colour(value, view.limits) });
        tells(cell, `${view.y || ""} ${view.rows[i]}, ${view.x} ${view.columns[j]}\n${view.label}: ${number(value)}`.trim());
        if (side >= 38 && isSquare) {
          const light = (value - view.limits[0]) / (view.limits[1] - view.limits[0] || 1) > 0.6;
          const text = add(svg, "text", { x: x + side / 2, y: y + side / 2 + 4, "text-anchor": "middle" }, value.toFixed(2));
          text.style.fill = light ? "#000" : "#fff";
          text.style.pointerEvents = "none";
        }
      }),
    );
    scale(holder, view);
  }

  function scale(holder, view) {
    const bar = document.createElement("div");
    bar.className = "legend";
    const strip = document.createElement("span");
    strip.style.cssText = `display:inline-block;width:8rem;height:1rem;align-self:center;background:linear-gradient(90deg,${data.scale})`;
    bar.append(`${view.label}: ${number(view.limits[0])}`, strip, number(view.limits[1]));
    holder.append(bar);
  }

  function dots(holder, view, width) {
    const count = view.values.length;
    const letters = width < 500 ? 14 : 34;
    const step = count > 60 ? Math.max(3, 900 / count) : 18;
    const named = step >= 14;
    const longest = named ? Math.max(...view.names.map((name) => Math.min(name.length, letters))) : 0;
    const box = { left: 16 + 7 * longest, right: width - 12, top: 12, bottom: 12 + step * count };
    const svg = canvas(holder, width, box.bottom + 44, `${view.x} of ${count} rows`);
    const ends = view.values.flatMap((value, k) => (value === null ? [] : [value - (view.errors[k] || 0), value + (view.errors[k] || 0)]));
    const [low, high] = range(ends, view.reference ? [view.reference.value] : []);
    const x = scaled(low, high, box.left + 8, box.right - 8);
    axes(svg, box, x, (value) => value, view, ticks(low, high, Math.floor(width / 80)).map((value) => [value, number(value)]), []);
    reference(svg, box, view, x, false);
    view.values.forEach((value, k) => {
      if (value === null) return;
      const y = box.top + step * (k + 0.5);
      const error = view.errors[k] || 0;
      if (named) add(svg, "text", { x: box.left - 6, y: y + 4, "text-anchor": "end" }, shortened(view.names[k], letters));
      add(svg, "line", { x1: x(value - error), x2: x(value + error), y1: y, y2: y, stroke: "#0072B2" });
      add(svg, "circle", { cx: x(value), cy: y, r: named ? 4 : 2, fill: "#0072B2" });
      const target = add(svg, "rect", { x: box.left, y: y - step / 2, width: box.right - box.left, height: step, fill: "transparent" });
      tells(target, `${view.names[k]}\n${view.x}: ${number(value)}${error ? " ± " + number(error, 2) : ""}`);
    });
  }

  function curve(holder, view, width) {
    const box = { left: 52, right: width - 12, top: 24, bottom: 300 };
    const svg = canvas(holder, width, 344, `${view.y} over ${view.x}`);
    const [low, high] = range(view.points[1]);
    const [places, means] = view.means;
    const x = scaled(places[0], places.at(-1) === places[0] ? places[0] + 1 : places.at(-1), box.left + 12, box.right - 12);
    const y = scaled(low, high, box.bottom, box.top);
    axes(svg, box, x, y, view, places.map((place) => [place, number(place)]), ticks(low, high, 6).map((value) => [value, number(value)]));
    add(svg, "path", { d: places.map((place, k) => `${k ? "L" : "M"}${x(place)} ${y(means[k])}`).join(""), fill: "none", stroke: "#0072B2", "stroke-width": 2 });
    view.points[0].forEach((place, k) => {
      const dot = add(svg, "circle", { cx: x(place), cy: y(view.points[1][k]), r: 4, fill: "#56B4E9", "fill-opacity": 0.6 });
      tells(dot, `${view.names[k]}\n${view.y}: ${number(view.points[1][k])}`);
    });
    places.forEach((place, k) => {
      const dot = add(svg, "rect", { x: x(place) - 4, y: y(means[k]) - 4, width: 8, height: 8, fill: "#0072B2" });
      tells(dot, `mean at ${view.x} ${number(place)}\n${view.y}: ${number(means[k])}`);
    });
  }

  const DRAWERS = { profiles, heatmap, dots, curve };

  function draw() {
    hide();
    pictures.replaceChildren();
    document.getElementById("meaning").textContent = data.meanings[select.value];
    const width = Math.min(pictures.clientWidth, 960);
    for (const view of data.metrics[select.value]) {
      const holder = document.createElement("div");
      pictures.append(holder);
      DRAWERS[view.kind](holder, view, width);
    }
  }

  let width = 0;
  new ResizeObserver(() => {
    if (pictures.clientWidth === width || pictures.clientWidth === 0) return;  // 0 while the page is closed
    width = pictures.clientWidth;
    draw();
  }).observe(pictures);
  select.addEventListener("change", draw);
  document.addEventListener("scroll", hide, { passive: true });
})();

// A map of the database: points on a plane, with pictures on hover. Dragging moves it, wheel and pinch zoom, arrow keys select the next point.
import { byId, element, image, number } from "./dom.js";
import { database, get, pictureOf } from "./api.js";
import { state, where } from "./state.js";
import { openKey } from "./detail.js";

// Colours that most people can tell apart, on a light and a dark page (after Okabe and Ito, softened).
const COLOURS = ["#c1652f", "#3f7fb0", "#4f9a6a", "#b5519c", "#c9a227", "#7a6bc4", "#5aa9b5", "#a3485a", "#8c8f3d", "#8a6f58", "#d08a8a", "#6f8f7f"];
const REST = "#9a9287";

let made = null, view = { scale: 1, x: 0, y: 0 }, colour = "", picked = -1, asking = null;

export async function show(root) {
  asking?.abort();
  asking = new AbortController();
  const name = state.databases[0];
  byId("count").textContent = "Laying out the map";
  byId("count").classList.add("busy");
  try {
    const map = await get(`${database(name)}/map?sample=4000&where=${encodeURIComponent(where())}`, asking.signal);
    draw(root, name, map);
  } catch (error) {
    if (error.name !== "AbortError") { root.replaceChildren(); byId("count").textContent = error.message; }
  } finally {
    byId("count").classList.remove("busy");
  }
}

function draw(root, name, map) {
  const canvas = element("canvas", { tabindex: 0, role: "img", "aria-label": `Map of ${map.keys.length} pictures. Arrow keys select the next picture in a direction, Enter opens it, plus and minus zoom.` });
  const hover = element("div", { class: "hover", hidden: true });
  const spoken = element("p", { class: "unseen", "aria-live": "polite" });
  const names = Object.keys(map.groups);
  const few = names.filter((one) => map.groups[one].values.length <= COLOURS.length + 1);
  if (!names.includes(colour)) colour = ["style", "school", "genre", "movement"].find((one) => few.includes(one)) || few[0] || names[0] || "";
  const choice = element("select", { "aria-label": "Colour by", onchange: () => { colour = choice.value; legend(); paint(); } }, names.map((one) => element("option", { value: one, selected: one === colour }, one)));
  const key = element("ul", {});
  const zoomBy = (factor) => { zoom(canvas.clientWidth / 2, canvas.clientHeight / 2, factor); paint(); };
  const zooming = element("div", { class: "zoom" }, element("button", { type: "button", "aria-label": "Zoom in", onclick: () => zoomBy(1.5) }, "+"), element("button", { type: "button", "aria-label": "Zoom out", onclick: () => zoomBy(1 / 1.5) }, "−"), element("button", { type: "button", "aria-label": "Show everything", title: "Show everything", onclick: () => { view = { scale: 1, x: 0, y: 0 }; paint(); } }, "⤢"));
  root.replaceChildren(
    element("div", { class: "map" }, canvas, names.length ? element("div", { class: "legend" }, choice, key) : "", zooming, hover, spoken),
    element("p", { class: "note" }, `${number(map.keys.length)} of ${number(map.matched)} pictures, placed along the two directions in which their vectors vary most (${Math.round(100 * map.explained)} % of the variance). Pictures far apart differ; pictures close together may differ in other directions.`));
  byId("count").textContent = `Map of ${name}`;
  byId("nothing").hidden = true;
  made = map;
  picked = -1;
  view = { scale: 1, x: 0, y: 0 };
  const context = canvas.getContext("2d");
  let colours = [];

  function legend() {
    const group = map.groups[colour];
    if (!group) { colours = map.keys.map(() => COLOURS[0]); return; }
    const counts = new Map();
    for (const code of group.codes) counts.set(code, (counts.get(code) || 0) + 1);
    const order = [...counts].sort((a, b) => b[1] - a[1]).map(([code]) => code);
    const by = new Map(order.map((code, i) => [code, i < COLOURS.length ? COLOURS[i] : REST]));
    colours = group.codes.map((code) => by.get(code));
    const line = (shade, words, count) => { const dot = element("i"); dot.style.background = shade; return element("li", {}, dot, element("span", {}, words), element("small", {}, number(count))); };
    const rest = order.slice(COLOURS.length).reduce((sum, code) => sum + counts.get(code), 0);
    key.replaceChildren(...order.slice(0, COLOURS.length).map((code) => line(by.get(code), group.values[code], counts.get(code))), rest ? line(REST, "others", rest) : "");
  }

  const half = () => Math.min(canvas.clientWidth, canvas.clientHeight) * 0.43;
  const wide = () => Math.min(1.7, canvas.clientWidth / canvas.clientHeight);
  const at = (i) => [canvas.clientWidth / 2 + view.x + map.x[i] * half() * wide() * view.scale, canvas.clientHeight / 2 + view.y - map.y[i] * half() * view.scale];

  function zoom(x, y, factor) {
    const scale = Math.min(60, Math.max(0.6, view.scale * factor)), ratio = scale / view.scale;
    const [cx, cy] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
    view = { scale, x: cx - (cx - view.x) * ratio, y: cy - (cy - view.y) * ratio };
  }

  let waiting = 0;
  function paint() { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(now); }
  const thumbs = new Map();
  function now() {
    const fine = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(canvas.clientWidth * fine) || canvas.height !== Math.round(canvas.clientHeight * fine)) {
      canvas.width = Math.round(canvas.clientWidth * fine);
      canvas.height = Math.round(canvas.clientHeight * fine);
    }
    context.setTransform(fine, 0, 0, fine, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    const radius = Math.min(6, 2.6 * Math.sqrt(view.scale)) * (map.keys.length < 600 ? 1.6 : 1);
    const inside = [];
    context.globalAlpha = 0.78;
    for (let i = 0; i < map.keys.length; i += 1) {
      const [x, y] = at(i);
      if (x < -20 || y < -20 || x > canvas.clientWidth + 20 || y > canvas.clientHeight + 20) continue;
      inside.push([i, x, y]);
      context.fillStyle = colours[i];
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      context.fill();
    }
    context.globalAlpha = 1;
    if (inside.length <= 160) for (const [i, x, y] of inside) { // few enough to show pictures in place of points
      const side = Math.min(88, 26 * Math.sqrt(view.scale));
      if (!thumbs.has(i)) { const shown = new Image(); shown.onload = paint; shown.src = pictureOf(name, map.keys[i]); thumbs.set(i, shown); }
      const shown = thumbs.get(i);
      if (!shown.complete || !shown.naturalWidth) continue;
      const ratio = shown.naturalWidth / shown.naturalHeight, w = ratio > 1 ? side : side * ratio, h = ratio > 1 ? side / ratio : side;
      context.drawImage(shown, x - w / 2, y - h / 2, w, h);
      context.strokeStyle = colours[i];
      context.lineWidth = 2;
      context.strokeRect(x - w / 2, y - h / 2, w, h);
    }
    if (picked >= 0) {
      const [x, y] = at(picked);
      context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
      context.lineWidth = 2.5;
      context.beginPath();
      context.arc(x, y, radius + 5, 0, 7);
      context.stroke();
    }
  }

  function nearest(x, y, within) {
    let best = -1, least = within * within;
    for (let i = 0; i < map.keys.length; i += 1) { const [px, py] = at(i), d = (px - x) ** 2 + (py - y) ** 2; if (d < least) { least = d; best = i; } }
    return best;
  }

  function point(i) {
    if (i === picked && (i < 0) === hover.hidden) return;
    picked = i;
    canvas.classList.toggle("over", i >= 0);
    hover.hidden = i < 0;
    if (i >= 0) {
      const [x, y] = at(i);
      hover.replaceChildren(image(pictureOf(name, map.keys[i]), "", "no picture stored"), element("span", {}, map.titles[i]));
      hover.firstChild.loading = "eager";
      hover.style.left = `${Math.max(4, Math.min(canvas.clientWidth - 190, x + 16))}px`;
      hover.style.top = `${Math.max(4, Math.min(canvas.clientHeight - 220, y + 16))}px`;
      spoken.textContent = map.titles[i];
    }
    paint();
  }

  const held = new Map();
  let moved = 0, apart = 0;
  canvas.addEventListener("pointerdown", (event) => { held.set(event.pointerId, [event.offsetX, event.offsetY]); canvas.setPointerCapture(event.pointerId); moved = 0; apart = 0; });
  canvas.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (!before) { point(nearest(event.offsetX, event.offsetY, 14)); return; }
    held.set(event.pointerId, [event.offsetX, event.offsetY]);
    if (held.size === 2) {
      const [[ax, ay], [bx, by]] = [...held.values()], distance = Math.hypot(ax - bx, ay - by);
      if (apart) zoom((ax + bx) / 2, (ay + by) / 2, distance / apart);
      apart = distance;
    } else { view.x += event.offsetX - before[0]; view.y += event.offsetY - before[1]; }
    moved += Math.abs(event.offsetX - before[0]) + Math.abs(event.offsetY - before[1]);
    hover.hidden = true;
    paint();
  });
  const release = (event) => { held.delete(event.pointerId); apart = 0; };
  canvas.addEventListener("pointerup", (event) => { release(event); if (moved < 6) { const i = nearest(event.offsetX, event.offsetY, 18); if (i >= 0) openKey(name, map.keys[i], map.titles[i]); } });
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { if (!held.size) point(-1); });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.offsetX, event.offsetY, Math.exp(-event.deltaY * 0.0016)); hover.hidden = true; paint(); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "+" || event.key === "=") zoomBy(1.5);
    else if (event.key === "-") zoomBy(1 / 1.5);
    else if (event.key === "Enter" && picked >= 0) openKey(name, map.keys[picked], map.titles[picked]);
    else if (way) {
      event.preventDefault();
      if (picked < 0) { point(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, 1e6)); return; }
      const [x, y] = at(picked);
      let best = picked, least = Infinity;
      for (let i = 0; i < map.keys.length; i += 1) {
        const [px, py] = at(i), along = (px - x) * way[0] + (py - y) * way[1], aside = Math.abs((px - x) * way[1]) + Math.abs((py - y) * way[0]);
        if (along > 2 && along + 2.5 * aside < least) { least = along + 2.5 * aside; best = i; }
      }
      point(best);
    }
  });
  new ResizeObserver(paint).observe(canvas);
  legend();
  paint();
}

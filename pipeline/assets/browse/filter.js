// The SQL filter box, which offers columns and values, and facets with counts.
import { byId, element, later, number } from "./dom.js";
import { database, get } from "./api.js";
import { changed, state, where } from "./state.js";

const box = byId("where"), offers = byId("offers");
const columns = new Map(); // database -> its columns
let offered = [], active = -1;
let typed = 0;

async function columnsOf(name) {
  if (!columns.has(name)) columns.set(name, get(`${database(name)}/columns`).then((found) => found.columns));
  return columns.get(name).catch(() => { columns.delete(name); return []; });
}

const quote = (name) => (/^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`);

// What may follow the text before the caret: values after `column =`, AND and OR after a complete condition, else columns.
async function suggestions(before) {
  const name = state.databases[0];
  const known = await columnsOf(name);
  const after = before.match(/(?:"([^"]+)"|([A-Za-z_]\w*))\s*(?:=|<>|!=|\bIN\s*\((?:[^()]*,)?|\b(?:I?LIKE))\s*('?)([^']*)$/i);
  if (after) {
    const column = known.find((one) => one.name.toLowerCase() === (after[1] || after[2]).toLowerCase());
    if (!column) return [];
    const from = before.length - after[3].length - after[4].length;
    let values = column.values;
    if (!values.length && column.type === "string") values = (await get(`${database(name)}/values?column=${encodeURIComponent(column.name)}&begins=${encodeURIComponent(after[4])}`)).values;
    const wanted = after[4].toLowerCase().trim();
    const found = values.filter((one) => one.value !== "(none)" && one.value.toLowerCase().includes(wanted)).slice(0, 30);
    if (!found.length && column.low !== null) return [{ from, text: String(column.low), shown: `${number(column.low)} to ${number(column.high)}`, note: "range" }];
    return found.map((one) => ({ from, text: one.sql.includes(" = ") ? one.sql.slice(one.sql.indexOf(" = ") + 3) : one.sql, shown: one.value, note: number(one.count) }));
  }
  const word = before.match(/"?[A-Za-z_]*$/)[0];
  if (/('[^']*'|[\d)])\s+$/.test(before) && !word) return ["AND", "OR"].map((text) => ({ from: before.length, text: `${text} `, shown: text, note: "" }));
  if (!word && before.trim() && !/(AND|OR|NOT|\()\s*$/i.test(before)) return [];
  const wanted = word.replaceAll('"', "").toLowerCase();
  return known.filter((one) => one.name.toLowerCase().includes(wanted)).sort((a, b) => rank(a, wanted) - rank(b, wanted))
    .slice(0, 40).map((one) => ({ from: before.length - word.length, text: `${quote(one.name)} `, shown: one.name, note: one.values.length ? `${one.values.length} values` : one.low !== null ? `${number(one.low)} to ${number(one.high)}` : { string: "text", int64: "whole number", float64: "number", bool: "true or false" }[one.type] }));
}

// Names that begin with the typed text come first, then columns of the source, then rdmpipe's own columns.
const OWN = new Set(["key", "item_id", "sha256", "phash", "duplicate_of", "url", "source"]);
const rank = (one, wanted) => (one.name.toLowerCase().startsWith(wanted) ? 0 : 4) + (OWN.has(one.name) ? 2 : one.values.length ? 0 : 1);

async function offer() {
  const own = ++typed;
  const found = await suggestions(box.value.slice(0, box.selectionStart)).catch(() => []);
  if (own !== typed || document.activeElement !== box) return;
  offered = found;
  active = -1;
  offers.replaceChildren(...found.map((one, at) => element("li", { role: "option", id: `offer-${at}`, "aria-selected": "false", onmousedown: (event) => { event.preventDefault(); take(at); } }, element("span", {}, one.shown), element("small", {}, one.note))));
  offers.hidden = !found.length;
  box.setAttribute("aria-expanded", String(found.length > 0));
  box.removeAttribute("aria-activedescendant");
}

function hide() {
  typed += 1;
  offers.hidden = true;
  active = -1;
  box.setAttribute("aria-expanded", "false");
  box.removeAttribute("aria-activedescendant");
}

function choose(at) {
  active = (at + offered.length) % offered.length;
  [...offers.children].forEach((line, i) => line.setAttribute("aria-selected", String(i === active)));
  offers.children[active].scrollIntoView({ block: "nearest" });
  box.setAttribute("aria-activedescendant", `offer-${active}`);
}

function take(at) {
  const one = offered[at], caret = box.selectionStart;
  const rest = box.value.slice(caret).replace(/^'/, "");
  box.value = box.value.slice(0, one.from) + one.text + rest;
  box.setSelectionRange(one.from + one.text.length, one.from + one.text.length);
  state.where = box.value;
  changed("filter");
  offer();
}

export function begin() {
  box.addEventListener("input", () => { state.where = box.value; offer(); later(() => changed("filter"), 250); });
  box.addEventListener("focus", offer);
  box.addEventListener("click", offer);
  box.addEventListener("blur", hide);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { if (!offers.hidden) { event.preventDefault(); hide(); } return; }
    if (event.key === "Enter") { event.preventDefault(); if (active >= 0) take(active); else { hide(); changed("filter", true); } return; }
    if (offers.hidden || !offered.length) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); choose(active + (event.key === "ArrowDown" ? 1 : active < 0 ? 0 : -1)); }
    if (event.key === "Tab" && active >= 0) { event.preventDefault(); take(active); }
  });
  byId("distinct").addEventListener("change", (event) => { state.distinct = event.target.checked; changed("filter"); });
  byId("filter-toggle").addEventListener("click", () => {
    const open = byId("filter").hidden;
    byId("filter").hidden = byId("facets").hidden = !open;
    byId("filter-toggle").setAttribute("aria-expanded", String(open));
    if (open) { facets(); if (matchMedia("(hover: hover)").matches) box.focus(); }
  });
}

// ---- facets

const whole = new Set(); // columns whose values are all shown
let counting = null;
let counted = "";

export async function facets() {
  const active = Object.values(state.chosen).flat().length + (state.where.trim() ? 1 : 0) + (state.distinct ? 1 : 0);
  byId("filter-words").textContent = active ? `Filter · ${active}` : "Filter";
  byId("filter-toggle").classList.toggle("on", active > 0);
  if (byId("filter").hidden) return;
  const name = state.databases[0], text = `${name}\n${where()}`;
  if (text === counted) return;
  counting?.abort();
  counting = new AbortController();
  try {
    const found = await get(`${database(name)}/facets?where=${encodeURIComponent(where())}`, counting.signal);
    counted = text;
    const all = await columnsOf(name);
    const example = found.facets[0]?.values.find((one) => one.value !== "(none)");
    box.placeholder = example ? `${example.sql}  (any SQL condition)` : "any SQL condition, such as width >= 512";
    draw(found.facets, all);
  } catch { /* the request for the results reports errors of the filter */ }
}

function draw(found, all) {
  byId("facets").replaceChildren(...found.map((facet) => {
    const every = all.find((one) => one.name === facet.name)?.values || facet.values;
    const now = new Map(facet.values.map((one) => [one.sql, one.count]));
    const chosen = state.chosen[facet.name] || [];
    const values = every.map((one) => ({ ...one, count: now.get(one.sql) || 0 })).sort((a, b) => b.count - a.count);
    const shown = whole.has(facet.name) ? values : values.filter((one, i) => i < 8 || chosen.includes(one.sql));
    return element("section", { class: "facet", "aria-label": facet.name }, element("h3", {}, facet.name),
      element("ul", {}, shown.map((one) => element("li", { class: one.count ? "" : "zero" }, element("button", { type: "button", "aria-pressed": String(chosen.includes(one.sql)), onclick: () => {
        const list = state.chosen[facet.name] || [];
        state.chosen[facet.name] = list.includes(one.sql) ? list.filter((sql) => sql !== one.sql) : [...list, one.sql];
        if (!state.chosen[facet.name].length) delete state.chosen[facet.name];
        changed("filter");
      } }, element("span", { title: one.value }, one.value), element("small", {}, number(one.count)))))),
      shown.length < values.length || whole.has(facet.name) ? element("button", { type: "button", class: "all", onclick: () => { if (!whole.delete(facet.name)) whole.add(facet.name); draw(found, all); } }, whole.has(facet.name) ? "fewer" : `all ${values.length}`) : "");
  }));
  if (!found.length) byId("facets").replaceChildren(element("p", { class: "note" }, "No column has few enough values to list; the box above takes any condition."));
}

export function shownAgain() {
  box.value = state.where;
  byId("distinct").checked = state.distinct;
  counted = "";
  if (state.where || Object.keys(state.chosen).length) { byId("filter").hidden = byId("facets").hidden = false; byId("filter-toggle").setAttribute("aria-expanded", "true"); }
}

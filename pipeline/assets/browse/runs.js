// All pictures that were drawn in this home, newest first: favourites, download, and drawing again with their settings.
import { byId, element, image, link, number, plural, sentence } from "./dom.js";
import { get, post } from "./api.js";
import { changed, state } from "./state.js";
import * as draw from "./draw.js";
import { lend } from "./detail.js";

let only = { run: "", favourites: false };

// Favourites are kept in the home if the server may write, else in this browser.
const own = () => new Set(JSON.parse(localStorage.getItem("favourites") || "[]"));
const nameOf = (one) => `${one.run}/${one.key}`;

export function star(picture) {
  const marked = picture.favourite || own().has(nameOf(picture));
  const button = element("button", { type: "button", class: "star", "aria-pressed": String(marked), "aria-label": "Favourite", title: "Favourite" }, marked ? "★" : "☆");
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    const on = button.getAttribute("aria-pressed") !== "true";
    if (state.session.allow_generate) {
      try { await post("/api/favourites", { run: picture.run, key: picture.key, on }); } catch (error) { byId("count").textContent = error.message; return; }
    } else {
      const kept = own();
      kept[on ? "add" : "delete"](nameOf(picture));
      localStorage.setItem("favourites", JSON.stringify([...kept]));
    }
    picture.favourite = on;
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "★" : "☆";
  });
  return button;
}

export async function show(root) {
  byId("nothing").hidden = true;
  byId("count").textContent = "Reading the runs";
  const wall = element("div", { class: "wall" });
  const bar = element("div", { class: "chips runbar" });
  const more = element("button", { type: "button", class: "pill loader", onclick: () => next() }, "More pictures");
  root.replaceChildren(bar, wall, more);
  const list = []; // the pictures on the wall
  let offset = 0;
  async function next() {
    const query = new URLSearchParams({ k: 60, offset, run: only.run, favourites: only.favourites && state.session.allow_generate ? 1 : "" });
    const found = await get(`/api/runs?${query}`);
    if (!offset) heads(bar, found, () => show(root));
    offset += found.pictures.length;
    more.hidden = offset >= found.total;
    const kept = own();
    const pictures = only.favourites && !state.session.allow_generate ? found.pictures.filter((one) => kept.has(nameOf(one))) : found.pictures;
    wall.append(...pictures.map((one) => card(list, list.push(one) - 1)));
    byId("count").textContent = found.total ? `${plural(found.total, "picture")} in ${plural(found.runs.length, "run")}` : "";
    byId("nothing").hidden = found.total > 0;
    byId("nothing").replaceChildren(...sentence(only.favourites ? "No favourites yet: click ☆ below a picture." : "No picture was drawn in this home yet. Draw one with `rdmpipe generate \"a castle by the sea\" --db NAME`, or here if `rdmpipe browse` runs with `--allow-generate`."));
    const first = wall.querySelector(".picture");
    if (first) first.tabIndex = 0;
  }
  try { await next(); } catch (error) { root.replaceChildren(); byId("count").textContent = error.message; }
}

function heads(bar, found, again) {
  const choice = element("select", { "aria-label": "Run", onchange: () => { only.run = choice.value; again(); } }, element("option", { value: "" }, "all runs"), found.runs.map((one) => element("option", { value: one.name, selected: one.name === only.run }, `${one.name} (${number(one.pictures)})`)));
  bar.replaceChildren(choice, element("button", { type: "button", "aria-pressed": String(only.favourites), onclick: () => { only.favourites = !only.favourites; again(); } }, "★ Favourites"));
}

function card(list, at) {
  const picture = list[at];
  const ratio = picture.settings.width && picture.settings.height ? picture.settings.width / picture.settings.height : 1;
  const button = element("button", { class: "picture", type: "button", tabindex: -1, "aria-haspopup": "dialog", "aria-label": `${picture.prompt}, ${picture.database || "text alone"}, seed ${picture.seed}` },
    element("span", { class: "frame", ratio }, image(picture.file, "", picture.prompt)), element("span", { class: "words" }, picture.prompt));
  button.addEventListener("click", () => open(list, at));
  return element("div", { class: "kept" }, button, element("span", { class: "label" }, element("span", { class: "by" }, picture.database || "text alone"), star(picture)));
}

function open(list, at) {
  const picture = list[at];
  byId("detail-place").textContent = picture.database || "text alone";
  byId("detail-title").textContent = picture.prompt;
  byId("detail-by").textContent = `seed ${picture.seed} · ${picture.run}`;
  for (const name of ["detail-caption", "detail-terms", "detail-score"]) byId(name).replaceChildren();
  byId("before").disabled = at <= 0;
  byId("after").disabled = at >= list.length - 1;
  byId("near-part").hidden = true;
  const shown = byId("detail-image");
  byId("detail-failed").hidden = true;
  shown.hidden = false;
  shown.alt = picture.prompt;
  shown.onload = () => { const most = Math.max(3, 512 / shown.naturalWidth); shown.style.maxWidth = `${most * shown.naturalWidth}px`; shown.style.maxHeight = `${most * shown.naturalHeight}px`; };
  shown.src = picture.file;
  const settings = picture.settings;
  byId("acts").replaceChildren(
    state.session.allow_generate && picture.database && state.known.some((one) => one.name === picture.database) ? element("button", { type: "button", class: "first", onclick: () => {
      byId("detail").close();
      draw.open({ prompt: picture.prompt, seed: picture.seed, model: settings.model || "", steps: settings.steps ?? "", scale: settings.scale ?? "", sampler: settings.sampler || "", k: settings.k ?? "", negative: settings.negative || "" });
      state.databases = [picture.database];
      state.view = "draw";
      changed("view", true);
    } }, "Draw with these settings") : "",
    element("a", { href: picture.file, download: "" }, "Download"), star(picture));
  byId("metadata").replaceChildren(...Object.entries({ ...settings, neighbours: picture.neighbours.join(", "), key: picture.key }).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, link(String(value), String(value)))]));
  lend((by) => { if (list[at + by]) open(list, at + by); });
}

// One picture, large, with its metadata and its nearest pictures.
import { byId, element, image, joined, link } from "./dom.js";
import { database, get, pictureOf, post } from "./api.js";
import { changed, state } from "./state.js";
import { moreLike } from "./query.js";
import { focusCard } from "./results.js";

const dialog = byId("detail");
let now = null; // {name, list, at, item}
let asking = null;
let step = null; // what the arrows do if another view has filled the dialog

// Another view fills the dialog; `turner(by)` shows its next or previous picture.
export function lend(turner) {
  asking?.abort();
  now = null;
  step = turner;
  byId("panel").scrollTop = dialog.scrollTop = 0;
  if (!dialog.open) { dialog.showModal(); byId("panel").focus({ preventScroll: true }); }
}

export function open(name, list, at) {
  show(name, list, at, list.items[at]);
}

export function openKey(name, key, title) {
  show(name, null, -1, { key, title, by: "", caption: "", licence: "", source: "", url: "", score: null });
}

async function show(name, list, at, item) {
  now = { name, list, at, item };
  step = null;
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  fill(item);
  byId("detail-place").textContent = name;
  byId("before").disabled = !list || at <= 0;
  byId("after").disabled = !list || at >= list.items.length - 1;
  picture(name, item);
  acts(name, item);
  byId("metadata").replaceChildren();
  byId("near").replaceChildren();
  byId("near-part").hidden = true;
  if (!dialog.open) { dialog.showModal(); byId("panel").focus({ preventScroll: true }); }
  byId("panel").scrollTop = dialog.scrollTop = 0;
  try {
    const [row, near] = await Promise.all([
      get(`${database(name)}/rows/${item.key}`, signal),
      post("/api/search", { databases: [name], parts: [{ key: item.key }], k: 12 }, signal),
    ]);
    fill({ ...row.item, score: item.score });
    byId("metadata").replaceChildren(...Object.entries(row.metadata).flatMap(([column, value]) => [element("dt", {}, column), element("dd", {}, link(String(value), String(value)))]));
    const items = near.answers[0].items;
    byId("near-part").hidden = !items.length;
    byId("near").replaceChildren(...items.map((other) => element("button", { type: "button", "aria-label": `${other.title}, similarity ${other.score.toFixed(3)}`, title: other.title, onclick: () => openKey(name, other.key, other.title) },
      element("span", { class: "frame", ratio: 1 }, image(pictureOf(name, other.key), "", other.title)), element("span", {}, other.score.toFixed(3)))));
  } catch (error) {
    if (error.name !== "AbortError") byId("metadata").replaceChildren(element("dd", {}, error.message));
  }
}

function fill(item) {
  byId("detail-title").textContent = item.title || `picture ${item.key}`;
  byId("detail-by").textContent = item.by;
  byId("detail-caption").textContent = item.caption;
  byId("detail-terms").replaceChildren(...joined([item.licence, item.url ? link(item.url, item.source || "source") : item.source]));
  const score = byId("detail-score");
  score.replaceChildren();
  if (item.score !== null && item.score !== undefined) {
    const bar = element("span", { class: "bar", "aria-hidden": true }, element("span"));
    bar.firstChild.style.width = `${100 * Math.max(0, Math.min(1, item.score))}%`;
    score.append(bar, `similarity ${item.score.toFixed(3)}`);
  }
}

function picture(name, item) {
  const shown = byId("detail-image"), failed = byId("detail-failed");
  shown.hidden = false;
  failed.hidden = true;
  shown.alt = item.title || `picture ${item.key}`;
  shown.onerror = () => { shown.hidden = true; failed.hidden = false; failed.textContent = "This database stores no pictures, only their vectors and metadata."; };
  shown.onload = () => { // above three times its size it would be blurred
    shown.style.maxWidth = `${Math.max(3, 512 / Math.max(shown.naturalWidth, shown.naturalHeight)) * shown.naturalWidth}px`;
    shown.style.maxHeight = `${Math.max(3, 512 / Math.max(shown.naturalWidth, shown.naturalHeight)) * shown.naturalHeight}px`;
  };
  shown.src = pictureOf(name, item.key, true);
}

function acts(name, item) {
  const like = (weight, alone) => () => { dialog.close(); moreLike(name, now.item, weight, alone); };
  const picked = state.picked.findIndex((one) => one.database === name && one.key === item.key);
  byId("acts").replaceChildren(
    element("button", { type: "button", class: "first", onclick: like(1, true) }, "More like this"),
    element("button", { type: "button", onclick: like(1, false) }, "Add to the query"),
    element("button", { type: "button", onclick: like(-1, false) }, "Less like this"),
    state.session.allow_generate ? element("button", { type: "button", "aria-pressed": String(picked >= 0), onclick: () => {
      if (picked >= 0) state.picked.splice(picked, 1);
      else state.picked.push({ database: name, key: item.key, title: item.title });
      acts(name, item);
      changed("picked");
    } }, picked >= 0 ? "Do not draw from it" : "Draw from it") : "",
    element("a", { href: pictureOf(name, item.key, true), download: `${name}-${item.key}` }, "Download"));
}

function turn(by) {
  if (step) { step(by); return; }
  const next = now?.list && now.at + by;
  if (now?.list && next >= 0 && next < now.list.items.length) show(now.name, now.list, next, now.list.items[next]);
}

dialog.addEventListener("close", () => {
  asking?.abort();
  const card = now?.list?.cards?.[now.at];
  if (card?.isConnected) focusCard(card);
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); turn(event.key === "ArrowLeft" ? -1 : 1); }
});
byId("before").addEventListener("click", () => turn(-1));
byId("after").addEventListener("click", () => turn(1));
byId("close").addEventListener("click", () => dialog.close());

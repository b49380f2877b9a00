// Cards of results: one wall, or one column for each database. The next page is loaded when the end is near.
import { byId, element, image, number, plural, sentence } from "./dom.js";
import { pictureOf, post } from "./api.js";
import { parts, state, where } from "./state.js";
import { moreLike } from "./query.js";
import { open } from "./detail.js";

const PAGE = 60;
const root = byId("pictures");
let shown = []; // one list for each database: {name, answer, items, cards, place, ended}
let asking = null;
let asked = "";

const facts = (name) => state.known.find((one) => one.name === name) || {};

export function cardOf(database, item, list, at) {
  const none = facts(database).images === "drop";
  const ratio = item.width && item.height ? Math.min(1.7, Math.max(0.62, item.width / item.height)) : 1;
  const inside = none ? element("span", { class: "none" }, item.title) : image(pictureOf(database, item.key), "", item.title);
  const score = item.score === null ? "" : `, similarity ${item.score.toFixed(3)}`;
  const card = element("button", { class: "picture", type: "button", tabindex: -1, "aria-haspopup": "dialog", "aria-label": `${item.title || `picture ${item.key}`}${item.by ? `, ${item.by}` : ""}${score}` },
    element("span", { class: "frame", ratio }, inside),
    element("span", { class: "words" }, item.title),
    element("span", { class: "label" }, element("span", { class: "by" }, item.by || item.licence), item.score === null ? null : element("span", { class: "number" }, item.score.toFixed(3))));
  card.addEventListener("click", () => open(database, list, at));
  card.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "s" && !event.ctrlKey && !event.metaKey && !event.altKey) { event.preventDefault(); moreLike(database, item); }
  });
  card.classList.toggle("picked", state.picked.some((one) => one.database === database && one.key === item.key));
  return card;
}

function question(names, offset) {
  return { databases: names, parts: parts().map(({ said, ...part }) => part), where: where(), k: PAGE, offset, distinct: state.distinct };
}

// Ask for the first page of results. The old ones stay until the new ones arrive, so that the page does not flicker during typing.
export async function search() {
  const body = question(state.databases, 0), text = JSON.stringify(body);
  if (text === asked) return;
  asked = text;
  asking?.abort();
  asking = new AbortController();
  const own = asking, began = performance.now();
  const waiting = setTimeout(() => {
    root.firstElementChild?.classList.add("old");
    byId("count").classList.add("busy");
    const loading = state.databases.some((name) => facts(name).encoder_state !== "ready") && body.parts.some((part) => part.key === undefined);
    byId("count").textContent = loading ? "Loading the encoder: the first search takes a while" : "Searching";
  }, 350);
  try {
    const { answers } = await post("/api/search", body, own.signal);
    if (own !== asking) return;
    show(answers, performance.now() - began);
    for (const name of state.databases) if (body.parts.length) facts(name).encoder_state = "ready";
  } catch (error) {
    if (error.name === "AbortError") return;
    asked = "";
    byId("count").replaceChildren(...sentence(error.message));
  } finally {
    clearTimeout(waiting);
    if (own === asking) byId("count").classList.remove("busy");
  }
}

// Another view is shown: an answer that arrives later must not replace it.
export function forget() {
  asked = "";
  asking?.abort();
  asking = null;
  shown = [];
  byId("count").classList.remove("busy");
}

// A filter that is not complete yet: the pictures of the last complete one stay, so that the page does not go blank during typing.
function keepOld(answers) {
  if (!answers.every((answer) => answer.error && answer.kind === "FilterError") || !root.querySelector(".picture")) return false;
  root.firstElementChild.classList.add("old");
  for (const list of shown) list.ended = true;
  const typing = document.activeElement === byId("where") && !byId("offers").hidden;
  byId("where-problem").textContent = typing ? "" : answers[0].error;
  byId("where").setAttribute("aria-invalid", "true");
  byId("count").textContent = "The filter is not complete, or has an error; the pictures are the previous ones";
  return true;
}

function show(answers, milliseconds) {
  if (keepOld(answers)) return;
  const several = answers.length > 1;
  const container = element("div", { class: several ? "beside" : "wall" });
  container.style.setProperty("--columns", answers.length);
  shown = answers.map((answer) => {
    const list = { name: answer.database, answer, items: [], cards: [], ended: answer.items.length < PAGE, place: container };
    if (several) {
      list.place = element("div", { class: "inner" });
      container.append(element("section", { class: "column", "aria-label": answer.database },
        element("h2", {}, answer.database, element("small", {}, answer.error ? "" : plural(answer.matched, "picture"))), answer.error ? element("p", { class: "problem" }, answer.error) : null, list.place));
    }
    add(list, answer.items);
    return list;
  });
  root.replaceChildren(container);
  const first = shown.find((list) => list.cards.length);
  if (first) first.cards[0].tabIndex = 0;
  const filtered = answers.filter((answer) => answer.error && answer.kind === "FilterError");
  const typing = document.activeElement === byId("where") && !byId("offers").hidden;
  byId("where-problem").textContent = (!typing && filtered[0]?.error) || "";
  byId("where").setAttribute("aria-invalid", String(filtered.length > 0));
  const problem = answers.length === 1 && answers[0].error && !filtered.length ? answers[0].error : "";
  const none = !answers.some((answer) => answer.items.length);
  byId("nothing").hidden = !none || Boolean(filtered.length);
  byId("nothing").replaceChildren(...sentence(problem || "No row matches the filter."));
  if (several || problem) byId("count").textContent = several ? `${plural(answers.length, "database")} side by side` : "";
  else if (filtered.length) byId("count").textContent = "The filter is not complete, or has an error";
  else {
    const { matched, rows } = answers[0];
    const many = matched === rows ? plural(rows, "picture") : `${matched ? number(matched) : "None"} of ${plural(rows, "picture")}${matched ? "" : " matches the filter"}`;
    byId("count").textContent = parts().length && matched ? `${many}, nearest first · ${Math.round(milliseconds)} ms` : many;
  }
}

function add(list, items) {
  for (const item of items) {
    const at = list.items.push(item) - 1;
    const card = cardOf(list.name, item, list, at);
    list.cards.push(card);
    list.place.append(card);
  }
}

let fetching = false;
async function more() {
  const open = shown.filter((list) => !list.ended && !list.answer.error);
  if (fetching || !open.length || state.view !== "pictures") return;
  fetching = true;
  const own = asking;
  try {
    const offset = Math.min(...open.map((list) => list.items.length));
    const names = open.filter((list) => list.items.length === offset).map((list) => list.name);
    const { answers } = await post("/api/search", question(names, offset), own?.signal);
    if (own !== asking) return;
    for (const answer of answers) {
      const list = shown.find((one) => one.name === answer.database);
      list.ended = answer.items.length < PAGE;
      add(list, answer.items);
    }
  } catch (error) {
    if (error.name !== "AbortError") for (const list of open) list.ended = true;
  } finally {
    fetching = false;
    if (near()) more();
  }
}

const near = () => byId("more").getBoundingClientRect().top < window.innerHeight + 1400;
new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) more(); }, { rootMargin: "1400px" }).observe(byId("more"));

// ---- the keyboard: Tab stops once at the results, arrow keys move inside

export function focusCard(card) {
  for (const other of root.querySelectorAll('.picture[tabindex="0"]')) other.tabIndex = -1;
  card.tabIndex = 0;
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function beside(key, current) {
  const visible = [...root.querySelectorAll(".picture")];
  const at = visible.indexOf(current);
  if (key === "ArrowLeft") return visible[at - 1];
  if (key === "ArrowRight") return visible[at + 1];
  if (key === "Home") return visible[0];
  if (key === "End") return visible.at(-1);
  const here = current.getBoundingClientRect(), down = key === "ArrowDown";
  let best;
  for (const card of visible) {
    const box = card.getBoundingClientRect();
    const rise = down ? box.top - here.top : here.top - box.top;
    if (rise < 8) continue;
    const away = rise * 4 + Math.abs(box.left + box.width / 2 - here.left - here.width / 2);
    if (!best || away < best.away) best = { away, card };
  }
  return best?.card;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("detail").open) return;
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing) { event.preventDefault(); byId("search").focus(); return; }
  if (event.target.id === "search" && event.key === "ArrowDown") { const first = root.querySelector(".picture"); if (first) { event.preventDefault(); focusCard(first); } return; }
  const current = event.target.closest?.(".picture");
  if (!current || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  const next = beside(event.key, current);
  if (next) focusCard(next);
  else if (event.key === "ArrowUp") byId("search").focus();
});

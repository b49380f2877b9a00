// Starts the page: asks what the server offers, shows a view, and redraws what changes.
import { byId, element, number, plural, reveal, sentence } from "./dom.js";
import { get } from "./api.js";
import * as query from "./query.js";
import * as filter from "./filter.js";
import * as results from "./results.js";
import * as map from "./map.js";
import * as lists from "./lists.js";
import * as drawing from "./draw.js";
import * as runs from "./runs.js";
import { begin, changed, state, watch } from "./state.js";

const root = byId("pictures");
const VIEWS = { pictures: ["Pictures", results.search], map: ["Map", map.show], draw: ["Draw", drawing.show], runs: ["Runs", runs.show], copies: ["Copies", lists.copies], failures: ["Failures", lists.failures], jobs: ["Jobs", lists.jobs] };
const views = () => Object.keys(VIEWS).filter((name) => name !== "draw" || state.session.allow_generate);

function heading() {
  const chosen = state.known.filter((one) => state.databases.includes(one.name));
  const first = chosen[0];
  byId("name").textContent = chosen.length > 1 ? chosen.map((one) => one.name).join(" · ") : first?.name || "rdmpipe";
  document.title = `${state.databases.join(", ")} · rdmpipe`;
  const about = byId("about");
  if (chosen.length > 1) about.textContent = `${plural(chosen.length, "database")} side by side, one query`;
  else if (first?.problem) about.textContent = first.problem;
  else if (first) about.textContent = [first.base ? `a view of ${first.base}` : first.title && first.title !== first.name ? first.title : "", plural(first.rows, "picture"), `encoder ${first.encoder}`, first.licence && first.licence !== "unknown" ? first.licence : "", first.trained ? "" : "the encoder is untrained: similarity means nothing"].filter(Boolean).join(" · ");
  byId("databases").hidden = state.known.length < 2;
  byId("databases").replaceChildren(element("button", { type: "button", class: "several", "aria-pressed": String(several), title: "Choose several databases and search all of them with one query", onclick: () => { several = !several; if (!several) state.databases = state.databases.slice(0, 1); changed("databases"); } }, "Side by side"), ...state.known.map((one) => element("button", { type: "button", "aria-pressed": String(state.databases.includes(one.name)), title: one.problem || (one.base ? `a view of ${one.base}` : one.title), onclick: (event) => choose(one.name, event) }, one.name, element("small", {}, one.problem ? "damaged" : number(one.rows)))));
  byId("views").replaceChildren(...views().map((name) => element("button", { type: "button", "aria-pressed": String(state.view === name), onclick: () => { state.view = name; changed("view", true); } }, VIEWS[name][0])));
  reveal(byId("databases"));
  reveal(byId("views"));
}

let several = false;

// A click shows this database only; side by side, or with Ctrl or Shift, it adds or removes the database.
function choose(name, event) {
  const there = state.databases.includes(name);
  if (several || event.ctrlKey || event.metaKey || event.shiftKey) state.databases = there ? state.databases.filter((one) => one !== name) : [...state.databases, name].slice(-6);
  else if (!there) state.databases = [name];
  if (!state.databases.length) state.databases = [name];
  state.chosen = {};
  changed("databases", true);
}

function draw(what) {
  if (what === "all" || what === "start") { byId("search").value = state.text; filter.shownAgain(); }
  heading();
  query.drawParts();
  filter.facets();
  if (what === "picked") return;
  if (!views().includes(state.view)) state.view = "pictures";
  if (state.view === "pictures") { results.search(); return; }
  results.forget();
  // The text of the query changes the pictures only; a filter changes the map too.
  const concerned = { map: ["filter", "databases"], draw: ["databases", "redraw"], copies: ["databases"], failures: ["databases"], runs: [], jobs: [] }[state.view];
  if (["all", "start", "view", ...concerned].includes(what)) VIEWS[state.view][1](root);
}

async function start() {
  try {
    const [session, { databases }] = await Promise.all([get("/api/session"), get("/api/databases")]);
    state.session = session;
    state.known = databases;
    begin([session.database || databases.find((one) => !one.problem)?.name || databases[0]?.name].filter(Boolean));
  } catch (error) {
    byId("name").textContent = "rdmpipe";
    byId("about").replaceChildren(...sentence(error.message));
    return;
  }
  several = state.databases.length > 1;
  query.begin();
  filter.begin();
  watch(draw);
  draw("start");
  if (matchMedia("(hover: hover)").matches) byId("search").focus({ preventScroll: true });
}

byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

start();

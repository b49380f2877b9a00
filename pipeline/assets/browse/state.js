// The state of the page. It is kept in the address after #, so that reloading, sharing and the back button work.
export const state = {
  session: {}, // what the server allows
  known: [], // databases of the home
  databases: [], // names of those that are shown
  text: "", // being typed
  parts: [], // kept parts: {text | picture | key+database, weight, said}
  where: "", // the SQL box
  chosen: {}, // facets: column -> list of SQL conditions
  distinct: false,
  view: "pictures",
  picked: [], // neighbours picked by hand: {database, key, title}
};

const watchers = [];
export const watch = (work) => watchers.push(work);

// The parts of the query, the typed one included: `-people` leads away from people.
export function parts() {
  const typed = state.text.trim();
  const live = typed && typed !== "-" ? [typed.startsWith("-") ? { text: typed.slice(1).trim(), weight: -1 } : { text: typed, weight: 1 }] : [];
  return [...state.parts, ...live];
}

export function where() {
  const facets = Object.values(state.chosen).filter((list) => list.length).map((list) => (list.length > 1 ? `(${list.join(" OR ")})` : list[0]));
  return [state.where.trim() ? (facets.length ? `(${state.where.trim()})` : state.where.trim()) : "", ...facets].filter(Boolean).join(" AND ");
}

const KEPT = ["databases", "text", "parts", "where", "chosen", "distinct", "view"];

let writing = false;
export function changed(what, history = false) {
  const kept = Object.fromEntries(KEPT.filter((name) => JSON.stringify(state[name]) !== JSON.stringify(initial[name])).map((name) => [name, state[name]]));
  const hash = Object.keys(kept).length ? `#${encodeURIComponent(JSON.stringify(kept))}` : location.pathname;
  writing = true;
  window.history[history ? "pushState" : "replaceState"](null, "", hash);
  writing = false;
  for (const work of watchers) work(what);
}

const initial = JSON.parse(JSON.stringify(state));

export function begin(databases) {
  initial.databases = databases;
  read();
}

export function read() {
  let kept = {};
  try { kept = JSON.parse(decodeURIComponent(location.hash.slice(1)) || "{}"); } catch { /* an address that was cut off */ }
  for (const name of KEPT) state[name] = kept[name] !== undefined && typeof kept[name] === typeof initial[name] ? kept[name] : JSON.parse(JSON.stringify(initial[name]));
  const names = new Set(state.known.map((one) => one.name));
  state.databases = state.databases.filter((name) => names.has(name));
  if (!state.databases.length) state.databases = initial.databases;
}

window.addEventListener("popstate", () => {
  if (writing) return;
  read();
  for (const work of watchers) work("all");
});

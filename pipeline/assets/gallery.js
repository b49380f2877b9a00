"use strict";
// Lays out the run in #data. All text enters the page as text, never as markup; the page's policy runs no other script.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const root = byId("pictures");

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name === "ratio") made.style.aspectRatio = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// The picture that is the prompt; null if there is none.
function asked(prompt) {
  return prompt.image >= 0 ? element("img", { class: "asked", src: data.urls[prompt.image], alt: "the picture that was the prompt" }) : null;
}

const titled = (prompt) => (prompt.by_image ? `A picture as prompt${prompt.text ? ` (${prompt.text})` : ""}` : prompt.text);

const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const describe = (picture) => {
  const prompt = data.prompts[picture.prompt], database = data.databases[picture.database];
  return `${prompt.text || "picture prompt"}${database.name ? `, from ${database.name}` : ""}, seed ${picture.seed}`;
};

// ---- pictures are loaded when they are near the screen

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    entry.target.src = data.urls[Number(entry.target.dataset.url)];
  }
}, { rootMargin: "800px" });

function image(url, alt) {
  const made = element("img", { alt, decoding: "async", "data-url": url });
  made.addEventListener("load", () => made.classList.add("there"));
  made.addEventListener("error", () => made.replaceWith(element("span", { class: "failed" }, "The file of this picture is missing.")));
  seen.observe(made);
  return made;
}

function frame(picture, alt) {
  const inside = picture.thumb < 0 ? element("span", { class: "failed" }, picture.error || "not finished yet") : image(picture.thumb, alt);
  return element("span", { class: "frame", ratio: `${picture.width} / ${picture.height}` }, inside);
}

function card(picture, index) {
  const made = element("button", { class: "picture", type: "button", "data-index": index, tabindex: -1, "aria-haspopup": "dialog", "aria-label": describe(picture) },
    frame(picture, ""),
    element("span", { class: "words" }, data.prompts[picture.prompt].text),
    element("span", { class: "label" }, element("span", { class: "db" }, data.databases[picture.database].name || "text alone"), element("span", { class: "seed" }, `seed ${picture.seed}`)));
  made.addEventListener("click", () => open(index));
  return made;
}

// ---- which text is searched, and which pictures are shown

for (const picture of data.pictures) {
  const prompt = data.prompts[picture.prompt];
  const words = [prompt.text, prompt.negative, prompt.id, ...Object.values(prompt.extra), data.databases[picture.database].name, picture.key, `seed ${picture.seed}`, picture.status];
  for (const [at] of picture.neighbours) { const n = data.neighbours[at]; words.push(n.title, n.by, n.caption, n.source, n.licence); }
  picture.words = words.filter(Boolean).join("\n").toLowerCase();
}

const state = { words: [], databases: new Set(), view: data.databases.length > 1 ? "grid" : "wall", shown: [], open: -1 };
let cards = [];

function layOut() {
  root.replaceChildren();
  seen.disconnect();
  cards = new Array(data.pictures.length);
  if (state.view === "wall") {
    const wall = element("div", { class: "wall" });
    data.pictures.forEach((picture, index) => wall.append(cards[index] = card(picture, index)));
    root.append(wall);
  } else {
    const aligned = data.databases.length <= 6;
    const grid = element("div", { class: aligned ? "aligned" : "" });
    grid.style.setProperty("--columns", data.databases.length);
    grid.append(element("div", { class: "columns", "aria-hidden": true }, element("span"), element("div", {}, ...data.databases.map((d) => element("span", {}, d.name || "text alone")))));
    const cells = new Map();
    data.pictures.forEach((picture, index) => {
      if (!cells.has(picture.prompt)) cells.set(picture.prompt, data.databases.map(() => []));
      cells.get(picture.prompt)[picture.database].push(cards[index] = card(picture, index));
    });
    for (const [at, columns] of cells) {
      const prompt = data.prompts[at];
      const line = [prompt.id, prompt.negative && `without ${prompt.negative}`, ...Object.entries(prompt.extra).map(([name, value]) => `${name}: ${value}`)].filter(Boolean).join(" · ");
      const strip = element("div", { class: data.databases.length < 3 ? "strip few" : "strip" }, ...columns.map((made) => element("div", { class: `cell of-${made.length === 4 ? 2 : Math.min(made.length, 3)}` }, ...made)));
      const count = columns.flat().length;
      grid.append(element("section", { class: count === 1 ? "prompt lone" : "prompt", "aria-label": prompt.text || "picture prompt" },
        element("div", { class: "words-part" }, element("h2", {}, titled(prompt)), asked(prompt), line ? element("p", { class: "line" }, line) : null), strip));
    }
    root.append(grid);
  }
  show();
}

function show() {
  state.shown = [];
  data.pictures.forEach((picture, index) => {
    const fits = (!state.databases.size || state.databases.has(picture.database)) && state.words.every((word) => picture.words.includes(word));
    cards[index].hidden = !fits;
    cards[index].tabIndex = -1;
    if (fits) state.shown.push(index);
  });
  for (const section of root.querySelectorAll(".prompt")) section.hidden = !section.querySelector(".picture:not([hidden])");
  if (state.shown.length) cards[state.shown[0]].tabIndex = 0;
  const all = data.pictures.length, now = state.shown.length;
  byId("count").textContent = now === all ? plural(all, "picture") : `${now.toLocaleString("en")} of ${plural(all, "picture")}`;
  byId("nothing").hidden = now > 0;
}

let waiting = 0;
function search() {
  state.words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  clearTimeout(waiting);
  waiting = setTimeout(show, 80);
}

function chooseView(view) {
  state.view = view;
  byId("view-grid").setAttribute("aria-pressed", String(view === "grid"));
  byId("view-wall").setAttribute("aria-pressed", String(view === "wall"));
  layOut();
}

// ---- the keyboard: Tab stops once at the pictures, arrow keys move inside

function focusCard(index) {
  for (const other of root.querySelectorAll('.picture[tabindex="0"]')) other.tabIndex = -1;
  cards[index].tabIndex = 0;
  cards[index].focus({ preventScroll: true });
  cards[index].scrollIntoView({ block: "nearest", inline: "nearest" });
}

function beside(key, current) {
  const visible = [...root.querySelectorAll(".picture:not([hidden])")].filter((c) => !c.closest("[hidden]"));
  const at = visible.indexOf(current);
  if (key === "ArrowLeft") return visible[at - 1];
  if (key === "ArrowRight") return visible[at + 1];
  if (key === "Home") return visible[0];
  if (key === "End") return visible.at(-1);
  const down = key === "ArrowDown", here = current.getBoundingClientRect(), middle = here.left + here.width / 2;
  let best, row;
  for (let i = at + (down ? 1 : -1); i >= 0 && i < visible.length; i += down ? 1 : -1) {
    const box = visible[i].getBoundingClientRect();
    if (Math.abs(box.top - here.top) < 8) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) >= 8) break;
    const away = Math.abs(box.left + box.width / 2 - middle);
    if (!best || away < best.away) best = { away, card: visible[i] };
  }
  return best?.card;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input");
  if (byId("detail").open) {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); turn(event.key === "ArrowLeft" ? -1 : 1); }
    return;
  }
  if (event.key === "/" && !typing) { event.preventDefault(); byId("search").focus(); return; }
  if (event.key === "Escape" && typing && event.target.value) { event.preventDefault(); event.target.value = ""; search(); return; }
  if (typing && event.key === "ArrowDown" && state.shown.length) { event.preventDefault(); focusCard(state.shown[0]); return; }
  const current = event.target.closest?.(".picture");
  if (!current || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  const next = beside(event.key, current);
  if (next) focusCard(Number(next.dataset.index));
  else if (event.key === "ArrowUp") byId("search").focus();
});

// ---- one picture, and what it was drawn from

function link(address, words) {
  return /^https?:\/\//i.test(address) ? element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, words) : document.createTextNode(words);
}

function neighbour([at, score]) {
  const from = data.neighbours[at], name = from.title || from.caption || `picture ${from.key}`;
  const thumb = element("div", { class: "thumb" });
  if (from.thumb < 0) thumb.append(element("span", {}, name));
  else {
    const made = element("img", { alt: name, decoding: "async", src: data.urls[from.thumb] });
    made.addEventListener("error", () => made.replaceWith(element("span", {}, name)));
    thumb.append(made);
  }
  const terms = element("p", { class: "terms" });
  const parts = [from.licence ? document.createTextNode(from.licence) : null, from.url ? link(from.url, from.source || "source") : from.source ? document.createTextNode(from.source) : null].filter(Boolean);
  const bar = element("span", { class: "bar", "aria-hidden": true }, element("span"));
  bar.firstChild.style.width = `${100 * Math.max(0, Math.min(1, score))}%`;
  parts.forEach((part, i) => terms.append(i ? " · " : "", part));
  return element("li", {}, thumb, element("div", {},
    element("p", { class: "title" }, name), from.by ? element("p", { class: "by" }, from.by) : null,
    from.caption && !from.caption.includes(name) ? element("p", { class: "by" }, from.caption) : null, parts.length ? terms : null,
    element("p", { class: "score" }, bar, `similarity ${score.toFixed(3)}`)));
}

function open(index) {
  const picture = data.pictures[index], prompt = data.prompts[picture.prompt], database = data.databases[picture.database];
  state.open = index;
  const shown = byId("detail-image"), failed = byId("detail-failed");
  shown.hidden = picture.thumb < 0;
  failed.hidden = picture.thumb >= 0;
  failed.textContent = picture.error || "This picture is not finished yet: run the same command again.";
  if (picture.thumb >= 0) {
    shown.onerror = () => { shown.onerror = null; shown.src = data.urls[picture.thumb]; };
    shown.alt = describe(picture);
    const most = Math.max(3, 512 / Math.max(picture.width, picture.height)); // larger, it would be blurred; smaller, it would show no more than the card
    shown.style.maxWidth = `${most * picture.width}px`;
    shown.style.maxHeight = `${most * picture.height}px`;
    shown.src = picture.file || data.urls[picture.thumb];
  }
  byId("detail-place").textContent = database.name || "text alone";
  byId("detail-title").replaceChildren(titled(prompt), asked(prompt) ?? "");
  const facts = byId("detail-facts");
  facts.replaceChildren(`seed ${picture.seed} · ${picture.width} × ${picture.height}`);
  if (picture.file) facts.append(" · ", element("a", { href: picture.file, target: "_blank" }, "open the PNG"));
  const family = data.pictures.flatMap((other, at) => (other.prompt === picture.prompt ? [at] : []));
  byId("others-part").hidden = family.length < 2;
  byId("others").replaceChildren(...family.map((at) => {
    const other = data.pictures[at];
    const button = element("button", { type: "button", "aria-current": at === index ? "true" : null, "aria-label": describe(other), title: data.databases[other.database].name }, frame(other, ""), element("span", {}, data.databases.length > 1 ? data.databases[other.database].name : `seed ${other.seed}`));
    button.firstChild.style.aspectRatio = "1";
    button.addEventListener("click", () => open(at));
    return button;
  }));
  byId("neighbours-part").hidden = !picture.neighbours.length;
  byId("neighbours-note").textContent = picture.note || `The ${plural(picture.neighbours.length, "picture")} of ${database.name} nearest to the ${prompt.by_image ? "picture that was the prompt" : "prompt"}, nearest first.`;
  byId("neighbours").replaceChildren(...picture.neighbours.map(neighbour));
  byId("settings").replaceChildren(...Object.entries({ ...data.settings[picture.settings], ...prompt.extra, key: picture.key }).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
  const at = state.shown.indexOf(index);
  byId("before").disabled = at <= 0;
  byId("after").disabled = at < 0 || at >= state.shown.length - 1;
  if (!byId("detail").open) { byId("detail").showModal(); byId("panel").focus({ preventScroll: true }); }
  byId("panel").scrollTop = 0;
  byId("detail").scrollTop = 0;
  try { history.replaceState(null, "", `#${picture.key}-${index}`); } catch { /* some browsers refuse it for files */ }
}

function turn(by) {
  const next = state.shown[state.shown.indexOf(state.open) + by];
  if (next !== undefined && state.shown.includes(state.open)) open(next);
}

byId("detail").addEventListener("close", () => {
  try { history.replaceState(null, "", location.pathname + location.search); } catch { /* as above */ }
  if (state.open >= 0 && !cards[state.open].hidden) focusCard(state.open);
});
byId("before").addEventListener("click", () => turn(-1));
byId("after").addEventListener("click", () => turn(1));
byId("close").addEventListener("click", () => byId("detail").close());

// ---- the head of the page

byId("search").addEventListener("input", search);
byId("clear").addEventListener("click", () => {
  byId("search").value = "";
  state.words = [];
  state.databases.clear();
  for (const chip of byId("chips").children) chip.setAttribute("aria-pressed", "false");
  show();
  byId("search").focus();
});
byId("view-grid").addEventListener("click", () => chooseView("grid"));
byId("view-wall").addEventListener("click", () => chooseView("wall"));
byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
byId("chips").hidden = data.databases.length < 2;
data.databases.forEach((database, at) => {
  const chip = element("button", { type: "button", "aria-pressed": "false" }, database.name || "text alone");
  chip.addEventListener("click", () => {
    if (!state.databases.delete(at)) state.databases.add(at);
    chip.setAttribute("aria-pressed", String(state.databases.has(at)));
    show();
  });
  byId("chips").append(chip);
});
byId("about").textContent = data.about;
byId("made").textContent = data.made;
chooseView(state.view);
const wanted = Number(location.hash.match(/-(\d+)$/)?.[1] ?? -1);
if (data.pictures[wanted] && location.hash.startsWith(`#${data.pictures[wanted].key}-`)) open(wanted);

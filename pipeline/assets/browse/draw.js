// Drawing: a prompt with each of the chosen databases, previews meanwhile, and the command and the Python that repeat it.
import { byId, element, image, number, sentence } from "./dom.js";
import { get, pictureOf, post } from "./api.js";
import { changed, parts, state } from "./state.js";
import { star } from "./runs.js";

let models = null;
let form = { prompt: "", model: "", seed: 0, steps: "", scale: "", sampler: "", k: "", n: 1, negative: "" };
let shown = []; // drawings, newest first: {id, node}
let stage = null;

export function open(settings) { // with the settings of an earlier picture
  form = { ...form, steps: "", scale: "", sampler: "", k: "", negative: "", ...settings };
}

export async function show(root) {
  byId("nothing").hidden = true;
  byId("count").textContent = "";
  if (!models) models = (await get("/api/models").catch(() => ({ models: [] }))).models;
  const typed = parts().find((part) => part.text && part.weight > 0);
  if (typed && !form.prompt) form.prompt = typed.text;
  const encoder = state.known.find((one) => one.name === state.databases[0])?.encoder;
  const fitting = models.filter((one) => one.encoder === encoder);
  const field = (name, words, input) => element("label", { class: "field" }, element("span", {}, words), bind(name, input));
  const model = element("select", {}, element("option", { value: "" }, "the database's own"), models.map((one) => element("option", { value: one.name, disabled: !fitting.includes(one) && fitting.length > 0 }, one.size ? `${one.name} (${one.size} pixels)` : one.name)));
  const prompt = element("textarea", { rows: 3, placeholder: "a castle by the sea" });
  const picked = state.picked.filter((one) => one.database === state.databases[0]);
  const go = element("button", { type: "submit", class: "act first" }, "Draw");
  const body = element("form", { class: "drawform", onsubmit: (event) => { event.preventDefault(); begin(go); } },
    field("prompt", "Prompt", prompt),
    element("p", { class: "field" }, element("span", {}, state.databases.length > 1 ? "From these databases, one picture each" : "From this database"), element("b", {}, state.databases.join(", ")), element("small", {}, "Choose others above; “Side by side” shows the databases next to each other.")),
    neighbours(picked, field),
    field("model", "Model", model),
    element("div", { class: "pair" }, field("seed", "Seed", element("input", { type: "number", min: 0, step: 1 })), field("n", "Pictures each", element("input", { type: "number", min: 1, max: 8, step: 1 }))),
    element("div", { class: "pair" }, field("steps", "Steps", element("input", { type: "number", min: 1, max: 1000, placeholder: "model's" })), field("scale", "Guidance", element("input", { type: "number", min: 0, step: 0.5, placeholder: "model's" }))),
    field("sampler", "Sampler", element("select", {}, ["", "ddim", "plms", "dpmpp_2m", "unipc"].map((name) => element("option", { value: name }, name || "the model's own")))),
    field("negative", "Lead away from", element("input", { type: "text", placeholder: "nothing" })),
    element("div", { class: "acts" }, go, element("button", { type: "button", onclick: () => { form.seed = Math.floor(Math.random() * 1e6); body.elements.seed.value = form.seed; begin(go); } }, "Another seed")));
  stage ??= element("div", { class: "drawings", "aria-live": "polite" });
  if (!stage.children.length) stage.append(element("p", { class: "note" }, sentence("Pictures appear here while they are drawn. They are stored in a run of the home, like those of `rdmpipe generate`.")));
  root.replaceChildren(element("div", { class: "studio" }, body, stage));
}

function bind(name, input) {
  input.name = name;
  input.value = form[name];
  input.addEventListener("input", () => { form[name] = input.value; });
  return input;
}

function neighbours(picked, field) {
  if (!picked.length || state.databases.length > 1) return field("k", "Nearest neighbours", element("input", { type: "number", min: 0, max: 100, placeholder: "model's" }));
  return element("div", { class: "field" }, element("span", {}, `${picked.length} neighbour${picked.length > 1 ? "s" : ""} picked by hand`),
    element("div", { class: "pickedrow" }, picked.map((one) => element("button", { type: "button", title: `Remove: ${one.title}`, "aria-label": `Remove ${one.title}`, onclick: () => { state.picked = state.picked.filter((other) => other !== one); changed("redraw"); } }, image(pictureOf(one.database, one.key), "", one.title)))),
    element("button", { type: "button", class: "all", onclick: () => { state.picked = []; changed("redraw"); } }, "use the nearest instead"));
}

const filled = (value, read = Number) => (value === "" || value === null || value === undefined ? undefined : read(value));

async function begin(go) {
  const picked = state.databases.length === 1 ? state.picked.filter((one) => one.database === state.databases[0]) : [];
  const question = { prompt: form.prompt, databases: state.databases, keys: picked.map((one) => one.key), model: form.model, seed: Number(form.seed) || 0, n: Number(form.n) || 1, steps: filled(form.steps), scale: filled(form.scale), sampler: filled(form.sampler, String), negative: form.negative, k: picked.length ? undefined : filled(form.k) };
  go.disabled = true;
  try {
    const drawing = await post("/api/draw", question);
    const node = element("section", { class: "drawing", "aria-label": question.prompt });
    shown.unshift({ id: drawing.id, node });
    if (shown.length === 1) stage.replaceChildren();
    stage.prepend(node);
    paint(node, drawing, question);
    follow(node, drawing.id, question);
  } catch (error) {
    stage.prepend(element("p", { class: "problem" }, error.message));
  } finally { go.disabled = false; }
}

async function follow(node, id, question) {
  for (;;) {
    await new Promise((wake) => setTimeout(wake, 250));
    let drawing;
    try { drawing = await get(`/api/draw/${id}`); } catch (error) { node.append(element("p", { class: "problem" }, error.message)); return; }
    paint(node, drawing, question);
    if (!["waiting", "drawing"].includes(drawing.state)) return;
  }
}

function paint(node, drawing, question) {
  const text = JSON.stringify(drawing);
  if (node.dataset.shown === text) return;
  node.dataset.shown = text;
  const running = ["waiting", "drawing"].includes(drawing.state);
  const copy = (words, what) => element("button", { type: "button", onclick: async (event) => { await navigator.clipboard.writeText(what).catch(() => {}); event.target.textContent = "Copied"; setTimeout(() => { event.target.textContent = words; }, 1200); } }, words);
  const frames = drawing.pictures.map((one) => {
    const inside = one.file || one.preview ? element("img", { src: one.file || one.preview, alt: `${question.prompt}, ${one.database}, seed ${one.seed}`, class: "there" }) : element("span", { class: "none" }, { waiting: "waiting", failed: "could not be drawn" }[one.state] || "");
    const bar = element("span", { class: "steps", "aria-hidden": true }, element("span"));
    bar.firstChild.style.width = `${one.steps ? (100 * one.step) / one.steps : one.state === "done" ? 100 : 0}%`;
    return element("figure", { class: "drawn" }, element(one.file ? "a" : "span", { class: "frame", ratio: 1, href: one.file || null, target: "_blank" }, inside), running ? bar : "",
      element("figcaption", {}, element("span", {}, one.database), one.file ? [element("a", { href: one.file, download: "" }, "download"), star({ run: drawing.run, key: one.key, favourite: false })] : element("span", {}, one.steps && running ? `step ${one.step} of ${one.steps}` : `seed ${one.seed}`)));
  });
  const row = element("div", { class: "drawnrow" }, frames);
  row.style.setProperty("--columns", Math.min(6, Math.max(drawing.pictures.length, 2)));
  node.replaceChildren(element("h2", {}, question.prompt), row,
    drawing.error ? element("p", { class: "problem" }, drawing.error) : "",
    ...drawing.notes.map((note) => element("p", { class: "note" }, note)),
    element("div", { class: "acts" }, running ? element("button", { type: "button", onclick: () => post(`/api/draw/${drawing.id}/stop`, {}) }, "Stop") : "", copy("Copy the command", drawing.command), copy("Copy the Python", drawing.python), drawing.run ? element("span", { class: "note" }, `in run ${drawing.run}`) : ""));
  if (drawing.state === "done") byId("count").textContent = `${number(drawing.pictures.length)} drawn`;
}

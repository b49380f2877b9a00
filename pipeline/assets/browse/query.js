// The search box, the parts of the query with their weights, and pictures that are dropped, pasted or chosen.
import { byId, element, later } from "./dom.js";
import { pictureOf, post } from "./api.js";
import { changed, state } from "./state.js";

const box = byId("search");

function keep(part) {
  state.view = "pictures";
  state.parts.push(part);
  changed("query", true);
}

export function moreLike(database, item, weight = 1, alone = true) {
  if (alone) { state.parts = []; state.text = ""; box.value = ""; }
  state.view = "pictures";
  keep({ key: item.key, database, weight, said: item.title });
  window.scrollTo({ top: 0 });
}

async function byPicture(file) {
  if (!file) return;
  const count = byId("count");
  count.textContent = "Reading the picture…";
  try {
    const { id } = await post("/api/pictures", file);
    state.view = "pictures";
    keep({ picture: id, weight: 1, said: file.name || "a pasted picture" });
  } catch (error) {
    count.textContent = error.message;
  }
}

function said(part) {
  if (part.text) return element("span", { class: "said", title: part.text }, part.text);
  const address = part.picture ? `/api/pictures/${part.picture}` : pictureOf(part.database, part.key);
  const shown = element("img", { src: address, alt: "" });
  shown.addEventListener("error", () => shown.remove());
  return [shown, element("span", { class: "said", title: part.said }, part.said)];
}

export function drawParts() {
  const list = byId("parts");
  list.hidden = !state.parts.length;
  list.replaceChildren(...state.parts.map((part, at) => {
    const name = part.text || part.said || "picture";
    const shown = element("output", {}, `×${Math.abs(part.weight).toFixed(1)}`);
    const slide = element("input", { type: "range", min: 0.1, max: 2, step: 0.1, value: Math.abs(part.weight), "aria-label": `Weight of ${name}`, oninput: () => {
      part.weight = Math.sign(part.weight) * Number(slide.value);
      shown.textContent = `×${Number(slide.value).toFixed(1)}`;
      later(() => changed("weights"), 60);
    } });
    return element("li", { class: part.weight < 0 ? "part minus" : "part" },
      element("button", { type: "button", class: "sign", "aria-pressed": String(part.weight < 0), "aria-label": `${name} leads away`, title: part.weight < 0 ? "leads away from it: click to lead towards it" : "leads towards it: click to lead away from it", onclick: () => { part.weight = -part.weight; changed("query"); } }, part.weight < 0 ? "−" : "+"),
      said(part), slide, shown,
      element("button", { type: "button", "aria-label": `Remove ${name}`, onclick: () => { state.parts.splice(at, 1); changed("query"); box.focus(); } }, "×"));
  }));
}

export function begin() {
  box.addEventListener("input", () => { state.text = box.value; state.view = "pictures"; later(() => changed("text"), 45); });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && box.value.trim().replace(/^-/, "").trim()) {
      event.preventDefault();
      const typed = box.value.trim();
      box.value = state.text = "";
      keep(typed.startsWith("-") ? { text: typed.slice(1).trim(), weight: -1 } : { text: typed, weight: 1 });
    } else if (event.key === "Escape" && box.value) {
      event.preventDefault();
      box.value = state.text = "";
      changed("text");
    } else if (event.key === "Backspace" && !box.value && state.parts.length) {
      const last = state.parts.pop();
      if (last.text) { box.value = state.text = (last.weight < 0 ? "-" : "") + last.text; event.preventDefault(); }
      changed("query");
    }
  });
  byId("choose").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => { byPicture(event.target.files[0]); event.target.value = ""; });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files || [])].find((one) => one.type.startsWith("image/"));
    if (file) { event.preventDefault(); byPicture(file); }
  });
  let depth = 0;
  const carries = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  document.addEventListener("dragenter", (event) => { if (carries(event)) { depth += 1; byId("drop").hidden = false; } });
  document.addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); if (!depth) byId("drop").hidden = true; });
  document.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    depth = 0;
    byId("drop").hidden = true;
    if (!carries(event)) return;
    event.preventDefault();
    byPicture([...event.dataTransfer.files].find((one) => one.type.startsWith("image/")) || event.dataTransfer.files[0]);
  });
}

// Three views: rows that show the same picture, rows that failed, and runs of jobs.
import { byId, element, link, number, plural, sentence } from "./dom.js";
import { database, get } from "./api.js";
import { state } from "./state.js";
import { cardOf } from "./results.js";

const KINDS = { exact: "the same file, byte for byte", alike: "nearly the same picture, by its perceptual hash" };

export async function copies(root) {
  const name = state.databases[0];
  begin(root, `Searching for copies in ${name}`);
  const place = element("div", {});
  let offset = 0;
  const more = element("button", { type: "button", class: "pill loader", onclick: () => next() }, "More groups");
  root.append(place, more);
  async function next() {
    const found = await get(`${database(name)}/copies?k=30&offset=${offset}`);
    offset += found.groups.length;
    said(found.groups_total ? `${plural(found.groups_total, "picture")} of ${name} ${found.groups_total === 1 ? "occurs" : "occur"} more than once, in ${plural(found.rows_total, "row")}` : `No picture of ${name} occurs twice`);
    more.hidden = offset >= found.groups_total;
    for (const group of found.groups) {
      const list = { items: group.items, cards: [] };
      list.cards = group.items.map((item, at) => cardOf(name, item, list, at));
      if (list.cards.length) list.cards[0].tabIndex = 0;
      place.append(element("section", { class: "group" }, element("h2", {}, `${plural(group.items.length, "row")}: ${KINDS[group.kind]}`), element("div", { class: "row" }, list.cards)));
    }
  }
  await guarded(root, next);
}

export async function failures(root) {
  const name = state.databases[0];
  begin(root, `Reading the failed rows of ${name}`);
  const body = element("tbody", {});
  let offset = 0;
  const reasons = element("p", { class: "reasons" });
  const table = element("div", { class: "table" }, element("table", {}, element("thead", {}, element("tr", {}, ["key", "file or address", "reason", "detail"].map((word) => element("th", { scope: "col" }, word)))), body));
  const more = element("button", { type: "button", class: "pill loader", onclick: () => next() }, "More rows");
  root.append(reasons, table, more);
  async function next() {
    const found = await get(`${database(name)}/failures?k=200&offset=${offset}`);
    offset += found.failures.length;
    said(found.total ? `${plural(found.total, "row")} of ${name} failed` : `No row of ${name} failed`);
    table.hidden = !found.total;
    more.hidden = offset >= found.total;
    reasons.replaceChildren(...Object.entries(found.reasons).sort((a, b) => b[1] - a[1]).map(([reason, count]) => element("span", {}, element("b", {}, number(count)), ` ${reason}`)));
    body.append(...found.failures.map((one) => element("tr", {}, element("td", { class: "number" }, String(one.key)), element("td", {}, one.url ? link(one.url, one.url) : one.item), element("td", {}, one.reason), element("td", {}, one.detail))));
  }
  await guarded(root, next);
}

export async function jobs(root) {
  begin(root, "Reading the jobs");
  const body = element("tbody", {});
  const table = element("div", { class: "table" }, element("table", {}, element("thead", {}, element("tr", {}, ["job", "began (UTC)", "status", "took", "command"].map((word) => element("th", { scope: "col" }, word)))), body));
  root.append(table);
  await guarded(root, async () => {
    const found = await get("/api/jobs");
    said([found.runs.length ? plural(found.runs.length, "run") + " of jobs" : "No job has run in this home: `rdmpipe run nightly-wikiart` runs one", found.running.length ? `running now: ${found.running.join(", ")}` : ""].filter(Boolean).join("; "));
    table.hidden = !found.runs.length;
    body.append(...found.runs.map((one) => element("tr", {}, element("td", {}, one.page ? element("a", { href: one.page }, one.job) : one.job), element("td", {}, one.started.replace("T", " ").slice(0, 19)), element("td", {}, one.status), element("td", { class: "number" }, took(one.seconds)), element("td", {}, element("code", {}, one.command)))));
  });
}

function took(seconds) {
  return seconds < 90 ? `${seconds.toFixed(1)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function begin(root, words) {
  root.replaceChildren();
  byId("nothing").hidden = true;
  said(words);
}

function said(words) { byId("count").replaceChildren(...sentence(words)); }

async function guarded(root, work) {
  byId("count").classList.add("busy");
  try { await work(); } catch (error) { root.replaceChildren(); said(error.message); } finally { byId("count").classList.remove("busy"); }
}

// Small helpers. All text from elsewhere enters the page as text, never as markup.
export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "ratio") made.style.aspectRatio = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== "" && child !== false));
  return made;
}

export const number = (n) => n.toLocaleString("en");
export const plural = (n, word) => `${number(n)} ${word}${n === 1 ? "" : "s"}`;

export function link(address, words) {
  return /^https?:\/\//i.test(address) ? element("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, words) : document.createTextNode(words);
}

// A sentence in which `commands` are shown as code.
export function sentence(text) {
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : document.createTextNode(part)));
}

// Scroll a row of buttons sideways so that the pressed one is seen.
export function reveal(row) {
  const pressed = row.querySelector('[aria-pressed="true"]:not(.several)');
  if (!pressed || row.scrollWidth <= row.clientWidth) return;
  const left = pressed.offsetLeft - row.offsetLeft;
  if (left < row.scrollLeft || left + pressed.offsetWidth > row.scrollLeft + row.clientWidth) row.scrollLeft = left - (row.clientWidth - pressed.offsetWidth) / 2;
}

export function joined(parts, between = " · ") {
  return parts.filter(Boolean).flatMap((part, i) => (i ? [between, part] : [part]));
}

// A picture that appears once it is loaded, or a text in its place if there is none.
export function image(address, alt, instead) {
  const made = element("img", { alt, decoding: "async", loading: "lazy", src: address });
  made.addEventListener("load", () => made.classList.add("there"));
  made.addEventListener("error", () => made.replaceWith(element("span", { class: "none" }, instead || "no picture stored")));
  return made;
}

let spoken = 0;
export function later(work, milliseconds) {
  clearTimeout(spoken);
  spoken = setTimeout(work, milliseconds);
}

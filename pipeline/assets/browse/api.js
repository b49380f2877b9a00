// Requests to the server of this page. An error of the server is thrown as an Error with the server's message.
const session = document.querySelector('meta[name="session"]').content;

async function answer(response) {
  const made = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(made.error || `the server answered ${response.status}`), { kind: made.kind });
  return made;
}

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is `rdmpipe browse` still running?");
  }
  return answer(response);
}

export const get = (address, signal) => ask(address, { signal });

export const post = (address, body, signal) =>
  ask(address, { method: "POST", signal, body: body instanceof Blob ? body : JSON.stringify(body), headers: { "content-type": body instanceof Blob ? body.type || "application/octet-stream" : "application/json", "x-rdmpipe-session": session } });

export const database = (name) => `/api/databases/${encodeURIComponent(name)}`;
export const pictureOf = (name, key, original) => `/pictures/${encodeURIComponent(name)}/${key}${original ? "?original=1" : ""}`;

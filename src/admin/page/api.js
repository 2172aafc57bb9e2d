// Requests to the admin API.

import { h } from "./dom.js";
import { line } from "./text.js";

export const SIGN_IN = "Sign in again: run `bluehook debugger` and open the link it prints.";

/** What the API, or the lack of an answer, says went wrong. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function get(path, params = {}, signal = undefined) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value));
  return request(`/api/v1/${path}${query.size ? `?${query}` : ""}`, { signal });
}

/** The first page with something on it. Each answer is of a bounded part of the log; `looking` hears of every other. */
export async function getUntilFound(path, params, signal, looking) {
  for (let cursor = params.cursor; ; ) {
    const page = await get(path, { ...params, cursor }, signal);
    if (page.items.length || !page.nextCursor) return page;
    cursor = page.nextCursor;
    looking();
  }
}

export function post(path, body) {
  return postText(path, JSON.stringify(body));
}

/** For a body in which numbers must stay as they were typed. */
export function postText(path, text) {
  const headers = { "content-type": "application/json" };
  return request(`/api/v1/${path}`, { method: "POST", headers, body: text });
}

async function request(url, options) {
  let response;
  try {
    response = await fetch(url, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Problem(0, "bluehook does not answer: check that `bluehook serve` runs");
  }
  if (response.status === 401) {
    window.dispatchEvent(new Event("signed-out"));
    throw new Problem(401, SIGN_IN);
  }
  const text = await response.text().catch(() => "");
  let json = null;
  try {
    json = JSON.parse(text);
  } catch {
    // Told below: an answer without JSON is none of the API's.
  }
  if (!response.ok) throw new Problem(response.status, json?.detail ?? `${response.status} ${response.statusText}`);
  if (json === null) throw new Problem(response.status, "the answer is not JSON: is something else at this address?");
  return json;
}

export function problem(error, again) {
  const retry = again && h("button", { type: "button", onclick: again }, "Try again");
  return h("div", { class: "problem", role: "alert" }, h("p", null, "✕ ", line(error.message, 2000)), retry);
}

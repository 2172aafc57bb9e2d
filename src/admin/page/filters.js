// The filter bar of the lists. What is chosen is in the address.

import { h, replace } from "./dom.js";
import { handlerNames, onStatus } from "./status.js";

const TYPING_PAUSE = 350;
const STATES = ["scheduled", "delivered", "dead", "discarded"];
export const TYPES = ["message.sent", "message.delivered", "message.read", "message.failed", "message.received"];
const RANGES = [["", "any time"], ["15m", "last 15 minutes"], ["1h", "last hour"], ["24h", "last 24 hours"], ["7d", "last 7 days"], ["custom", "from – to"]];
const SECONDS = { m: 60, h: 3600, d: 86400 };

/** The parameters the API takes, of those in the address. */
export function apiParams({ type, status, handler, search, range, since, until, cursor, source }) {
  const asked = { type, status, handler, search, source, cursor };
  const last = /^(\d+)([mhd])$/.exec(range ?? "");
  if (last) asked.since = new Date(Date.now() - last[1] * SECONDS[last[2]] * 1000).toISOString();
  if (range === "custom") Object.assign(asked, { since: instant(since), until: instant(until) });
  return asked;
}

function instant(local) {
  const at = new Date(local ?? "");
  return Number.isNaN(at.getTime()) ? undefined : at.toISOString();
}

/** What a list says while nothing was found yet and there is more to look at. */
export function looking() {
  return h("p", { class: "hint", role: "status" }, "Nothing yet; looking further back …");
}

export function isFiltered({ type, status, handler, search, range, source }) {
  return Boolean(type || status || handler || search || range || source);
}

/** `onChange(params)` gets the new filters, without a cursor. */
export function filterBar({ withStatus, onChange }) {
  let params = {};
  let typing = null;

  const set = (name, value) => {
    clearTimeout(typing);
    // With what was typed a moment ago in another field.
    const typed = { search: inputs.search.value.trim(), type: inputs.type.value.trim() };
    const changes = Object.entries({ ...typed, [name]: value });
    if (changes.every(([name, value]) => (params[name] ?? "") === value) && !params.cursor) return;
    const next = { ...params, ...Object.fromEntries(changes), cursor: undefined };
    if (next.range !== "custom") delete next.since, delete next.until;
    params = next;
    show(params);
    onChange(params);
  };
  const typed = (name) => ({
    oninput: (e) => {
      clearTimeout(typing);
      typing = setTimeout(() => set(name, e.target.value.trim()), TYPING_PAUSE);
    },
    onchange: (e) => set(name, e.target.value.trim()),
  });
  const chosen = (name) => ({ onchange: (e) => set(name, e.target.value) });

  const inputs = {
    search: h("input", { type: "search", "data-testid": "filter-search", "data-search": true, autocomplete: "off", spellcheck: "false", ...typed("search") }),
    type: h("input", { type: "text", list: "types", placeholder: "message.*", "data-testid": "filter-type", autocomplete: "off", spellcheck: "false", ...typed("type") }),
    status: h("select", { "data-testid": "filter-status", ...chosen("status") }, option("", "any"), STATES.map((s) => option(s, s))),
    handler: h("select", { "data-testid": "filter-handler", ...chosen("handler") }),
    range: h("select", { "data-testid": "filter-range", ...chosen("range") }, RANGES.map(([value, text]) => option(value, text))),
    since: h("input", { type: "datetime-local", step: "1", ...chosen("since") }),
    until: h("input", { type: "datetime-local", step: "1", ...chosen("until") }),
  };
  const custom = h("div", { class: "custom", hidden: true }, field("From", inputs.since), field("To", inputs.until));
  const clear = h("button", { type: "button", class: "plain", onclick: () => { params = {}; show(params); onChange(params); } }, "Clear filters");
  const element = h("form", { class: "filters", role: "search", "aria-label": "Filter", onsubmit: (e) => e.preventDefault() },
    field("Text", inputs.search), field("Type", inputs.type), withStatus && field("Status", inputs.status),
    field("Handler", inputs.handler), field("Received", inputs.range), custom, clear,
    h("datalist", { id: "types" }, ["message.*", ...TYPES].map((type) => option(type))));

  const offer = () => {
    const names = new Set(handlerNames());
    if (params.handler) names.add(params.handler);
    const wanted = ["", ...names];
    if (wanted.join("\n") === [...inputs.handler.options].map((o) => o.value).join("\n")) return;
    replace(inputs.handler, wanted.map((name) => option(name, name || "any")));
    inputs.handler.value = params.handler ?? "";
  };
  function show(next) {
    params = next;
    offer();
    for (const [name, input] of Object.entries(inputs)) {
      // What is being typed is not taken away.
      if (document.activeElement !== input || input.tagName === "SELECT") input.value = params[name] ?? "";
    }
    custom.hidden = params.range !== "custom";
    clear.hidden = !isFiltered(params);
  }
  const stop = onStatus(offer);
  return { element, show, stop: () => { stop(); clearTimeout(typing); } };
}

function option(value, text = "") {
  return h("option", { value }, text || null);
}

export function field(label, input, props = {}) {
  return h("label", { class: "field", ...props }, h("span", null, label), input);
}

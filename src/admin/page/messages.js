// Messages: what all events of each say together.

import { get, getUntilFound, problem } from "./api.js";
import { announce, facts, h, replace, throttled } from "./dom.js";
import { field, looking } from "./filters.js";
import { plural, relative, time } from "./format.js";
import { listen } from "./live.js";
import { eventHash, hash, rewrite } from "./route.js";
import { badge } from "./state.js";
import { line } from "./text.js";

const PAGE = 50;
const TYPING_PAUSE = 350;
const STATES = ["received", "sent", "failed", "delivered", "read", "unknown"];
// What a state of a message looks like, where that of a delivery has another name.
const LOOKS = { received: "ping", sent: "scheduled", read: "ok", unknown: "discarded" };

export function open(first) {
  let params = first;
  let loading = null;
  let typing = null;
  let lastTook = 0;
  const opened = new Set();

  const inputs = {
    search: h("input", { type: "search", "data-testid": "message-search", "data-search": true, autocomplete: "off", spellcheck: "false" }),
    with: h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "+1 555 0100" }),
    status: h("select", { "data-testid": "message-status" }, ["", ...STATES].map((state) => h("option", { value: state }, state || "any"))),
  };
  for (const input of Object.values(inputs)) {
    input.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(set, input.tagName === "SELECT" ? 0 : TYPING_PAUSE);
    });
  }
  const list = h("ol", { class: "rows", "aria-label": "Messages, newest event first" });
  const note = h("div", { class: "note" });
  const older = h("a", { class: "button", hidden: true }, "Older");
  const newest = h("a", { class: "button", hidden: true }, "Newest");
  const element = h("section", { class: "view" },
    h("div", { class: "title" }, h("h2", { tabindex: "-1" }, "Messages")),
    h("form", { class: "filters", role: "search", "aria-label": "Filter", onsubmit: (e) => e.preventDefault() },
      field("Text", inputs.search), field("With", inputs.with), field("Status", inputs.status)),
    note, list, h("p", { class: "pager" }, newest, older));

  // All of them, for whoever types in one field and then quickly in another.
  function set() {
    const typed = Object.entries(inputs).map(([name, input]) => [name, input.value.trim()]);
    if (typed.every(([name, value]) => (params[name] ?? "") === value)) return;
    params = { ...params, ...Object.fromEntries(typed), cursor: undefined };
    rewrite("messages", params);
    load();
  }

  async function load(quiet = false) {
    loading?.abort();
    const mine = (loading = new AbortController());
    const begun = performance.now();
    const { search, with: party, status, cursor } = params;
    try {
      const asked = { limit: PAGE, search, with: party, status, cursor };
      const page = await getUntilFound("messages", asked, mine.signal, () => quiet || replace(note, looking()));
      if (mine.signal.aborted) return;
      show(page);
      if (!quiet) announce(page.items.length ? plural(page.items.length, "message") : "No messages");
    } catch (e) {
      if (e.name !== "AbortError") replace(note, problem(e, () => load()));
    } finally {
      lastTook = performance.now() - begun;
    }
  }
  const reload = throttled(() => load(true), () => Math.max(1000, lastTook * 10));

  function show(page) {
    const focused = document.activeElement?.closest?.("[data-message]")?.dataset.message;
    replace(list, page.items.map((message) => row(message, opened)));
    if (focused) [...list.children].find((li) => li.dataset.message === focused)?.querySelector("summary").focus();
    const filtered = params.search || params.with || params.status || params.cursor;
    replace(note, page.note && h("p", { class: "hint" }, "▲ ", page.note),
      !page.items.length && h("p", { class: "empty" }, filtered ? "No message fits." : "No event named a message yet."));
    older.hidden = !page.nextCursor;
    if (page.nextCursor) older.href = hash("messages", { ...params, cursor: page.nextCursor });
    newest.hidden = !params.cursor;
    newest.href = hash("messages", { ...params, cursor: undefined });
  }

  function update(next) {
    params = next;
    for (const [name, input] of Object.entries(inputs)) input.value = params[name] ?? "";
    load();
  }

  const stop = listen({
    gap: () => params.cursor || reload(),
    item: (item) => item.kind === "event" && !params.cursor && reload(),
  });
  update(params);
  return {
    element,
    title: "Messages",
    update,
    close: () => {
      stop();
      reload.stop();
      loading?.abort();
      clearTimeout(typing);
    },
  };
}

function row(message, opened) {
  const key = `${message.source} ${message.id}`;
  const inside = h("div");
  const when = [message.receivedAt, message.readAt, message.deliveredAt, message.failedAt, message.sentAt].filter(Boolean).sort().pop();
  const details = h("details", { ontoggle: () => (details.open ? fill() : opened.delete(key)) },
    h("summary", null, h("span", { class: "when" }, when ? relative(when) : "–"), " ",
      badge(LOOKS[message.status] ?? message.status, message.status), " ",
      h("span", { class: "id" }, line(message.conversation ?? message.to ?? message.from ?? message.id, 60)), " ",
      h("span", { class: "preview" }, line(message.body ?? message.error ?? "", 200))),
    inside);
  if (opened.has(key)) details.open = true;

  async function fill() {
    opened.add(key);
    try {
      const whole = await get(`messages/${encodeURIComponent(message.id)}`, { source: message.source });
      replace(inside, content(whole));
    } catch (e) {
      replace(inside, problem(e, fill));
    }
  }
  return h("li", { class: "row refused", "data-testid": "message-row", "data-message": key }, details);
}

function content(message) {
  const at = (iso) => (iso ? time(iso, true) : null);
  return [
    facts([
      ["Message", line(message.id, 300)], ["From", message.from && line(message.from)], ["To", message.to && line(message.to)],
      ["Text", message.body && line(message.body, 4000)], ["Error", message.error && line(message.error, 2000)],
      ["Sent", at(message.sentAt)], ["Delivered", at(message.deliveredAt)], ["Read", at(message.readAt)],
      ["Failed", at(message.failedAt)], ["Received", at(message.receivedAt)], ["They last wrote", at(message.lastInboundAt)],
    ]),
    h("h3", null, "Events"),
    h("ol", { class: "timeline", "data-testid": "timeline" }, (message.timeline ?? []).map((report) =>
      h("li", null, time(report.at, true), " ", h("a", { href: eventHash(report.seq) }, line(report.type))))),
  ];
}

// The list of events: a page at a time, newest first, new ones on top as they come.

import { getUntilFound, problem } from "./api.js";
import { charts } from "./charts.js";
import { announce, h, replace, throttled } from "./dom.js";
import { apiParams, filterBar, isFiltered, looking } from "./filters.js";
import { plural } from "./format.js";
import { listen } from "./live.js";
import { hash, rewrite } from "./route.js";
import { eventRow, updateRow } from "./row.js";
import { badge } from "./state.js";

const PAGE = 50;
const ROWS_MAX = 200;
const FLUSH_EVERY = 250;

export function open(first, { focusSeq }) {
  let params = first;
  let rows = new Map();
  let arrived = [];
  let live = true;
  let missed = 0;
  let flushing = null;
  let loading = null;
  let lastTook = 0;

  const bar = filterBar({ withStatus: true, onChange: (next) => { rewrite("events", next); update(next); } });
  const list = h("ol", { class: "rows", "aria-label": "Events, newest first" });
  const note = h("div", { class: "note" });
  const older = h("a", { class: "button", hidden: true, "data-testid": "older" }, "Older");
  const newest = h("a", { class: "button", hidden: true }, "Newest");
  const stream = h("span", { class: "stream" });
  const toggle = h("button", { type: "button", "data-testid": "live-toggle", onclick: () => setLive(!live) });
  const strip = charts();
  const element = h("section", { class: "view" },
    h("div", { class: "title" }, h("h2", { tabindex: "-1" }, "Events"), stream, toggle),
    strip.element, bar.element, note, list, h("p", { class: "pager" }, newest, older));

  // Whether an event fits can be told here unless it takes the index to know.
  const simple = () => !params.status && !params.handler && !params.search && !params.until && !params.source;
  const following = () => live && !params.cursor;

  async function load(quiet = false) {
    loading?.abort();
    const mine = (loading = new AbortController());
    const begun = performance.now();
    if (!quiet) list.setAttribute("aria-busy", "true");
    try {
      const asked = { brief: "true", limit: PAGE, ...apiParams(params) };
      const page = await getUntilFound("events", asked, mine.signal, () => quiet || replace(note, looking()));
      if (mine.signal.aborted) return;
      arrived = arrived.filter((item) => item.kind === "attempt");
      show(page);
      if (!quiet) announce(page.items.length ? plural(page.items.length, "event") : "No events");
    } catch (e) {
      if (e.name === "AbortError") return;
      if (!quiet) replace(list);
      replace(note, problem(e, () => load()));
    } finally {
      lastTook = performance.now() - begun;
      if (mine === loading) list.removeAttribute("aria-busy");
    }
  }
  // A slow filter is asked for less often.
  const reload = throttled(() => load(true), () => Math.max(1000, lastTook * 10));

  function show(page) {
    const focused = document.activeElement?.closest?.("[data-seq]")?.dataset.seq ?? focusSeq;
    focusSeq = null;
    rows = new Map(page.items.map((event) => [event.seq, eventRow(event)]));
    replace(list, [...rows.values()].map((row) => row.element));
    if (focused) list.querySelector(`[data-seq="${CSS.escape(focused)}"] a`)?.focus({ preventScroll: false });
    missed = 0;
    showToggle();
    replace(note, page.note && h("p", { class: "hint" }, "▲ ", page.note), !page.items.length && empty());
    older.hidden = !page.nextCursor;
    if (page.nextCursor) older.href = hash("events", { ...params, cursor: page.nextCursor });
    newest.hidden = !params.cursor;
    newest.href = hash("events", { ...params, cursor: undefined });
  }

  function empty() {
    if (params.cursor) return h("p", { class: "empty" }, "No older events.");
    if (isFiltered(params)) return h("p", { class: "empty" }, "No event fits these filters.");
    return h("p", { class: "empty" }, "No events yet. ", h("a", { href: "#/trigger" }, "Send a test event"),
      ", or run ", h("code", null, "bluehook trigger message.received"), ".");
  }

  function setLive(on) {
    live = on;
    showToggle();
    if (live && missed) reload();
    announce(live ? "Live" : "Paused");
  }

  function showToggle() {
    toggle.hidden = Boolean(params.cursor);
    replace(toggle, live ? "Pause" : missed ? `Resume (${missed} new)` : "Resume");
  }

  const stop = listen({
    state: (state) => replace(stream, state === "live" ? badge("ok", "live") : badge("retry", "connecting")),
    gap: () => (following() ? reload() : null),
    item: (item) => {
      arrived.push(item);
      flushing ??= setTimeout(flush, FLUSH_EVERY);
    },
  });

  function flush() {
    flushing = null;
    const items = arrived;
    arrived = [];
    const fresh = new Map();
    for (const item of items) {
      if (item.kind === "event" && !rows.has(item.seq)) fresh.set(item.seq, item);
      if (item.kind === "attempt") settle(item, fresh);
    }
    if (!following()) {
      missed += fresh.size;
      showToggle();
    } else if (!simple()) {
      if (items.length) reload();
    } else {
      insert([...fresh.values()].filter(fits));
    }
  }

  function settle({ seq, handler, state }, fresh) {
    const row = rows.get(seq);
    if (row) return updateRow(row, handler, state);
    const event = fresh.get(seq);
    if (event) event.deliveries = [...(event.deliveries ?? []).filter((d) => d.handler !== handler), { handler, state }];
  }

  function insert(events) {
    if (!events.length) return;
    // Beyond some rows the first page is asked for anew: its cursor fits what is shown.
    if (rows.size + events.length > ROWS_MAX) return reload();
    if (!rows.size) replace(note);
    for (const event of events.sort((a, b) => a.seq - b.seq)) {
      const row = eventRow(event);
      row.element.classList.add("fresh");
      rows.set(event.seq, row);
      list.prepend(row.element);
    }
    announce(plural(events.length, "new event"));
  }

  function fits(event) {
    const since = apiParams(params).since;
    return globFits(params.type, event.type) && (!since || event.receivedAt >= since);
  }

  function update(next) {
    params = next;
    bar.show(params);
    load();
  }

  bar.show(params);
  showToggle();
  load();
  return {
    element,
    title: "Events",
    update,
    close: () => {
      stop();
      bar.stop();
      strip.stop();
      reload.stop();
      loading?.abort();
      clearTimeout(flushing);
    },
  };
}

/** `*` is any text and `?` any character, as in the configuration. */
function globFits(glob, type) {
  if (!glob) return true;
  const pattern = glob.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*+/g, ".*").replace(/\?/g, ".");
  return new RegExp(`^${pattern}$`, "su").test(type);
}

// Dead letters: choose, then replay or discard.

import { get, post, problem } from "./api.js";
import { confirm } from "./dialog.js";
import { announce, h, replace, throttled } from "./dom.js";
import { apiParams, filterBar, isFiltered } from "./filters.js";
import { plural, time } from "./format.js";
import { listen } from "./live.js";
import { eventHash, hash, rewrite } from "./route.js";
import { badge } from "./state.js";
import { refresh as refreshStatus } from "./status.js";
import { line } from "./text.js";

const PAGE = 50;

export function open(first) {
  let params = first;
  let items = [];
  let loading = null;
  const chosen = new Set();

  const bar = filterBar({ withStatus: false, onChange: (next) => { rewrite("dead", next); update(next); } });
  const every = h("input", { type: "checkbox", "data-testid": "dead-select-all", onchange: () => choose(items, every.checked) });
  const replayChosen = h("button", { type: "button", "data-testid": "dead-replay", onclick: () => act("replay") }, "Replay");
  const discardChosen = h("button", { type: "button", "data-testid": "dead-discard", onclick: () => act("discard") }, "Discard…");
  const allReplay = h("button", { type: "button", class: "plain", "data-testid": "dead-replay-matching", onclick: () => actAll("replay") }, "Replay all matching…");
  const allDiscard = h("button", { type: "button", class: "plain", "data-testid": "dead-discard-matching", onclick: () => actAll("discard") }, "Discard all matching…");
  const tools = h("div", { class: "bulk", role: "group", "aria-label": "Dead letters" },
    h("label", { class: "check" }, every, " Select all on this page"), replayChosen, discardChosen, h("span", { class: "spacer" }), allReplay, allDiscard);
  const said = h("div", { role: "status" });
  const note = h("div", { class: "note" });
  const list = h("ol", { class: "rows", "aria-label": "Dead letters, newest event first" });
  const older = h("a", { class: "button", hidden: true }, "Older");
  const newest = h("a", { class: "button", hidden: true }, "Newest");
  const element = h("section", { class: "view" },
    h("div", { class: "title" }, h("h2", { tabindex: "-1" }, "Dead letters")),
    bar.element, tools, said, note, list, h("p", { class: "pager" }, newest, older));

  const keyOf = (item) => `${item.seq} ${item.handler}`;

  async function load(quiet = false) {
    loading?.abort();
    const mine = (loading = new AbortController());
    try {
      const page = await get("dead", { brief: "true", limit: PAGE, ...apiParams(params) }, mine.signal);
      if (mine.signal.aborted) return;
      show(page);
      if (!quiet) announce(page.items.length ? `${plural(page.items.length, "dead letter")} shown` : "No dead letters");
    } catch (e) {
      if (e.name === "AbortError") return;
      if (!quiet) replace(list);
      replace(note, problem(e, () => load()));
    }
  }
  const reload = throttled(() => load(true), () => 1000);

  function show(page) {
    const focused = document.activeElement?.closest?.(".dead")?.dataset.key;
    const onBox = document.activeElement?.type === "checkbox";
    items = page.items;
    const there = new Set(items.map(keyOf));
    for (const key of [...chosen]) if (!there.has(key)) chosen.delete(key);
    replace(list, items.map(row));
    if (focused) [...list.children].find((e) => e.dataset.key === focused)?.querySelector(onBox ? "input" : "a").focus();
    replace(note, page.note && h("p", { class: "hint" }, "▲ ", page.note), !items.length && h("p", { class: "empty" }, empty()));
    older.hidden = !page.nextCursor;
    if (page.nextCursor) older.href = hash("dead", { ...params, cursor: page.nextCursor });
    newest.hidden = !params.cursor;
    newest.href = hash("dead", { ...params, cursor: undefined });
    tools.hidden = !items.length;
    count();
  }

  function empty() {
    if (params.cursor) return "No older dead letters.";
    return isFiltered(params) ? "No dead letter fits these filters." : "No dead letters: every delivery has succeeded, or is still being tried.";
  }

  function row(item) {
    const key = keyOf(item);
    const box = h("input", {
      type: "checkbox", checked: chosen.has(key),
      "aria-label": `Select ${item.type.slice(0, 80)}, record ${item.seq}, for ${item.handler}`,
      onchange: () => choose([item], box.checked),
    });
    const last = item.attempts?.at(-1);
    return h("li", { class: "row dead", "data-testid": "dead-row", "data-seq": item.seq, "data-handler": item.handler, "data-key": key },
      h("span", { class: "box" }, box),
      h("span", { class: "when" }, time(item.receivedAt)),
      h("span", { class: "what" }, h("a", { href: eventHash(item.seq), "data-open": true }, h("b", null, line(item.type, 80)), " ", h("span", { class: "id" }, line(item.eventId, 60)))),
      h("span", { class: "deliveries" }, badge(item.state, [h("span", { class: "handler" }, line(item.handler, 40)), ` ${item.state}`]),
        item.attempts?.length > 0 && h("span", { class: "quiet" }, ` ${plural(item.attempts.length, "attempt")}, last `, time(last.startedAt))),
      h("span", { class: "preview" }, line(item.reason ?? last?.reason ?? "", 300)));
  }

  function choose(which, on) {
    for (const item of which) on ? chosen.add(keyOf(item)) : chosen.delete(keyOf(item));
    for (const element of list.children) element.querySelector("input").checked = chosen.has(element.dataset.key);
    count();
  }

  function count() {
    every.checked = items.length > 0 && chosen.size === items.length;
    every.indeterminate = chosen.size > 0 && chosen.size < items.length;
    for (const button of [replayChosen, discardChosen]) button.disabled = chosen.size === 0;
    replayChosen.textContent = chosen.size ? `Replay ${chosen.size}` : "Replay";
    discardChosen.textContent = chosen.size ? `Discard ${chosen.size}…` : "Discard…";
  }

  // An event may be dead for several handlers of which some are chosen: one request for each handler.
  async function act(verb) {
    const groups = new Map();
    for (const item of items.filter((each) => chosen.has(keyOf(each)))) groups.set(item.handler, [...(groups.get(item.handler) ?? []), item]);
    const total = chosen.size;
    if (verb === "discard" && !(await agreed(total, ""))) return;
    await run(verb, [...groups].map(([handler, of]) => ({ ids: of.map((item) => `seq:${item.seq}`), handler })));
  }

  async function actAll(verb) {
    const { cursor, ...filter } = apiParams(params);
    const given = Object.entries(filter).filter(([, value]) => value);
    const selection = given.length ? Object.fromEntries(given) : { all: true };
    try {
      const { deliveries } = await post(`dead/${verb}`, { ...selection, dryRun: true });
      const which = given.length ? " that fit these filters" : "";
      if (verb === "discard" ? await agreed(deliveries, which) : await confirm({
        title: `Replay ${plural(deliveries, "dead letter")}?`,
        text: `Their handlers run again for all of them${which}, not only for those on this page.`,
        action: `Replay ${deliveries}`,
      })) await run(verb, [selection]);
    } catch (e) {
      replace(said, problem(e));
    }
  }

  function agreed(n, which) {
    return confirm({
      title: `Discard ${plural(n, "dead letter")}${which}?`,
      text: "Their handlers are not run again by “replay dead letters”. The events stay in the log until retention drops them.",
      action: `Discard ${n}`,
    });
  }

  async function run(verb, selections) {
    replace(said);
    let done = 0;
    try {
      for (const selection of selections) done += (await post(`dead/${verb}`, selection)).deliveries;
      replace(said, h("p", { class: "done" }, `${plural(done, "dead letter")} ${verb === "replay" ? "scheduled again" : "discarded"}.`));
    } catch (e) {
      replace(said, done > 0 && h("p", null, `${plural(done, "dead letter")} done before this:`), problem(e));
    }
    chosen.clear();
    await load(true);
    refreshStatus();
  }

  function update(next) {
    params = next;
    bar.show(params);
    load();
  }

  const stop = listen({ gap: reload, item: (item) => item.kind === "attempt" && item.state === "dead" && reload() });
  bar.show(params);
  tools.hidden = true;
  count();
  load();
  return { element, title: "Dead letters", update, close: () => { stop(); bar.stop(); reload.stop(); loading?.abort(); } };
}

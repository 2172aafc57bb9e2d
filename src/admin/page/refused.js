// Requests that became no event: refused ones, and pings.

import { get, problem } from "./api.js";
import { announce, facts, h, replace } from "./dom.js";
import { millis, plural, time } from "./format.js";
import { headerTable } from "./headers.js";
import { payloadView } from "./payload.js";
import { answered, badge } from "./state.js";
import { line } from "./text.js";

const POLL = 3000;
const STEP = 50;

export function open() {
  let items = [];
  let max = STEP;
  let timer = null;
  let closed = false;
  let known = new Map();

  const list = h("ol", { class: "rows", "aria-label": "Refused requests and pings, newest first" });
  const note = h("div", { class: "note" });
  const more = h("button", { type: "button", hidden: true, onclick: () => { max += STEP; show(); } }, "Show more");
  const element = h("section", { class: "view" },
    h("div", { class: "title" }, h("h2", { tabindex: "-1" }, "Refused & pings")),
    h("p", { class: "hint" }, "Requests that became no event, since the start; only the newest are kept."), note, list, h("p", { class: "pager" }, more));

  async function load() {
    clearTimeout(timer);
    try {
      if (!document.hidden || !items.length) items = (await get("rejections")).items;
      if (closed) return;
      show();
    } catch (e) {
      if (!closed) replace(note, problem(e, load));
    }
    if (!closed) timer = setTimeout(load, POLL);
  }

  // Elements are kept, so that what is open or focused stays so.
  function show() {
    const before = known;
    known = new Map();
    const seen = new Map();
    // From the oldest on, so that the number of alike ones doesn't change with each newer.
    const keyed = [...items].reverse().map((item) => {
      const key = `${item.time} ${item.peer} ${item.method} ${item.path} ${item.reason}`;
      seen.set(key, (seen.get(key) ?? 0) + 1);
      return [`${key} ${seen.get(key)}`, item];
    }).reverse().slice(0, max);
    for (const [key, item] of keyed) known.set(key, before.get(key) ?? row(item));
    const fresh = [...known.keys()].filter((key) => !before.has(key)).length;
    for (const [key, element] of before) if (!known.has(key)) element.remove();
    [...known.values()].forEach((element, i) => {
      if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null);
    });
    more.hidden = items.length <= max;
    replace(note, !items.length && h("p", { class: "empty" }, "Nothing refused and no ping yet. A request with a wrong signature would show up here, with its reason."));
    if (before.size && fresh) announce(plural(fresh, "more request"));
  }

  load();
  return { element, title: "Refused & pings", close: () => { closed = true; clearTimeout(timer); } };
}

function row(item) {
  const ping = item.reason === "ping";
  const inside = h("div");
  const details = h("details", {
    ontoggle: () => {
      if (!details.open || inside.firstChild) return;
      replace(inside,
        facts([["Reason", line(item.reason, 2000)], ["From", line(item.peer)], ["Path", line(item.path, 2000)], ["Took", millis(item.tookMs)]]),
        h("h3", null, "Body"), payloadView(item, "Body"),
        h("h3", null, "Headers"), headerTable(item.headers, "Headers"));
    },
  },
  h("summary", null,
    h("span", { class: "when" }, time(item.time)), " ",
    badge(ping ? "ping" : "refused", ping ? "ping" : "refused"), " ", answered(item.status), " ",
    h("span", { class: "id" }, item.method ? line(`${item.method} ${item.path}`, 100) : "(not readable as a request)"), " ",
    h("span", { class: "preview" }, ping ? null : line(item.reason, 200), " ", h("span", { class: "quiet" }, "from ", line(item.peer, 60)))),
  inside);
  return h("li", { class: "row refused", "data-testid": "refused-row" }, details);
}

// An event's deliveries, and the attempts of each.

import { post, problem } from "./api.js";
import { announce, facts, h, replace } from "./dom.js";
import { millis, plural, relative, time } from "./format.js";
import { badge } from "./state.js";
import { block, line } from "./text.js";

export function deliveriesView(event, changed) {
  const said = h("div");
  const list = h("div");
  const all = h("button", { type: "button", "data-testid": "replay-all", onclick: () => replay(null) }, "Replay all handlers");
  const element = h("section", { class: "deliveries-view", "aria-labelledby": "deliveries-title" },
    h("div", { class: "title" }, h("h3", { id: "deliveries-title" }, "Deliveries"), all), said, list);
  const opened = new Map();
  let shown = "";

  async function replay(handler) {
    replace(said);
    try {
      const { deliveries } = await post("replay", { ids: [`seq:${event.seq}`], ...(handler ? { handler } : {}) });
      const text = deliveries ? `${plural(deliveries, "delivery", "deliveries")} scheduled again.` : "Nothing to run: no handler takes this event.";
      replace(said, h("p", { class: "done" }, text));
      announce(text);
    } catch (e) {
      replace(said, problem(e));
    }
    changed();
  }

  function show(fresh) {
    const text = JSON.stringify(fresh.deliveries ?? []);
    if (text === shown) return;
    shown = text;
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const cards = (fresh.deliveries ?? []).map((delivery) => card(delivery, opened, () => replay(delivery.handler)));
    replace(list, cards.length ? cards : h("p", { class: "empty" }, "No delivery: no handler takes this type, or none has looked at it yet."));
    if (focused) [...list.querySelectorAll("[data-key]")].find((e) => e.dataset.key === focused)?.focus();
  }

  return { element, show };
}

function card(delivery, opened, replay) {
  const attempts = [...(delivery.attempts ?? [])].reverse();
  const name = line(delivery.handler, 80);
  return h("article", { class: "card" },
    h("div", { class: "title" }, h("h4", null, name, " ", badge(delivery.state)),
      h("button", { type: "button", "data-key": `replay ${delivery.handler}`, onclick: replay, "aria-label": `Replay ${delivery.handler}` }, "Replay")),
    facts([
      ["Next attempt", delivery.dueAt ? [relative(delivery.dueAt), ", at ", time(delivery.dueAt)] : null],
      ["Why", delivery.state === "dead" && delivery.reason && delivery.reason !== attempts[0]?.reason ? line(delivery.reason, 2000) : null],
      ["Replayed", delivery.generation ? plural(delivery.generation, "time") : null],
    ]),
    attempts.length ? h("ol", { class: "attempts", "aria-label": `Attempts of ${delivery.handler}, newest first` }, attempts.map((attempt, i) => attemptItem(delivery, attempt, i === 0, opened)))
      : h("p", { class: "empty" }, "No attempt yet."));
}

function attemptItem(delivery, attempt, newest, opened) {
  // What failed without being counted is followed by another of the same number.
  const key = `${delivery.handler} ${attempt.generation} ${attempt.number} ${attempt.startedAt}`;
  const failed = attempt.outcome !== "delivered";
  const details = h("details", { open: opened.get(key) ?? (newest && failed) },
  h("summary", { "data-key": key, onclick: () => opened.set(key, !details.open) },
    h("span", null, `Attempt ${attempt.number}`, attempt.generation > 0 && h("span", { class: "quiet" }, ` of replay ${attempt.generation}`)), " ",
    badge(attempt.outcome, { retry: "failed", reject: "failed for good", uncounted: "failed, not counted" }[attempt.outcome] ?? attempt.outcome), " ",
    h("span", { class: "quiet" }, time(attempt.startedAt, true), `, ${millis(attempt.tookMs)}`)),
  attempt.reason && h("p", { class: "reason" }, h("b", null, "Error: "), line(attempt.reason, 4000)),
  part("Request", attempt.request, key),
  part("Response", attempt.response, key));
  return h("li", { "data-testid": "attempt" }, details);
}

function part(name, text, key) {
  if (!text) return h("p", { class: "quiet" }, `${name}: none`);
  return h("div", null, h("h5", null, name), block(text, { role: "group", "aria-label": `${name} of ${key}`, "data-key": `${name} ${key}` }));
}

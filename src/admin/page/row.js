// One event in the list.

import { h, replace } from "./dom.js";
import { millis, time } from "./format.js";
import { eventHash } from "./route.js";
import { answered, badge } from "./state.js";
import { line } from "./text.js";

export function eventRow(event) {
  const deliveries = h("span", { class: "deliveries" });
  const element = h("li", { class: "row event", "data-testid": "event-row", "data-seq": event.seq },
    h("span", { class: "when" }, time(event.receivedAt)),
    h("span", { class: "what" },
      h("a", { href: eventHash(event.seq), "data-open": true }, h("b", null, line(event.type, 80)), " ", h("span", { class: "id" }, line(event.eventId, 60)))),
    h("span", { class: "preview" }, line(gist(event), 140)),
    h("span", { class: "notes" }, notes(event)),
    deliveries);
  const row = { event, element, states: new Map() };
  for (const delivery of event.deliveries ?? []) row.states.set(delivery.handler, delivery.state);
  row.deliveries = deliveries;
  show(row);
  return row;
}

/** An attempt's result, or the same event with newer deliveries. */
export function updateRow(row, handler, state) {
  row.states.set(handler, state);
  show(row);
}

function show(row) {
  const badges = [...row.states].map(([handler, state]) =>
    badge(state, [h("span", { class: "handler" }, line(handler, 40)), ` ${state}`]));
  replace(row.deliveries, badges.length ? badges : h("span", { class: "quiet" }, "no delivery"));
}

// Every payload begins alike: what tells one from the other is within `data`.
function gist(event) {
  const text = (event.preview ?? event.payload ?? "").slice(0, 600);
  const data = /"data"\s*:\s*\{/.exec(text);
  return data ? text.slice(data.index + data[0].length).replace(/\s*\}\s*\}\s*$/, "") : text;
}

function notes(event) {
  return [
    event.answer && h("span", { class: "answer" }, h("span", { class: "unseen" }, "answered "), answered(event.answer.status), ` ${millis(event.answer.tookMs)}`),
    event.duplicates > 0 && h("span", { class: "tag" }, `+${event.duplicates} duplicate${event.duplicates > 1 ? "s" : ""}`),
    event.conflict && badge("retry", "conflict"),
    event.verifiedBy === "canonical" && h("span", { class: "tag" }, "canonical"),
    event.verifiedBy === "none" && badge("retry", "unsigned"),
  ];
}

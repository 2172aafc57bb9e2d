// One event: request, payload, and what every handler did with it.

import { get, problem } from "./api.js";
import { deliveriesView } from "./deliveries.js";
import { announce, facts, h, replace, throttled } from "./dom.js";
import { millis, plural, relative, time } from "./format.js";
import { headerTable } from "./headers.js";
import { listen } from "./live.js";
import { payloadView } from "./payload.js";
import { answered, badge } from "./state.js";
import { block, line } from "./text.js";

const POLL = 4000;

const VERIFIED = {
  raw: ["ok", "raw body"],
  canonical: ["ok", "canonical JSON (JSON.stringify of the body)"],
  none: ["retry", "none: not signed"],
};

export function open(id, { back }) {
  const body = h("div", { class: "detail", "data-testid": "event-detail" });
  const element = h("section", { class: "view" }, h("p", { class: "crumb" }, h("a", { href: back, "data-back": true }, "← Back to the list")), body);
  let event = null;
  let deliveries = null;
  let request = null;
  let timer = null;
  let closed = false;

  async function load() {
    clearTimeout(timer);
    try {
      // The page's own links hold record numbers; an event may have digits for its id.
      const fresh = await get(`events/${encodeURIComponent(/^\d+$/.test(id) ? `seq:${id}` : id)}`);
      if (closed) return;
      const first = event === null;
      event = fresh;
      first ? build() : refresh();
      if (unsettled()) timer = setTimeout(reload, POLL);
    } catch (e) {
      if (closed) return;
      if (event === null) replace(body, h("h2", { tabindex: "-1" }, "Event ", line(id, 80)), problem(e, load));
      else if (e.status !== 401) timer = setTimeout(reload, POLL);
    }
  }
  const reload = throttled(load, () => 300);
  const unsettled = () => !event.deliveries?.length || event.deliveries.some((d) => d.state === "scheduled" || d.state === "running");

  function build() {
    document.title = `${event.type.slice(0, 60)} – bluehook`;
    request = h("div");
    deliveries = deliveriesView(event, reload);
    replace(body,
      h("h2", { tabindex: "-1" }, line(event.type, 120)),
      h("p", { class: "id" }, event.eventId.length > 300 ? block(event.eventId) : line(event.eventId, 300)),
      h("div", { class: "columns" },
        h("div", null,
          h("section", { "aria-labelledby": "request-title" }, h("h3", { id: "request-title" }, "Request"), request),
          h("section", { "aria-labelledby": "payload-title" }, h("h3", { id: "payload-title" }, "Payload"), payloadView(event, "Payload", "payload")),
          h("section", { "aria-label": "Headers" }, h("details", { open: true }, h("summary", null, h("h3", null, `Headers (${event.headers?.length ?? 0})`)), headerTable(event.headers, "Request headers"))),
          conflicts()),
        deliveries.element));
    refresh();
  }

  function refresh() {
    const [look, form] = VERIFIED[event.verifiedBy] ?? ["retry", event.verifiedBy];
    replace(request, facts([
      ["Received", [time(event.receivedAt, true), " (", relative(event.receivedAt), ")"]],
      ["Answer", event.answer ? [answered(event.answer.status), ` in ${millis(event.answer.tookMs)}`] : h("span", { class: "quiet" }, "not kept: it is known for the newest events since the start")],
      ["Signature matched", badge(look, form)],
      ["Source", line(event.source)],
      ["Record", event.seq],
      ["Duplicates", event.duplicates ? `${plural(event.duplicates, "more request")} with this id` : "none"],
      ["Conflict", event.conflict ? badge("retry", "another body came with the same id") : null],
    ]));
    deliveries.show(event);
  }

  function conflicts() {
    if (!event.conflicts?.length) return null;
    return h("section", { "aria-labelledby": "conflict-title" }, h("h3", { id: "conflict-title" }, "Conflicting bodies"),
      h("p", { class: "hint" }, "Signed requests with this event's id and another body. Handlers got the first body only."),
      event.conflicts.map((other, i) => h("details", { open: i === 0 },
        h("summary", null, `Body ${i + 2}`, other.receivedAt && [", received ", time(other.receivedAt, true)]),
        payloadView(other, `Conflicting body ${i + 2}`), other.headers && headerTable(other.headers, `Headers of body ${i + 2}`))));
  }

  const stop = listen({
    gap: () => event && reload(),
    item: (item) => {
      if (event === null || item.seq !== event.seq || item.kind !== "attempt") return;
      reload();
      announce(`${item.handler}: ${item.state}`);
    },
  });

  load();
  return {
    element,
    title: "Event",
    close: () => {
      closed = true;
      stop();
      reload.stop();
      clearTimeout(timer);
    },
  };
}

// Handlers: their backlog, and whether they run.

import { post, problem } from "./api.js";
import { announce, facts, h, replace } from "./dom.js";
import { count, relative } from "./format.js";
import { hash } from "./route.js";
import { badge } from "./state.js";
import { onStatus, refresh } from "./status.js";
import { line } from "./text.js";

export function open() {
  const said = h("div");
  const list = h("div", { class: "cards" });
  const rules = h("div");
  const element = h("section", { class: "view" }, h("div", { class: "title" }, h("h2", { tabindex: "-1" }, "Handlers")), said, list, rules);

  async function set(handler, verb) {
    replace(said);
    try {
      await post(`handlers/${encodeURIComponent(handler)}/${verb}`, {});
      announce(`${handler} ${verb === "pause" ? "paused" : "runs again"}`);
    } catch (e) {
      replace(said, problem(e));
    }
    await refresh();
  }

  function show({ handlers, followups }) {
    replace(rules, followups?.length ? [h("h2", null, "Follow-up rules"), h("div", { class: "cards" }, followups.map(ruleCard))] : null);
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.handler : null;
    replace(list, handlers.length ? handlers.map((handler) => card(handler, set)) : h("p", { class: "empty" },
      "No handler yet: events are stored and nothing runs. Add a ", h("code", null, "[[handler]]"), " to the configuration, then ", h("code", null, "kill -HUP"), "."));
    if (focused) [...list.querySelectorAll("button")].find((b) => b.dataset.handler === focused)?.focus();
  }

  const stop = onStatus(show);
  refresh();
  return { element, title: "Handlers", close: stop };
}

function ruleCard(rule) {
  const state = rule.paused ? badge("paused") : rule.configured ? badge("ok", "ready") : badge("discarded", "rests: not in the configuration");
  return h("article", { class: "card" },
    h("div", { class: "title" }, h("h3", null, line(rule.name, 80), " ", state)),
    facts([["Timers", count(rule.waiting)], ["Next due", rule.nextDueAt ? relative(rule.nextDueAt) : "none"]]));
}

function card(handler, set) {
  const verb = handler.paused || handler.circuit ? "resume" : "pause";
  const words = handler.paused ? "Resume" : handler.circuit ? "Try now" : "Pause";
  const button = h("button", {
    type: "button", "data-testid": `handler-${verb}`, "data-handler": handler.name,
    "aria-label": `${words}: ${handler.name}`,
    onclick: () => set(handler.name, verb),
  }, words);
  const state = handler.paused ? badge("paused") : !handler.configured ? badge("discarded", "parked: not in the configuration") : handler.circuit ? badge("failing", `failed ${count(handler.circuit.failures)} times in a row`) : handler.running ? badge("running") : badge("ok", "ready");
  const events = (status, n) => (n ? h("a", { href: status === "dead" ? hash("dead", { handler: handler.name }) : hash("events", { handler: handler.name, status }) }, count(n)) : "0");
  return h("article", { class: "card", "data-testid": "handler", "data-handler": handler.name },
    h("div", { class: "title" }, h("h3", null, line(handler.name, 80), " ", state), button),
    facts([
      ["Running", count(handler.running)],
      ["Scheduled", events("scheduled", handler.scheduled)],
      ["Not looked at", count(handler.behind)],
      ["Dead", events("dead", handler.dead)],
      ["Oldest undelivered", handler.oldestUndelivered ? relative(handler.oldestUndelivered) : "none"],
      ["Next attempt", handler.circuit ? [relative(handler.circuit.nextProbeAt), " (a probe)"] : handler.nextDueAt ? relative(handler.nextDueAt) : "none"],
    ]));
}

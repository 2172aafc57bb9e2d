// Sends a test event, signed as the vendor signs it.

import { Problem, postText, problem } from "./api.js";
import { announce, facts, h, replace } from "./dom.js";
import { TYPES, field } from "./filters.js";
import { millis } from "./format.js";
import { eventHash } from "./route.js";
import { answered } from "./state.js";
import { block, line } from "./text.js";

export function open() {
  const type = h("input", { type: "text", required: true, list: "sample-types", value: "message.received", "data-testid": "trigger-type", autocomplete: "off", spellcheck: "false" });
  const data = h("textarea", { rows: "6", "data-testid": "trigger-data", spellcheck: "false", placeholder: '{"from": "+15550100002", "body": "Hi"}', "aria-describedby": "data-hint" });
  const set = h("textarea", { rows: "2", "data-testid": "trigger-set", spellcheck: "false", placeholder: "data.body=Hi", "aria-describedby": "set-hint" });
  const duplicate = h("input", { type: "checkbox", "data-testid": "trigger-duplicate" });
  const badSignature = h("input", { type: "checkbox", "data-testid": "trigger-bad-signature" });
  const send = h("button", { type: "submit", class: "primary", "data-testid": "trigger-send" }, "Send");
  const result = h("div", { "data-testid": "trigger-result", role: "status" });
  const form = h("form", { class: "trigger", onsubmit: submit },
    field("Type", type), h("p", { class: "hint" }, "The message.* types have a sample; any other type gets what they have in common."),
    field("Data (JSON, optional)", data), h("p", { class: "hint", id: "data-hint" }, "Replaces the sample's data."),
    field("Set (one a line, optional)", set), h("p", { class: "hint", id: "set-hint" }, "One value within the event, such as data.body=Hi"),
    h("label", { class: "check" }, duplicate, " Send it twice"), h("label", { class: "check" }, badSignature, " With a wrong signature: it must be refused"),
    send, h("datalist", { id: "sample-types" }, TYPES.map((value) => h("option", { value }))));
  const element = h("section", { class: "view" }, h("div", { class: "title" }, h("h2", { tabindex: "-1" }, "Send test event")),
    h("p", { class: "hint" }, "It is signed and sent to this appliance's own endpoint. Handlers run for it as for any event."), form, result);

  async function submit(e) {
    e.preventDefault();
    send.disabled = true;
    try {
      const sent = await postText("trigger", requestText());
      replace(result, h("h3", null, "Answer"), facts([
        ["Status", [answered(sent.status), ` in ${millis(sent.tookMs)}`]],
        ...(sent.again ? [["Second copy", [answered(sent.again.status), ` in ${millis(sent.again.tookMs)}`]]] : []),
        ["Event", h("a", { href: eventHash(sent.eventId) }, line(sent.type, 80), " ", line(sent.eventId, 80))],
        ["Sent to", line(sent.to, 300)],
      ]), sent.body && block(sent.body, { role: "group", "aria-label": "Body of the answer" }));
      announce(`Answered ${sent.status}`);
    } catch (error) {
      replace(result, problem(error));
    } finally {
      send.disabled = false;
    }
  }

  // The data goes as it was typed: a number keeps all its digits.
  function requestText() {
    const text = data.value.trim();
    const lines = set.value.split("\n").map((each) => each.trim()).filter(Boolean);
    if (text) {
      try {
        JSON.parse(text);
      } catch (error) {
        data.focus();
        throw new Problem(0, `Data is not JSON: ${error.message}`);
      }
    }
    const parts = [`"type":${JSON.stringify(type.value.trim())}`, `"set":${JSON.stringify(lines)}`,
      `"duplicate":${duplicate.checked}`, `"badSignature":${badSignature.checked}`];
    if (text) parts.push(`"data":${text}`);
    return `{${parts.join(",")}}`;
  }

  return { element, title: "Send test event", close: () => {} };
}

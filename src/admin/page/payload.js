// A body: as it came, or indented where it is JSON.

import { announce, h, replace } from "./dom.js";
import { bytes, indented } from "./format.js";
import { block, textOfBase64 } from "./text.js";

export function bodyText({ payload, payloadBase64, body, bodyBase64 }) {
  const text = payload ?? body;
  if (typeof text === "string") return { text, binary: false };
  const base64 = payloadBase64 ?? bodyBase64;
  return base64 ? { text: textOfBase64(base64), binary: true } : { text: "", binary: false };
}

export function payloadView(item, label, testid = null) {
  const { text, binary } = bodyText(item);
  const pretty = binary ? null : indented(text);
  const shown = h("div", { "data-testid": testid });
  const show = (asPretty) => {
    replace(shown, text === "" ? h("p", { class: "empty" }, "empty body")
      : block(asPretty ? pretty : text, { class: "payload", "aria-label": label, role: "group" }));
    for (const [button, on] of [[prettyButton, asPretty], [rawButton, !asPretty]]) button.setAttribute("aria-pressed", String(on));
  };
  const prettyButton = h("button", { type: "button", onclick: () => show(true), "data-testid": testid && "payload-pretty" }, "Pretty");
  const rawButton = h("button", { type: "button", onclick: () => show(false), "data-testid": testid && "payload-raw" }, "Raw");
  const copy = h("button", {
    type: "button",
    onclick: async () => {
      const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
      announce(copied ? "Copied" : "The browser doesn't allow to copy");
      copy.textContent = copied ? "Copied" : "Not allowed";
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    },
  }, "Copy");
  show(pretty !== null);
  const size = binary ? "not UTF-8: bytes as \\xNN" : pretty === null && text ? "not JSON, or too deep to indent" : null;
  return h("div", { class: "body" },
    h("div", { class: "tools" },
      pretty !== null && h("span", { class: "toggle", role: "group", "aria-label": `${label}: form` }, prettyButton, rawButton),
      h("span", { class: "quiet" }, bytes(binary ? text.replace(/\\x../g, ".").length : new TextEncoder().encode(text).length), size && `, ${size}`),
      copy),
    shown);
}

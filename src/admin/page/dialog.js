// Asks before what cannot be undone.

import { h } from "./dom.js";

/** Whether the person agrees. Escape, or Cancel, says no. */
export function confirm({ title, text, action }) {
  return new Promise((done) => {
    const before = document.activeElement;
    const cancel = h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Cancel");
    const go = h("button", { type: "button", class: "danger", "data-testid": "confirm", onclick: () => dialog.close("yes") }, action);
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" },
      h("h2", { id: "dialog-title" }, title), h("p", null, text), h("p", { class: "actions" }, cancel, go));
    dialog.addEventListener("close", () => {
      dialog.remove();
      before?.focus?.();
      done(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Header lines as a table.

import { h } from "./dom.js";
import { block, line } from "./text.js";

export function headerTable(headers, caption) {
  if (!headers?.length) return h("p", { class: "empty" }, "no headers");
  return h("table", { class: "headers" },
    h("caption", { class: "unseen" }, caption),
    h("thead", { class: "unseen" }, h("tr", null, h("th", { scope: "col" }, "Name"), h("th", { scope: "col" }, "Value"))),
    h("tbody", null, headers.map(([name, value]) => h("tr", null,
      h("th", { scope: "row" }, line(name, 200)),
      h("td", null, String(value).length > 2000 ? block(String(value)) : line(value, 2000))))));
}

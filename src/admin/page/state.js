// States by shape, word and colour, in this order of importance.

import { h, svg } from "./dom.js";
import { line } from "./text.js";

const SHAPES = {
  disc: () => svg("circle", { cx: 6, cy: 6, r: 5 }),
  ring: () => svg("circle", { cx: 6, cy: 6, r: 4.2, class: "hollow" }),
  play: () => svg("path", { d: "M2 1 11 6 2 11Z" }),
  triangle: () => svg("path", { d: "M6 .8 11.6 11H.4Z" }),
  cross: () => svg("path", { d: "M2 2 10 10M10 2 2 10", class: "stroke" }),
  square: () => svg("path", { d: "M1.5 1.5h9v9h-9Z" }),
  dash: () => svg("path", { d: "M1 6H11", class: "stroke" }),
};

// State: shape and colour.
const LOOKS = {
  delivered: ["disc", "good"],
  ok: ["disc", "good"],
  scheduled: ["ring", "plain"],
  running: ["play", "plain"],
  retry: ["triangle", "warn"],
  uncounted: ["triangle", "warn"],
  failing: ["triangle", "warn"],
  interrupted: ["triangle", "warn"],
  rebuilding: ["triangle", "warn"],
  paused: ["square", "warn"],
  ping: ["ring", "plain"],
  dead: ["cross", "bad"],
  reject: ["cross", "bad"],
  refused: ["cross", "bad"],
  full: ["cross", "bad"],
  failed: ["cross", "bad"],
  discarded: ["dash", "quiet"],
};

export function badge(state, text = state, props = {}) {
  const [shape, colour] = LOOKS[state] ?? ["square", "plain"];
  const icon = svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, SHAPES[shape]());
  return h("span", { class: `badge ${colour}`, ...props }, icon, typeof text === "string" ? line(text, 80) : text);
}

/** An HTTP answer: its status in words, too. */
export function answered(status) {
  const good = status >= 200 && status < 300;
  return badge(good ? "ok" : "refused", String(status));
}

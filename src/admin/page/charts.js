// The last hour, a bar for each minute.

import { get } from "./api.js";
import { h, replace, svg } from "./dom.js";
import { count, millis } from "./format.js";

const EVERY = 15000;
const HEIGHT = 32;
const STEP = 4;

export function charts() {
  const element = h("div", { class: "charts", hidden: true });
  let timer = null;
  let stopped = false;

  async function refresh() {
    try {
      if (!document.hidden) show((await get("activity")).minutes ?? []);
    } catch {
      // Only an ornament: what is wrong is told by the list.
    }
    if (!stopped) timer = setTimeout(refresh, EVERY);
  }

  function show(minutes) {
    element.hidden = minutes.length === 0;
    if (element.hidden) return;
    replace(element,
      chart("Arrivals", minutes, ["received", "refused"], (of) => `${count(of.received.sum)} received, ${count(of.refused.sum)} refused`, count),
      chart("Answer latency", minutes, ["ackMaxMs", "ackMedianMs"],
        (of) => (of.ackMaxMs.max ? `slowest ${millis(of.ackMaxMs.max)}` : "no answers"), millis),
      chart("Attempts", minutes, ["attempts", "failed"], (of) => `${count(of.attempts.sum)}, ${count(of.failed.sum)} failed`, count));
  }

  refresh();
  return { element, stop: () => { stopped = true; clearTimeout(timer); } };
}

function chart(name, minutes, series, summary, unit) {
  const of = {};
  for (const key of series) {
    const values = minutes.map((minute) => minute[key] ?? 0);
    const max = Math.max(...values);
    of[key] = { values, max, sum: values.reduce((a, b) => a + b, 0), at: minutes[values.indexOf(max)]?.at };
  }
  const top = Math.max(1, ...series.map((key) => of[key].max));
  const highest = of[series[0]];
  const peak = highest.max ? `; most in one minute ${unit(highest.max)}, at ${clock(highest.at)}` : "";
  const text = `${name} of the last hour: ${summary(of)}${peak}`;
  const bars = series.map((key, n) => svg("g", { class: `bars bars-${n} ${key}` }, of[key].values.map((value, i) => {
    const high = value ? Math.max(1.5, (value / top) * HEIGHT) : 0;
    return value > 0 && svg("rect", { x: i * STEP + 0.5, width: STEP - 1, y: HEIGHT - high, height: high });
  })));
  const width = minutes.length * STEP;
  return h("figure", null,
    h("figcaption", null, h("b", null, name), " ", h("span", { class: "quiet" }, summary(of))),
    svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": text },
      svg("title", null, text), svg("path", { class: "base", d: `M0 ${HEIGHT - 0.25}H${width}` }), bars));
}

function clock(iso) {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? "?" : `${String(at.getHours()).padStart(2, "0")}:${String(at.getMinutes()).padStart(2, "0")}`;
}

// Numbers, times and JSON as people read them.

import { h } from "./dom.js";

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

export function count(n) {
  return Number(n ?? 0).toLocaleString("en");
}

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

export function bytes(n) {
  let value = Number(n ?? 0);
  for (const unit of ["bytes", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${unit === "bytes" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

export function millis(ms) {
  return ms < 1000 ? `${ms} ms` : span(ms / 1000);
}

function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const at = UNITS.findIndex(([, size]) => whole >= size);
  if (at < 0) return "0 s";
  const [unit, size] = UNITS[at];
  const smaller = UNITS[at + 1];
  const rest = smaller ? Math.floor((whole % size) / smaller[1]) : 0;
  return `${Math.floor(whole / size)} ${unit}${rest ? ` ${rest} ${smaller[0]}` : ""}`;
}

function pad(n, width = 2) {
  return String(n).padStart(width, "0");
}

/** The browser's local time; the exact one in UTC is the element's title. */
export function time(iso, withMillis = false) {
  const at = new Date(iso);
  if (!iso || Number.isNaN(at.getTime())) return h("span", { class: "quiet" }, "–");
  const today = at.toDateString() === new Date().toDateString();
  const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} `;
  const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  const text = (today ? "" : day) + clock + (withMillis ? `.${pad(at.getMilliseconds(), 3)}` : "");
  return h("time", { datetime: iso, title: iso }, text);
}

/** “in 12 s”, “3 min ago”: kept right by `tick`. */
export function relative(iso) {
  return h("time", { datetime: iso, title: iso, class: "relative" }, away(iso));
}

function away(iso) {
  const seconds = (new Date(iso).getTime() - Date.now()) / 1000;
  if (Number.isNaN(seconds)) return "–";
  return seconds > 0 ? `in ${span(seconds)}` : `${span(-seconds)} ago`;
}

export function tick() {
  for (const element of document.querySelectorAll("time.relative")) {
    const text = away(element.dateTime);
    if (element.textContent !== text) element.textContent = text;
  }
}

// Deep nesting would make many times the text.
const INDENT_MAX = 40;
const GROWTH_MAX = 8 * 1024 * 1024;

/** JSON text with line breaks and indents; numbers and strings stay exactly as they came. `null`: it is no JSON. */
export function indented(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  const parts = [];
  let size = 0;
  let depth = 0;
  const put = (part) => {
    parts.push(part);
    size += part.length;
  };
  const newLine = () => put("\n" + "  ".repeat(Math.min(depth, INDENT_MAX)));
  let i = 0;
  while (i < text.length) {
    if (size > text.length + GROWTH_MAX) return null;
    const char = text[i];
    if (char === '"') {
      const end = stringEnd(text, i);
      put(text.slice(i, end));
      i = end;
      continue;
    }
    i += 1;
    if (char === "{" || char === "[") {
      const next = pastSpace(text, i);
      if (text[next] === "}" || text[next] === "]") {
        put(char + text[next]);
        i = next + 1;
      } else {
        put(char);
        depth += 1;
        newLine();
      }
    } else if (char === "}" || char === "]") {
      depth -= 1;
      newLine();
      put(char);
    } else if (char === ",") {
      put(char);
      newLine();
    } else if (char === ":") {
      put(": ");
    } else if (!" \t\r\n".includes(char)) {
      put(char);
    }
  }
  return parts.join("");
}

function stringEnd(text, start) {
  let i = start + 1;
  while (text[i] !== '"') i += text[i] === "\\" ? 2 : 1;
  return i + 1;
}

function pastSpace(text, i) {
  while (" \t\r\n".includes(text[i])) i += 1;
  return i;
}

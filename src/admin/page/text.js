// Untrusted text: what could hide or reorder other text is written out, and what is long is cut.

import { h } from "./dom.js";

const SHOWN_MAX = 64 * 1024;
// Beyond that many marked places a page gets slow: the rest is written out without a mark.
const MARKS_MAX = 4000;

const HIDDEN = "\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180e" +
  "\\u200b\\u200c\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb\\u{e0000}-\\u{e0fff}\\p{Cs}";
// The joiner within an emoji is left alone.
const JOINER = "(?<![\\p{Extended_Pictographic}\\p{Emoji_Modifier}\\ufe0f])\\u200d";
const IN_LINES = new RegExp(`(?:[${HIDDEN}]|${JOINER})+`, "gu");
const IN_ONE_LINE = new RegExp(`(?:[${HIDDEN}\\n\\t]|${JOINER})+`, "gu");

function escaped(run) {
  let text = "";
  for (const char of run) {
    const code = char.codePointAt(0);
    const short = { 9: "\\t", 10: "\\n", 13: "\\r" }[code];
    const hex = code.toString(16);
    text += short ?? (code > 0xffff ? `\\u{${hex}}` : `\\u${hex.padStart(4, "0")}`);
  }
  return text;
}

/** `text` as a fragment; `lines` keeps line breaks and tabs. */
export function visible(text, lines = false) {
  const fragment = document.createDocumentFragment();
  let plain = "";
  let at = 0;
  let marks = 0;
  for (const match of text.matchAll(lines ? IN_LINES : IN_ONE_LINE)) {
    plain += text.slice(at, match.index);
    at = match.index + match[0].length;
    if (marks >= MARKS_MAX) {
      plain += escaped(match[0]);
      continue;
    }
    marks += 1;
    fragment.append(plain, h("span", { class: "mark" }, escaped(match[0])));
    plain = "";
  }
  fragment.append(plain + text.slice(at));
  return fragment;
}

export function cut(text, max) {
  if (text.length <= max) return text;
  // Never through the middle of a pair.
  const last = text.charCodeAt(max - 1);
  return text.slice(0, last >= 0xd800 && last < 0xdc00 ? max - 1 : max);
}

/** One line, cut to `max` characters. */
export function line(text, max = 120) {
  const whole = String(text ?? "");
  const short = cut(whole, max);
  return h("bdi", { class: "text" }, visible(short), short.length < whole.length && "…");
}

/** Text of any length: the first 64 KiB, and a button for the rest. */
export function block(text, props = {}) {
  const pre = h("pre", { tabindex: "0", dir: "ltr", ...props });
  const first = cut(text, SHOWN_MAX);
  pre.append(visible(first, true));
  if (first.length === text.length) return pre;
  const rest = (text.length - first.length).toLocaleString("en");
  const more = h("button", {
    type: "button",
    onclick: () => {
      pre.replaceChildren(visible(text, true));
      more.remove();
      pre.focus();
    },
  }, `Show all (${rest} more characters)`);
  return h("div", { class: "cut" }, pre, more);
}

/** The text of bytes that are not UTF-8: ASCII as it is, the rest as \xNN. */
export function textOfBase64(base64) {
  const bytes = atob(base64);
  return bytes.replace(/[\x80-\xff]/g, (byte) => `\\x${byte.charCodeAt(0).toString(16)}`);
}

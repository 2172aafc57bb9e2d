// The header: health and counts, asked for every few seconds.

import { SIGN_IN, get } from "./api.js";
import { announce, h, replace } from "./dom.js";
import { bytes, count, plural, relative } from "./format.js";
import { reopen } from "./live.js";
import { hash } from "./route.js";
import { badge } from "./state.js";
import { line } from "./text.js";

const EVERY = 4000;
const WORDS = { ok: "healthy", rebuilding: "rebuilding the index", full: "disk full", failed: "store failed" };

let latest = null;
let signedOut = false;
let unreachable = false;
let said = null;
const listeners = new Set();

export function handlerNames() {
  return (latest?.handlers ?? []).map((handler) => handler.name);
}

/** Calls `on(status)` now, if there is one, and at every new one. */
export function onStatus(on) {
  listeners.add(on);
  if (latest) on(latest);
  return () => listeners.delete(on);
}

export async function refresh() {
  try {
    const before = latest;
    latest = await get("status");
    if (before && (unreachable || before.startedAt !== latest.startedAt)) reopen();
    signedOut = unreachable = false;
    show(latest);
    for (const on of [...listeners]) on(latest);
  } catch (e) {
    lost(e);
  }
}

function show(status) {
  const sound = status.health !== "ok" || !status.damage?.length;
  const word = sound ? WORDS[status.health] ?? status.health : "log damaged";
  const look = sound ? status.health : "failed";
  if (said !== null && said !== word) announce(`Health: ${word}`);
  said = word;
  replace(document.getElementById("status"),
    badge(look, word, { "data-testid": "health", class: `badge health ${look === "ok" ? "good" : "bad"}` }),
    figure(count(status.events), "events"),
    figure(count(status.backlog), "backlog", status.oldestUndelivered && [", oldest ", relative(status.oldestUndelivered)]),
    figure(count(status.dead), "dead", null, status.dead ? hash("dead") : null),
    figure(bytes(status.logBytes), "log", `, ${bytes(status.diskFreeBytes)} free`, null, "minor"),
    figure(status.version, "version", null, null, "minor"));
  document.getElementById("dead-count").textContent = status.dead ? ` (${count(status.dead)})` : "";
  const notes = [];
  if (status.note) notes.push(h("p", null, "▲ ", line(status.note, 600)));
  for (const lost of status.damage ?? []) notes.push(h("p", null, damage(lost)));
  banner(notes);
}

function figure(value, word, more, link, look = "") {
  const text = [h("b", null, value), ` ${word}`];
  return h("span", { class: `figure ${look}` }, link ? h("a", { href: link }, text) : text, more);
}

function damage(lost) {
  const what = lost.firstSeq > lost.lastSeq ? "" : `: records ${lost.firstSeq} to ${lost.lastSeq} are lost`;
  return ["✕ Damage in ", line(lost.segment), ` at byte ${count(lost.offset)}, ${plural(lost.bytes, "byte")}${what}. `,
    "Stop bluehook, then run ", h("code", null, "bluehook store repair"), "."];
}

// The banner is an alert: it is said again whenever it changes, so it changes only when it must.
function banner(nodes) {
  const element = document.getElementById("banner");
  const fresh = h("div", null, nodes);
  if (element.textContent !== fresh.textContent) replace(element, ...fresh.childNodes);
}

function lost(error) {
  unreachable = true;
  if (signedOut && error.status !== 401) return;
  banner([h("p", null, "✕ ", error.message)]);
  said = "not reachable";
  replace(document.getElementById("status"),
    badge("failed", error.status === 401 ? "signed out" : "not reachable", { "data-testid": "health", class: "badge health bad" }));
}

export function start() {
  window.addEventListener("signed-out", () => {
    signedOut = true;
    banner([h("p", null, "✕ ", SIGN_IN)]);
  });
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  const again = async () => {
    if (!document.hidden) await refresh();
    setTimeout(again, EVERY);
  };
  return again();
}

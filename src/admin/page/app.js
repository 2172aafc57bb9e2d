// Starts the page, and shows the view that the address names.

import * as dead from "./dead.js";
import * as detail from "./detail.js";
import { replace } from "./dom.js";
import { tick } from "./format.js";
import * as handlers from "./handlers.js";
import * as keys from "./keys.js";
import * as list from "./list.js";
import * as live from "./live.js";
import * as messages from "./messages.js";
import * as refused from "./refused.js";
import { here } from "./route.js";
import * as status from "./status.js";
import * as trigger from "./trigger.js";

const main = document.getElementById("main");
let shown = null;
let lastList = "#/events";
let lastSeq = null;

function open({ view, id, params }) {
  switch (view) {
    case "event": return detail.open(id, { back: lastList });
    case "dead": return dead.open(params);
    case "messages": return messages.open(params);
    case "refused": return refused.open();
    case "handlers": return handlers.open();
    case "trigger": return trigger.open();
    default: return list.open(params, { focusSeq: lastSeq });
  }
}

function route() {
  const place = here();
  const first = shown === null;
  if (place.view === "event") lastSeq = place.id;
  if (shown?.name === place.view && shown.view.update) {
    shown.view.update(place.params);
    scrollTo(0, 0);
  } else {
    shown?.view.close();
    const view = open(place);
    shown = { name: place.view, view };
    replace(main, view.element);
    document.title = `${view.title} – bluehook`;
    scrollTo(0, 0);
    // Where the new view begins: for the keyboard and for screen readers.
    if (!first) (main.querySelector("h2") ?? main).focus({ preventScroll: true });
  }
  const current = place.view === "event" ? "events" : place.view;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function back() {
  if (here().view === "event") location.hash = lastList;
}

window.addEventListener("hashchange", (e) => {
  const from = new URL(e.oldURL).hash;
  if (here().view === "event" && !/^#\/events\//.test(from)) lastList = from || "#/events";
  route();
});
document.getElementById("skip").addEventListener("click", (e) => {
  e.preventDefault();
  main.focus();
});

status.start();
live.start();
keys.start({ back });
setInterval(tick, 1000);
route();

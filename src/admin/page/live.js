// What happens now: one stream for the whole page.

const AGAIN_AFTER = 5000;

const listeners = new Set();
let source = null;
let timer = null;

/** `on.item(item)`; `on.gap()` where something may have been missed; `on.state("live" | "connecting")`. */
export function listen(on) {
  listeners.add(on);
  on.state?.(source?.readyState === EventSource.OPEN ? "live" : "connecting");
  return () => listeners.delete(on);
}

function tell(what, value) {
  for (const on of [...listeners]) on[what]?.(value);
}

function open() {
  clearTimeout(timer);
  if (source || document.hidden) return;
  source = new EventSource("/api/v1/events/stream?brief=true");
  let first = true;
  source.onopen = () => {
    // By itself the browser resumes after the last record; a new source begins with now.
    if (first) tell("gap");
    first = false;
    tell("state", "live");
  };
  source.onmessage = (message) => {
    let item;
    try {
      item = JSON.parse(message.data);
    } catch {
      return;
    }
    tell("item", item);
  };
  source.onerror = () => {
    tell("state", "connecting");
    if (source?.readyState !== EventSource.CLOSED) return;
    close();
    timer = setTimeout(open, AGAIN_AFTER);
  };
}

function close() {
  source?.close();
  source = null;
}

/** Where the other end may have gone without a word. */
export function reopen() {
  close();
  open();
}

/** A hidden page holds no connection: a browser allows six to one address, for all its tabs. */
export function start() {
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return open();
    close();
    tell("state", "connecting");
  });
  open();
}

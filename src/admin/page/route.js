// The place within the page, kept in the address: a reload or a link leads back to it.

const VIEWS = ["events", "messages", "dead", "refused", "handlers", "trigger"];

export function here() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [name, id] = path.split(/\/(.*)/s);
  const params = Object.fromEntries(new URLSearchParams(query ?? ""));
  if (name === "events" && id) return { view: "event", id: decoded(id), params };
  return { view: VIEWS.includes(name) ? name : "events", id: null, params };
}

function decoded(id) {
  try {
    return decodeURIComponent(id);
  } catch {
    return id;
  }
}

export function hash(view, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value));
  return `#/${view}${query.size ? `?${query}` : ""}`;
}

export function eventHash(id) {
  return `#/events/${encodeURIComponent(id)}`;
}

/** Without a new entry in the history, so that typing a filter doesn't fill it. */
export function rewrite(view, params) {
  history.replaceState(null, "", hash(view, params));
}

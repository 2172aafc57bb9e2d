// Builds elements. Text only ever becomes text nodes: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...kept(children));
  return element;
}

function kept(children) {
  return children.flat(9).filter((child) => child !== null && child !== undefined && child !== false);
}

export function replace(element, ...children) {
  element.replaceChildren(...kept(children));
}

/** A term and its value; leaves out what is not known. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined);
  return h("dl", { class: "facts" }, known.map(([term, value]) =>
    h("div", null, h("dt", null, term), h("dd", null, value))));
}

let announced = 0;
let waiting = null;

/** For screen readers. In a flood only the newest sentence is said, every few seconds. */
export function announce(sentence) {
  clearTimeout(waiting);
  const say = () => {
    announced = Date.now();
    document.getElementById("announcer").textContent = sentence;
  };
  waiting = setTimeout(say, Math.max(50, announced + 4000 - Date.now()));
}

/** At most one call of `run` at a time and one per `pause()` milliseconds; the last request is never lost. */
export function throttled(run, pause) {
  let timer = null;
  let busy = false;
  let again = false;
  let stopped = false;
  const begin = async () => {
    timer = null;
    busy = true;
    again = false;
    try {
      await run();
    } finally {
      busy = false;
      if (again && !stopped) ask();
    }
  };
  const ask = () => {
    if (stopped) return;
    if (busy) again = true;
    else timer ??= setTimeout(begin, pause());
  };
  ask.stop = () => {
    stopped = true;
    clearTimeout(timer);
  };
  return ask;
}

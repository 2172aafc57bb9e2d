// Single-key shortcuts. They can be turned off, for those whose tools type letters.

const STORED = "bluehook.keys";

export function start({ back }) {
  const box = document.getElementById("keys");
  box.checked = localStorage.getItem(STORED) !== "off";
  box.addEventListener("change", () => localStorage.setItem(STORED, box.checked ? "on" : "off"));
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || document.querySelector("dialog[open]")) return;
    const typing = e.target.closest("input:not([type=checkbox]), textarea, select");
    if (e.key === "Escape") {
      if (typing) typing.blur();
      else back();
      return;
    }
    if (typing || !box.checked) return;
    if (e.key === "/") search(e);
    if (e.key === "j") move(e, 1);
    if (e.key === "k") move(e, -1);
  });
}

function search(e) {
  const input = document.querySelector("[data-search]");
  if (!input) return;
  e.preventDefault();
  input.focus();
  input.select();
}

function move(e, step) {
  const stops = [...document.querySelectorAll("main .rows > li")].map((row) => row.querySelector("a[data-open], summary"));
  if (!stops.length) return;
  e.preventDefault();
  const row = document.activeElement?.closest?.(".rows > li");
  const at = row ? stops.findIndex((stop) => row.contains(stop)) : step > 0 ? -1 : stops.length;
  const next = stops[Math.min(stops.length - 1, Math.max(0, at + step))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

// What every page adds when script runs. Nothing on the pages depends on it.
import { keys } from "./keys.js";
import { hover } from "./hover.js";
import { swaps } from "./swap.js";
import { notes } from "./notes.js";

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // Storage is switched off: the choice lasts as long as the page.
  }
  const url = new URL(location.href);
  if (url.searchParams.has("theme")) {
    url.searchParams.set("theme", theme);
    history.replaceState(history.state, "", url);
  }
  document.dispatchEvent(new Event("themed"));
}

document.querySelector("#theme")?.addEventListener("click", (event) => {
  event.preventDefault();
  toggleTheme();
});
document.querySelector("#help")?.addEventListener("click", (event) => {
  event.preventDefault();
  document.querySelector("dialog#shortcuts").showModal();
});
document.addEventListener("click", (event) => {
  const open = document.querySelector("details.switch[open]");
  if (open && !open.contains(event.target)) open.open = false;
  const copy = event.target.closest("[data-copy]");
  if (copy) navigator.clipboard?.writeText(copy.dataset.copy).then(() => (copy.textContent = "copied"));
});

keys(toggleTheme);
hover();
swaps();
notes();
if (document.querySelector("#map")) import("./map.js").then((module) => module.map(document.querySelector("#map")));
if (document.querySelector("#typed")) import("./text.js").then((module) => module.text());
document.documentElement.dataset.script = "ready";

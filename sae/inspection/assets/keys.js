// Keys: arrows turn features, r random, / search, t test box, u up, d theme, c context, 1-5 tabs, ? help.
const TYPING = "input, textarea, select, [contenteditable]";

function follow(selector) {
  const link = document.querySelector(selector);
  if (!link) return false;
  if (link.tagName === "LINK") location.href = link.href;
  else link.click();
  return true;
}

function focus(selector) {
  const field = document.querySelector(selector);
  if (!field) return false;
  field.focus();
  field.select?.();
  field.scrollIntoView({ block: "nearest" });
  return true;
}

function nextContext() {
  const links = [...document.querySelectorAll(".contexts a")];
  const current = links.findIndex((link) => link.hasAttribute("aria-current"));
  if (!links.length) return false;
  links[(current + 1) % links.length].click();
  return true;
}

export function keys(toggleTheme) {
  const actions = {
    ArrowLeft: () => follow("link[rel=prev]"),
    ArrowRight: () => follow("link[rel=next]"),
    r: () => follow("#random"),
    "/": () => focus("#find"),
    t: () => focus("#test") || follow("a[data-key=t]"),
    u: () => follow("a[data-key=u]"),
    c: nextContext,
    d: () => (toggleTheme(), true),
    "?": () => (document.querySelector("dialog#shortcuts")?.showModal(), true),
  };
  for (let i = 1; i <= 5; i++) actions[i] = () => follow(`.tabs > a:nth-of-type(${i})`);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && event.target.matches(TYPING)) return event.target.blur();
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const typing = event.target.closest(TYPING);
    if (typing) {
      if (typing.tagName === "TEXTAREA" && event.key === "Enter" && !event.shiftKey && typing.form) {
        event.preventDefault();
        typing.form.requestSubmit();
      }
      return;
    }
    if (document.querySelector("dialog[open]")) return;
    if (event.key.startsWith("Arrow") && event.target.closest(".scroll, #map")) return;
    if (actions[event.key]?.()) event.preventDefault();
  });
}

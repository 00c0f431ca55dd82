// Links and forms with data-swap replace one part of the page by the same part of the page they lead to; the address follows.
let running = null;

async function swap(url, selector, push) {
  const part = document.querySelector(selector);
  running?.abort();
  running = new AbortController();
  part.classList.add("busy");
  try {
    const response = await fetch(url, { signal: running.signal, headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.querySelector(selector);
    if (!fresh) return location.assign(url);
    const typed = document.activeElement?.name;
    part.replaceWith(document.adoptNode(fresh));
    for (const link of document.querySelectorAll("link[rel=prev], link[rel=next]")) link.remove();
    document.head.append(...[...page.querySelectorAll("link[rel=prev], link[rel=next]")].map((link) => document.adoptNode(link)));
    document.title = page.title;
    if (push) history.pushState({}, "", url);
    if (typed) fresh.querySelector(`[name="${CSS.escape(typed)}"]:not([type=hidden])`)?.focus();
    document.dispatchEvent(new Event("swapped"));
  } catch (error) {
    if (error.name !== "AbortError") location.assign(url);
  }
}

export function swaps() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-swap]");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    if (!document.querySelector(link.dataset.swap)) return;
    event.preventDefault();
    swap(link.href, link.dataset.swap, true);
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-swap]");
    if (!form || form.method !== "get" || !document.querySelector(form.dataset.swap)) return;
    event.preventDefault();
    const url = new URL(form.getAttribute("action"), location.href);
    url.search = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== "")).toString();
    swap(url.href, form.dataset.swap, true);
  });
  addEventListener("popstate", (event) => {
    if (event.state !== null || location.hash === "") swap(location.href, "#content", false);
  });
}

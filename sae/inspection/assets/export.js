// Finds and sorts the features of an exported site, and turns its pages with the arrow keys. A classic script: browsers do not load
// modules from a folder (file:). Without it every feature is still listed and linked.
"use strict";

(() => {
  const typing = (target) => target.closest("input, textarea, select, [contenteditable]");

  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || typing(event.target)) return;
    const field = document.getElementById("find");
    if (event.key === "/" && field) {
      event.preventDefault();
      field.focus();
      return;
    }
    if (event.target.closest(".scroll")) return;
    const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = rel && document.querySelector(`link[rel=${rel}]`);
    if (link) location.href = link.href;
  });

  const table = document.getElementById("features");
  if (!table) return;
  const form = document.querySelector(".finder");
  const field = document.getElementById("find");
  const hideDead = document.getElementById("dead");
  const found = document.getElementById("found");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map((row, place) => ({ row, place, text: row.textContent.toLowerCase(), dead: row.classList.contains("out") }));
  let sorting = { key: "", order: "" };

  // The state is in the address, after #: q=words, sort=column, order=ascending|descending, alive=1.
  const stateOf = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

  function keep() {
    const state = new URLSearchParams();
    if (field.value.trim()) state.set("q", field.value.trim());
    if (sorting.key) {
      state.set("sort", sorting.key);
      state.set("order", sorting.order);
    }
    if (hideDead.checked) state.set("alive", "1");
    const hash = state.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function filter() {
    const words = field.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    for (const entry of rows) {
      const shown = !(hideDead.checked && entry.dead) && words.every((word) => entry.text.includes(word));
      entry.row.hidden = !shown;
      n += shown;
    }
    found.textContent = n === rows.length ? `${n.toLocaleString("en")} features` : `${n.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  }

  function sort() {
    const column = headings.findIndex((heading) => heading.dataset.sort === sorting.key);
    const sign = sorting.order === "ascending" ? 1 : -1;
    const value = (entry) => Number(entry.row.cells[column].dataset.value);
    const ordered = column < 0 ? rows : [...rows].sort((a, b) => sign * (value(a) - value(b)) || a.place - b.place);
    for (const heading of headings) if (heading.dataset.sort) heading.ariaSort = heading.dataset.sort === sorting.key ? sorting.order : "none";
    body.append(...ordered.map((entry) => entry.row));
  }

  for (const heading of headings.filter((cell) => cell.dataset.sort)) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.classList.add("sorts");
    button.addEventListener("click", () => {
      const next = { descending: "ascending", ascending: "" }[sorting.key === heading.dataset.sort ? sorting.order : ""] ?? "descending";
      sorting = next ? { key: heading.dataset.sort, order: next } : { key: "", order: "" };
      sort();
      keep();
    });
  }

  let waiting = 0;
  const refine = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      filter();
      keep();
    }, 60);
  };
  field.addEventListener("input", refine);
  hideDead.addEventListener("change", refine);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const first = rows.map((entry) => entry.row).find((row) => !row.hidden);
    if (first) location.href = [...body.rows].find((row) => !row.hidden).querySelector("a").href;
  });

  function restore() {
    const state = stateOf();
    field.value = state.get("q") ?? "";
    hideDead.checked = state.get("alive") === "1";
    const key = state.get("sort");
    const known = headings.some((heading) => heading.dataset.sort && heading.dataset.sort === key);
    sorting = known ? { key, order: state.get("order") === "ascending" ? "ascending" : "descending" } : { key: "", order: "" };
    sort();
    filter();
  }

  form.hidden = false;
  restore();
  addEventListener("hashchange", () => location.hash.includes("=") && restore());
})();

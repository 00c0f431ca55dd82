// Turns pages with the arrow keys and sorts tables by a click on a heading. Nothing on the pages depends on it.
"use strict";

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest("input, textarea, select, [contenteditable], .scroll")) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = rel && document.querySelector(`link[rel=${rel}]`);
  if (link) location.href = link.href;
});

function valueOf(row, column) {
  const cell = row.cells[column];
  if (!cell) return "";
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return a.localeCompare(b, undefined, { numeric: true });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (heading.classList.contains("nosort")) return;
    heading.tabIndex = 0;
    heading.classList.add("sorts");
    const sort = () => {
      const order = { none: "descending", descending: "ascending", ascending: "none" }[heading.ariaSort || "none"];
      for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
      heading.ariaSort = order;
      const sign = order === "ascending" ? 1 : -1;
      const rows = order === "none" ? original : [...original].sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column)));
      body.append(...rows);
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sort();
      }
    });
  });
}

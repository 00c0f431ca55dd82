// Pointing at a token shows its value, where that lies among the feature's firings, and marks the place in the histogram.
import { shown } from "./numbers.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
let tip = null;

function share(chart, value) {
  const { low, high, counts } = chart.dataset;
  const bins = counts.split(" ").map(Number);
  const place = ((value - low) / (high - low)) * bins.length;
  const total = bins.reduce((a, b) => a + b, 0);
  let below = 0;
  bins.forEach((count, i) => (below += count * Math.min(Math.max(place - i, 0), 1)));
  return total ? below / total : 0;
}

function mark(chart, value) {
  const { low, high, left, right, floor } = chart.dataset;
  let line = chart.querySelector(".marker");
  if (!line) {
    line = document.createElementNS(NAMESPACE, "line");
    line.classList.add("marker");
    line.setAttribute("y1", 4);
    chart.append(line);
  }
  const x = Number(left) + ((value - low) / (high - low)) * (right - left);
  line.setAttribute("y2", floor);
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
}

function chartOf(token) {
  return (token.closest(".column") || document).querySelector("svg.values[data-counts]");
}

function show(token) {
  const value = Number(token.dataset.v);
  if (token.title) {
    token.dataset.title = token.title;
    token.removeAttribute("title");
  }
  const chart = chartOf(token);
  tip ||= document.body.appendChild(Object.assign(document.createElement("div"), { id: "tip", role: "tooltip" }));
  const name = Object.assign(document.createElement("bdi"), { className: "token", textContent: (token.dataset.title || token.textContent).trim().split(/\s{2,}/)[0] });
  const number = document.createTextNode(`  ${shown(value)}`);
  tip.replaceChildren(name, number);
  if (chart) {
    const quiet = Object.assign(document.createElement("span"), { className: "quiet" });
    quiet.textContent = `above about ${(100 * share(chart, value)).toFixed(0)} % of its firings`;
    tip.append(quiet);
    mark(chart, value);
  }
  tip.hidden = false;
  const box = token.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(box.left, innerWidth - own.width - 6))}px`;
  tip.style.top = `${box.bottom + own.height + 14 < innerHeight ? box.bottom + 7 : box.top - own.height - 7}px`;
}

function hide(token) {
  if (token.dataset.title) token.title = token.dataset.title;
  if (tip) tip.hidden = true;
  chartOf(token)?.querySelector(".marker")?.remove();
}

export function hover() {
  document.addEventListener("pointerover", (event) => {
    const token = event.target.closest?.("bdi[data-v]");
    if (token) show(token);
  });
  document.addEventListener("pointerout", (event) => {
    const token = event.target.closest?.("bdi[data-v]");
    if (token) hide(token);
  });
  document.addEventListener("swapped", () => tip && (tip.hidden = true));
}

// Pointing at a feature of the ranking colours the text by it.
const LEVELS = 32;

function paint(values) {
  const peak = Math.max(...values.map(Math.abs)) || 1;
  const tokens = [...document.querySelectorAll("#encoded .strip > a, #encoded .strip > .special")];
  tokens.forEach((token, i) => {
    const inner = token.querySelector("bdi");
    if (!inner) return;
    inner.dataset.usual ??= inner.className;
    const value = values[i];
    const place = Math.min(LEVELS, Math.max(1, Math.ceil((LEVELS * Math.abs(value)) / peak))) - 1;
    inner.className = value ? `t ${value < 0 ? "b" : "a"}${place}` : "";
  });
}

function usual() {
  for (const inner of document.querySelectorAll("#encoded .strip bdi")) inner.className = inner.dataset.usual ?? inner.className;
  const means = document.querySelector("#means");
  if (means) means.textContent = `colour: ${means.dataset.usual}`;
}

export function text() {
  document.addEventListener("pointerover", (event) => {
    const row = event.target.closest?.("tr[data-values]");
    if (!row) return;
    paint(row.dataset.values.split(" ").map(Number));
    document.querySelector("#means").textContent = `colour: ${row.dataset.name} on this text`;
  });
  document.addEventListener("pointerout", (event) => {
    if (event.target.closest?.("tr[data-values]") && !event.relatedTarget?.closest?.("tr[data-values]")) usual();
  });
}

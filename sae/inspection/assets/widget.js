// Type a text, see its features. The kernel encodes and renders; this file only sends the text and shows what comes back.

const DELAY = 350; // milliseconds after the last key

function render({ model, el }) {
  const box = document.createElement("textarea");
  const status = document.createElement("div");
  const shown = document.createElement("div");
  box.value = model.get("text");
  box.rows = 3;
  box.spellcheck = false;
  box.setAttribute("aria-label", "Text to encode");
  box.placeholder = "Type a text";
  box.style.cssText =
    "width:100%;max-width:70em;box-sizing:border-box;padding:8px 10px;font:inherit;color:inherit;background:transparent;" +
    "border:1px solid rgba(128,128,128,.6);border-radius:4px;resize:vertical";
  status.style.cssText = "min-height:1.4em;margin:2px 0 6px;font-size:12px;opacity:.72";
  status.setAttribute("role", "status");

  let timer = null;
  const send = () => {
    clearTimeout(timer);
    if (box.value === model.get("text")) return;
    status.textContent = "encoding …";
    model.set("text", box.value);
    model.save_changes();
  };
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(send, DELAY);
  };
  const atOnce = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    event.stopPropagation(); // the notebook's own keys
  };
  const showStatus = () => {
    status.textContent = model.get("status");
  };
  const showFeatures = () => {
    shown.innerHTML = model.get("html"); // rendered and escaped by the kernel
  };
  const showText = () => {
    if (document.activeElement !== box) box.value = model.get("text");
  };

  box.addEventListener("input", later);
  box.addEventListener("keydown", atOnce);
  model.on("change:status", showStatus);
  model.on("change:html", showFeatures);
  model.on("change:text", showText);
  el.replaceChildren(box, status, shown);
  showStatus();
  showFeatures();
  return () => {
    clearTimeout(timer);
    model.off("change:status", showStatus);
    model.off("change:html", showFeatures);
    model.off("change:text", showText);
  };
}

export default { render };

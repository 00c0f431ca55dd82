// Labels and lists: forms with data-send speak JSON to the API; then the page is read again. Without script they stay hidden.
const JSON_HEADERS = { "Content-Type": "application/json", Accept: "application/json" };

async function asked(url, method, body) {
  const response = await fetch(url, { method, headers: JSON_HEADERS, body: body && JSON.stringify(body) });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.detail || `refused (${response.status})`);
  return answer;
}

const actions = {
  label: (form, fields) => asked(form.getAttribute("action"), "POST", { text: fields.text }),
  list: (form, { name, title, description }) =>
    asked(form.getAttribute("action") + encodeURIComponent(name), "PUT", { title, description: description ?? "", items: [] }),
  async item(form, { name, comment }) {
    const url = form.getAttribute("action") + encodeURIComponent(name);
    const { title, description, items } = await asked(url, "GET");
    if (items.some((item) => item.source === null)) throw new Error("the list has features of dictionaries that are not served; it is left as it is");
    const { source, index } = form.dataset;
    const others = items.filter((item) => item.source !== source || item.index !== Number(index));
    const kept = others.map(({ source, index, comment }) => ({ source, index, comment }));
    await asked(url, "PUT", { title, description, items: [...kept, { source, index: Number(index), comment }] });
  },
};

async function send(form, submitter) {
  const status = form.querySelector("[role=status]");
  try {
    await actions[form.dataset.send](form, Object.fromEntries(new FormData(form, submitter)));
    location.reload();
  } catch (error) {
    status.textContent = error.message;
  }
}

export function notes() {
  for (const form of document.querySelectorAll("form[data-send]")) form.hidden = false;
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-send]");
    if (!form) return;
    event.preventDefault();
    send(form, event.submitter);
  });
}

// Labels and lists: forms with data-send speak JSON to the API, then the page is read again.
async function send(form, submitter) {
  const fields = Object.fromEntries(new FormData(form, submitter));
  const method = form.dataset.send;
  const body = form.dataset.body ? JSON.parse(form.dataset.body.replace(/"\$(\w+)"/g, (_, name) => JSON.stringify(fields[name] ?? ""))) : fields;
  const response = await fetch(form.getAttribute("action"), {
    method,
    headers: { "Content-Type": "application/json", Accept: "application/json" },
    body: method === "DELETE" ? undefined : JSON.stringify(body),
  });
  if (response.ok) return location.reload();
  const said = await response.json().catch(() => ({}));
  const status = form.querySelector("[role=status]");
  if (status) status.textContent = said.detail || `refused (${response.status})`;
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

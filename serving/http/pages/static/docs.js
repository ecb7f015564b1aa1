// The reference of the API: a request that is tried out.

import { ask } from "./page.js";

const MOST = 20_000;

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form.try");
  if (!form) return;
  event.preventDefault();
  const path = form.dataset.path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(form.elements[`path.${name}`].value));
  const query = new URLSearchParams();
  for (const input of form.querySelectorAll("[name^='query.']")) if (input.value) query.set(input.name.slice(6), input.value);
  const body = form.elements.body?.value;
  const output = form.querySelector("output");
  output.textContent = "…";
  try {
    const options = { method: form.dataset.method, headers: { Accept: "application/json" } };
    if (body) Object.assign(options, { body, headers: { ...options.headers, "Content-Type": "application/json" } });
    const answer = await ask(`${path}${query.size ? `?${query}` : ""}`, options);
    const text = await answer.text();
    let shown = text;
    try {
      shown = JSON.stringify(JSON.parse(text), null, 2);
    } catch {}
    output.textContent = `${answer.status} ${answer.statusText}\n\n${shown.length > MOST ? `${shown.slice(0, MOST)}\n…` : shown}`;
  } catch (error) {
    output.textContent = `No answer: ${error.message}`;
  }
});

function start() {
  for (const button of document.querySelectorAll("form.try button")) button.hidden = false;
  const search = document.getElementById("find");
  if (!search || search.dataset.started) return;
  search.dataset.started = "yes";
  search.parentElement.hidden = false;
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const one of document.querySelectorAll("details.operation")) one.hidden = !one.dataset.text.toLowerCase().includes(wanted);
  });
}

document.addEventListener("page", start);
start();

// A batch: what is in the file, before it is sent, and the job that it becomes.

import { ask, say } from "./page.js";

const HEAD_BYTES = 256 * 1024;

function start() {
  const form = document.getElementById("batch");
  if (!form || form.dataset.started) return;
  form.dataset.started = "yes";
  const file = document.getElementById("file");
  const drop = document.getElementById("drop");
  file.addEventListener("change", () => inspect(form, file.files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  drop.addEventListener("drop", (event) => {
    file.files = event.dataTransfer.files;
    inspect(form, file.files[0]);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(form, file.files[0]);
  });
}

/** The cells of the first line of a CSV file. */
function header(line) {
  const cells = [];
  const cell = /(?:"((?:[^"]|"")*)"|([^,]*))(,|$)/y;
  for (let found; (found = cell.exec(line)); ) {
    cells.push(found[1] === undefined ? found[2] : found[1].replaceAll('""', '"'));
    if (!found[3]) break;
  }
  return cells;
}

async function inspect(form, file) {
  const found = document.getElementById("found");
  found.replaceChildren();
  document.getElementById("send").disabled = !file;
  if (!file) return;
  const head = await file.slice(0, HEAD_BYTES).text().catch(() => null);
  if (head === null) return tell(found, `${file.name} cannot be read. Choose it again.`, "fault");
  const line = head.replace(/^\ufeff/, "").split(/\r?\n/, 1)[0];
  const columns = header(line);
  const features = JSON.parse(form.dataset.features);
  const missing = features.filter((name) => !columns.includes(name));
  const unknown = columns.filter((name) => name && !features.includes(name));
  const lines = head.split("\n").length - 1;
  const rows = file.size <= HEAD_BYTES ? head.trimEnd().split("\n").length - 1 : Math.round((file.size / head.length) * lines);
  tell(found, `${file.name}: ${file.size <= HEAD_BYTES ? "" : "about "}${rows.toLocaleString()} rows, ${columns.length} columns`);
  if (missing.length) tell(found, `Missing: ${missing.join(", ")}`, "fault");
  if (unknown.length) tell(found, `Not features of this model: ${unknown.join(", ")}`, "fault");
  if (!missing.length && !unknown.length) tell(found, "All columns are features of this model, and none is missing.", "fine");
}

function tell(list, text, kind = "") {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  list.append(item);
}

async function submit(form, file) {
  const button = document.getElementById("send");
  button.disabled = true;
  const query = new URLSearchParams(new FormData(form));
  query.delete("file");
  try {
    const answer = await ask(`/v1/jobs?${query}`, { method: "POST", body: file, headers: { "Content-Type": "text/csv" } });
    const content = await answer.json();
    if (answer.ok) return location.assign(`/jobs/${content.id}`);
    const found = document.getElementById("found");
    found.replaceChildren();
    tell(found, content.detail, "fault");
    for (const fault of content.errors ?? []) tell(found, `line ${fault.instance + 2}${fault.feature ? `, ${fault.feature}` : ""}: ${fault.reason}`, "fault");
  } catch (error) {
    say(`The file could not be sent: ${error.message}`, "bad");
  }
  button.disabled = false;
}

document.addEventListener("page", start);
start();

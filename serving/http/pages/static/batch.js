// A batch: what is in the file and how long it will take, before it is sent, and the job that it becomes.

import { ask, say } from "./page.js";

const HEAD_BYTES = 256 * 1024;

// a larger file that can only be read whole is checked when it is sent
const MAX_CHECKED_BYTES = 32 * 1024 * 1024;

const CSV = "text/csv", PARQUET = "application/vnd.apache.parquet";

let number = 0;

function start() {
  const form = document.getElementById("batch");
  if (!form || form.dataset.started) return;
  form.dataset.started = "yes";
  const file = document.getElementById("file");
  const drop = document.getElementById("drop");
  file.addEventListener("change", () => inspect(form, file.files[0]));
  form.elements.operation.addEventListener("change", ({ target }) => {
    history.replaceState(null, "", target.selectedIndex ? `?operation=${target.value}` : location.pathname);
    inspect(form, file.files[0]);
  });
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

const typeOf = (file) => (/\.(parquet|pq)$/i.test(file.name) || file.type === PARQUET ? PARQUET : CSV);

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

/** The bytes up to the end of the last whole line. */
function wholeLines(bytes) {
  let isInside = false;
  let end = bytes.length;
  for (let place = 0; place < bytes.length; place++) {
    if (bytes[place] === 34) isInside = !isInside;
    else if (bytes[place] === 10 && !isInside) end = place + 1;
  }
  return bytes.subarray(0, end);
}

/** Say what a file is like; of a larger CSV, its beginning. */
async function inspect(form, file) {
  number += 1;
  const own = number;
  const found = document.getElementById("found");
  found.replaceChildren();
  document.getElementById("send").disabled = !file;
  if (!file) return;
  const isWhole = file.size <= HEAD_BYTES || typeOf(file) === PARQUET;
  if (typeOf(file) === PARQUET && form.dataset.parquet !== "True") return tell(found, "This service takes no Parquet.", "fault");
  if (isWhole && file.size > MAX_CHECKED_BYTES) return tell(found, `${file.name} is checked when it is sent.`);
  const read = await (isWhole ? file : file.slice(0, HEAD_BYTES)).arrayBuffer().catch(() => null);
  if (own !== number) return;
  if (read === null) return tell(found, `${file.name} cannot be read. Choose it again.`, "fault");
  let bytes = new Uint8Array(read);
  if (!isWhole) bytes = wholeLines(bytes);
  if (typeOf(file) === CSV && !describe(form, file, bytes, isWhole)) return;
  const waiting = tell(found, "Checking …");
  try {
    const { answer, content } = await send(form, bytes, typeOf(file), { dry_run: "true" });
    if (own !== number) return;
    if (answer.ok) report(form, found, file, content, isWhole ? 1 : file.size / bytes.length);
    else refuse(found, content, typeOf(file));
  } catch (error) {
    if (own === number) tell(found, `The file cannot be checked now: ${error.message}`, "fault");
  }
  waiting.remove();
}

/** Say which columns a CSV has; whether they are those of the model. */
function describe(form, file, bytes, isWhole) {
  const found = document.getElementById("found");
  const text = new TextDecoder().decode(bytes);
  const columns = header(text.replace(/^\ufeff/, "").split(/\r?\n/, 1)[0]);
  const features = JSON.parse(form.dataset.features);
  const missing = features.filter((name) => !columns.includes(name));
  const unknown = columns.filter((name) => name && !features.includes(name));
  const lines = text.trimEnd().split("\n").length - 1;
  const rows = isWhole ? lines : Math.round((file.size / bytes.length) * lines);
  tell(found, `${file.name}: ${isWhole ? "" : "about "}${rows.toLocaleString()} rows, ${columns.length} columns`);
  if (rows > (isWhole ? 1 : 1.1) * form.dataset.rows) tell(found, `These are more than the ${Number(form.dataset.rows).toLocaleString()} rows of one job.`, "fault");
  if (missing.length) tell(found, `Missing: ${missing.join(", ")}`, "fault");
  if (unknown.length) tell(found, `Not features of this model: ${unknown.join(", ")}`, "fault");
  return !missing.length && !unknown.length;
}

/** Say that rows are as they should be, and how long the job will take; the file is so many times what was checked. */
function report(form, found, file, content, times) {
  const rows = Math.round(content.rows * times);
  if (typeOf(file) === PARQUET) tell(found, `${file.name}: ${rows.toLocaleString()} rows`);
  const what = times > 1 ? `The first ${content.rows.toLocaleString()} rows` : "All rows";
  tell(found, `All columns are features of this model, and none is missing. ${what} are as they should be.`, "fine");
  if (content.seconds === null) tell(found, "It will take more than a second a row.");
  else tell(found, `It will take about ${span(content.seconds * times)}, once a runner has time for it.`);
}

function span(seconds) {
  if (seconds < 1) return "a second";
  if (seconds < 90) return `${Math.ceil(seconds)} seconds`;
  return seconds < 5400 ? `${Math.ceil(seconds / 60)} minutes` : `${Math.ceil(seconds / 3600)} hours`;
}

function tell(list, text, kind = "") {
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  list.append(item);
  return item;
}

function refuse(found, content, type) {
  tell(found, content.detail, "fault");
  const place = ({ instance }) => (type === CSV ? `line ${instance + 2}` : `row ${instance + 1}`);
  for (const fault of content.errors ?? []) tell(found, `${place(fault)}${fault.feature ? `, ${fault.feature}` : ""}: ${fault.reason}`, "fault");
}

async function send(form, body, type, more = {}) {
  const query = new URLSearchParams({ model: form.elements.model.value, operation: form.elements.operation.value, ...more });
  const answer = await ask(`/v1/jobs?${query}`, { method: "POST", body, headers: { "Content-Type": type } });
  return { answer, content: await answer.json() };
}

async function submit(form, file) {
  number += 1;
  const button = document.getElementById("send");
  button.disabled = true;
  try {
    const { answer, content } = await send(form, file, typeOf(file));
    if (answer.ok) return location.assign(`/jobs/${content.id}`);
    const found = document.getElementById("found");
    found.replaceChildren();
    refuse(found, content, typeOf(file));
  } catch (error) {
    say(`The file could not be sent: ${error.message}`, "bad");
  }
  button.disabled = false;
}

document.addEventListener("page", start);
start();

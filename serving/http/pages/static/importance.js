// The page of importance: a job over the rows that the model was last asked about.

import { ask, say } from "./page.js";

const ROWS = 500, PAGE = 100;

function start() {
  const button = document.getElementById("logged");
  if (!button || button.dataset.started) return;
  button.dataset.started = "yes";
  button.hidden = false;
  button.addEventListener("click", () => explainLogged(button));
}

/** The rows of the last logged predictions of a version. */
async function loggedRows({ model, version }) {
  const rows = [];
  let after = "";
  do {
    const query = new URLSearchParams({ model, version, limit: PAGE, ...(after && { after }) });
    const answer = await ask(`/v1/predictions?${query}`);
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.detail);
    rows.push(...content.predictions.map((one) => one.row));
    after = content.next;
  } while (after && rows.length < ROWS);
  return rows.slice(0, ROWS);
}

async function explainLogged(button) {
  button.disabled = true;
  try {
    const { model, version } = button.dataset;
    const instances = await loggedRows(button.dataset);
    if (!instances.length) throw new Error("no prediction of this version is logged (LOG_PREDICTIONS)");
    const body = JSON.stringify({ operation: "importance", model, version, instances });
    const answer = await ask("/v1/jobs", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    const content = await answer.json();
    if (answer.ok) return location.assign(`/jobs/${content.id}`);
    throw new Error(content.detail);
  } catch (error) {
    say(`Not done: ${error.message}`, "bad");
  }
  button.disabled = false;
}

document.addEventListener("page", start);
start();

// Pages that follow what happens, and buttons that do something about it.

import { ask, fetchPage, hush, keep, key, morph, polish, say } from "./page.js";

const RETRY_MS = 2000, AT_MOST_EVERY_MS = 300;

// after something was done: old workers still answer on connections that are open
const HURRY_MS = 6000;

let timer, stream, isFetching, isWanted;
let hurryUntil = 0;
const before = new Map();

function start() {
  clearTimeout(timer);
  stream?.abort();
  const live = document.getElementById("live");
  if (!live) return;
  rates(live);
  if (live.dataset.events) follow(live.dataset.events);
  else if (live.dataset.every) timer = setTimeout(refresh, 1000 * live.dataset.every);
}

/** Show the page as it is now; calls meanwhile are one. */
async function refresh() {
  isWanted = true;
  if (isFetching) return;
  isFetching = true;
  clearTimeout(timer);
  const live = document.getElementById("live");
  try {
    while (isWanted) {
      isWanted = false;
      const page = await fetchPage(location.href, { signal: AbortSignal.timeout(10_000) });
      const newer = page.getElementById("live");
      if (!newer) throw new Error(page.querySelector("main p")?.textContent ?? "the page is gone");
      morph(live, newer);
      polish(live);
      rates(live);
      document.dispatchEvent(new Event("renewed"));
      hush("offline");
      await new Promise((done) => setTimeout(done, AT_MOST_EVERY_MS));
    }
  } catch (error) {
    say(`The service does not answer (${error.message}). What is shown is old; trying again …`, "bad", "offline");
    timer = setTimeout(refresh, RETRY_MS);
    return;
  } finally {
    isFetching = false;
  }
  if (performance.now() < hurryUntil) timer = setTimeout(refresh, AT_MOST_EVERY_MS);
  else if (live.dataset.every && !live.dataset.events) timer = setTimeout(refresh, 1000 * live.dataset.every);
}

/** Read a stream of events with `fetch`, which can send a key; every event is a reason to look. */
async function follow(path) {
  let last = "";
  stream = new AbortController();
  const { signal } = stream;
  while (!signal.aborted && document.getElementById("live")?.dataset.events) {
    try {
      const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const answer = await ask(path, { headers, signal });
      if (answer.status === 204) break;
      if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
      hush("offline");
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const frames = text.split("\n\n");
        text = frames.pop();
        for (const frame of frames) {
          last = /^id: ?(.*)$/m.exec(frame)?.[1] ?? last;
          if (/^event:/m.test(frame)) refresh();
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      say(`The service does not answer (${error.message}). What is shown is old; trying again …`, "bad", "offline");
    }
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
  refresh();
}

/** Counters become rates, from one look to the next. */
function rates(root) {
  const now = performance.now() / 1000;
  for (const one of root.querySelectorAll("[data-count]")) {
    const count = Number(one.dataset.count);
    const old = before.get(one.dataset.name);
    const isNew = !old || now - old.time >= 0.5;
    const rate = isNew ? old && count >= old.count && ((count - old.count) / (now - old.time)).toFixed(1) : old.rate;
    if (isNew) before.set(one.dataset.name, { count, time: now, rate });
    if (rate) one.textContent = rate;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  event.preventDefault();
  const dialog = document.getElementById("ask");
  dialog.querySelector("h2").textContent = button.dataset.question;
  const needsKey = !key() && button.dataset.do.includes("/api/admin/");
  dialog.querySelector("[data-key]").hidden = !needsKey;
  const field = document.getElementById("action-key");
  field.required = needsKey;
  field.value = "";
  dialog.returnValue = "";
  dialog.onclose = () => {
    button.focus();
    if (dialog.returnValue !== "yes") return;
    if (needsKey) keep(field.value.trim());
    act(button);
  };
  dialog.showModal();
});

async function act(button) {
  const { method, path } = /^(?<method>\w+) (?<path>.*)$/.exec(button.dataset.do).groups;
  button.disabled = true;
  try {
    const answer = await ask(path, { method });
    const content = answer.headers.get("Content-Type")?.includes("json") ? await answer.json() : {};
    if (answer.ok) {
      const notice = say(button.dataset.done, "good");
      if (content.id && !location.pathname.startsWith("/jobs/")) {
        const link = document.createElement("a");
        link.href = `/jobs/${content.id}`;
        link.textContent = "Watch it";
        notice.append(link);
      }
    } else {
      if (answer.status === 401) keep("");
      say(`Not done: ${content.detail ?? `the service answered ${answer.status}`}`, "bad");
    }
  } catch (error) {
    say(`Not done: ${error.message}`, "bad");
  }
  button.disabled = false;
  hurryUntil = performance.now() + HURRY_MS;
  refresh();
}

document.addEventListener("page", start);
start();

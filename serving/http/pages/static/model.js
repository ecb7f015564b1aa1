// The page of a model, live: every change is asked about at once, and an older answer never replaces a newer one.

import { fetchPage, hush, morph, polish, say } from "./page.js";

const RETRY_MS = 2000;

// a page that is only looked at notices another version, too
const LOOK_MS = 5_000;

let form, asked, shown, isAsking, retry;

function start() {
  if (form === document.getElementById("form")) return;
  form = document.getElementById("form");
  asked = shown = 0;
  isAsking = false;
  if (!form) return;
  form.classList.add("live");
  form.addEventListener("input", ({ target }) => {
    follow(target);
    update();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { submitter } = event;
    if (submitter?.hasAttribute("data-compare")) compare();
    if (submitter?.hasAttribute("data-stop")) stopComparing();
    update();
  });
  document.getElementById("reset").addEventListener("click", reset);
  for (const slider of form.querySelectorAll(".slider")) slider.hidden = false;
  const before = new URLSearchParams(location.search);
  for (const [name, value] of before) if (name.startsWith("y.") || name === "compare") hide(name, value);
  markChanged();
}

/** A slider follows its number, and the number its slider. */
function follow(input) {
  if (input.dataset.for) document.getElementById(input.dataset.for).value = input.value;
  else {
    const slider = form.querySelector(`.slider[data-for="${input.id}"]`);
    if (slider) slider.value = input.value;
  }
}

/** Ask now; while an answer is awaited, only the last change is kept, and asked about next. */
async function update() {
  asked += 1;
  markChanged();
  if (isAsking) return;
  isAsking = true;
  clearTimeout(retry);
  while (shown !== asked) {
    const number = asked;
    try {
      show(await send(), number);
    } catch (error) {
      fail(error);
      break;
    }
  }
  isAsking = false;
}

async function send() {
  const values = new URLSearchParams(new FormData(form));
  values.set("part", "answer");
  return fetchPage(form.action, { method: "POST", body: values, signal: AbortSignal.timeout(30_000) });
}

function show(page, number) {
  const answer = page.querySelector(".answer");
  if (!answer) throw new Error(page.querySelector("main p")?.textContent ?? "there is no answer");
  shown = number;
  hush("offline");
  const target = document.getElementById("answer");
  target.classList.remove("stale");
  morph(target.querySelector(".answer"), answer);
  polish(target);
  markFaults(target);
  history.replaceState(null, "", answer.dataset.link ? `?${answer.dataset.link}` : location.pathname);
  if (answer.dataset.live !== form.dataset.live) {
    form.dataset.live = answer.dataset.live;
    say(`Version ${answer.dataset.live} is live now, and answers from here on.`, "good", "version");
  }
  const wait = Number(target.querySelector("[data-retry]")?.dataset.retry);
  if (wait) retry = setTimeout(update, 1000 * wait);
}

function fail(error) {
  document.getElementById("answer").classList.add("stale");
  say(`The service does not answer (${error.message}). The answer below is the last one; trying again …`, "bad", "offline");
  retry = setTimeout(update, RETRY_MS);
}

/** Put each refusal at the field that it is about. */
function markFaults(target) {
  const faults = new Map();
  for (const one of target.querySelectorAll("[data-fault]")) faults.set(`x.${one.dataset.fault}`, one.querySelector("span").textContent);
  for (const field of form.querySelectorAll(".field")) {
    const fault = faults.get(field.dataset.key) ?? "";
    field.querySelector(".fault").textContent = fault;
    const input = field.querySelector("[name]");
    if (fault) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }
}

const inputs = () => [...form.querySelectorAll(".field [name]")];

function markChanged() {
  document.getElementById("reset").hidden = inputs().every((input) => input.value === input.dataset.initial);
}

function reset() {
  for (const input of inputs()) {
    input.value = input.dataset.initial;
    follow(input);
  }
  update();
}

function hide(name, value) {
  const input = document.createElement("input");
  input.type = "hidden";
  input.name = name;
  input.value = value;
  form.append(input);
}

/** Keep the row as it is now, to be compared with what it is changed to. */
function compare() {
  hide("compare", "1");
  for (const input of inputs()) if (input.value !== input.dataset.initial) hide(`y.${input.name.slice(2)}`, input.value);
}

function stopComparing() {
  form.querySelectorAll('input[type="hidden"]').forEach((input) => input.remove());
}

setInterval(() => {
  if (form && !isAsking && document.visibilityState === "visible") update();
}, LOOK_MS);
document.addEventListener("page", start);
start();

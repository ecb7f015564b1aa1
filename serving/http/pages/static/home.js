// The list of models: search, and looking out for the first one.

import { fetchPage, polish } from "./page.js";

const LOOK_MS = 3000;

function start() {
  const search = document.getElementById("search");
  if (search && search.parentElement.hidden) {
    search.parentElement.hidden = false;
    search.addEventListener("input", () => filter(search.value));
    search.value = new URLSearchParams(location.search).get("q") ?? "";
    filter(search.value);
  }
  if (document.getElementById("first-steps")) setTimeout(look, LOOK_MS);
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/);
  let found = 0;
  for (const card of document.querySelectorAll("#models > li")) {
    const all = card.dataset.text.toLowerCase();
    card.hidden = !words.every((word) => all.includes(word));
    found += !card.hidden;
  }
  document.getElementById("nothing").hidden = found > 0;
  history.replaceState(null, "", text ? `?q=${encodeURIComponent(text)}` : location.pathname);
}

async function look() {
  const page = await fetchPage("/").catch(() => null);
  if (page && !page.getElementById("first-steps")) {
    document.querySelector("main").replaceChildren(...page.querySelector("main").childNodes);
    polish();
  }
  start();
}

document.addEventListener("page", start);
start();

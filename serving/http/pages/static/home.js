// The list of models: search, also after it was made anew.

function start() {
  const search = document.getElementById("search");
  if (!search) return;
  if (!search.dataset.started) {
    search.dataset.started = "yes";
    search.value = new URLSearchParams(location.search).get("q") ?? "";
    search.addEventListener("input", () => {
      history.replaceState(null, "", search.value ? `?q=${encodeURIComponent(search.value)}` : location.pathname);
      filter(search.value);
    });
  }
  search.parentElement.hidden = !document.getElementById("models");
  filter(search.value);
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/);
  const cards = document.querySelectorAll("#models > li");
  let found = 0;
  for (const card of cards) {
    const all = card.dataset.text.toLowerCase();
    card.hidden = !words.every((word) => all.includes(word));
    found += !card.hidden;
  }
  if (cards.length) document.getElementById("nothing").hidden = found > 0;
}

document.addEventListener("page", start);
document.addEventListener("renewed", start);
start();

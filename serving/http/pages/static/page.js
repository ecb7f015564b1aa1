// What every page does: sends the key, puts a newer form of the page in place of the one shown, says what goes wrong.

const KEY = "forkserve-key";

/** The key that was typed in this tab; empty without one. */
export const key = () => sessionStorage.getItem(KEY) ?? "";

export function keep(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  document.getElementById("sign-out").hidden = !value;
}

/** As `fetch`, with the key of this tab. */
export function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key() && !headers.has("Authorization")) headers.set("Authorization", `Bearer ${key()}`);
  return fetch(path, { ...options, headers });
}

/** The document behind a path. */
export async function fetchPage(path, options = {}) {
  const answer = await ask(path, { ...options, headers: { Accept: "text/html", ...options.headers } });
  const type = answer.headers.get("Content-Type") ?? "";
  if (!type.startsWith("text/html")) throw new Error(`the service answered ${answer.status}`);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

/** Make an element like another one, changing only what differs: focus, open details and what is typed stay. */
export function morph(to, from) {
  for (const { name } of [...to.attributes]) if (!from.hasAttribute(name) && name !== "open") to.removeAttribute(name);
  for (const { name, value } of from.attributes) if (to.getAttribute(name) !== value) to.setAttribute(name, value);
  const wanted = [...from.childNodes];
  wanted.forEach((node, place) => {
    const shown = to.childNodes[place];
    if (!shown) to.append(document.importNode(node, true));
    else if (shown.nodeName !== node.nodeName || (node.id && shown.id !== node.id)) shown.replaceWith(document.importNode(node, true));
    else if (node.nodeType === Node.ELEMENT_NODE) morph(shown, node);
    else if (shown.nodeValue !== node.nodeValue) shown.nodeValue = node.nodeValue;
  });
  while (to.childNodes.length > wanted.length) to.lastChild.remove();
  if (to === document.activeElement) return;
  if (to.nodeName === "INPUT") to.value = from.getAttribute("value") ?? "";
}

const formats = new Map();

/** Numbers as the reader's locale writes them, and buttons that copy. */
export function polish(root = document) {
  for (const one of root.querySelectorAll("data.number")) {
    const value = Number(one.value);
    const digits = Number(one.dataset.digits);
    if (!Number.isFinite(value) || (value !== 0 && !(Math.abs(value) >= 1e-4 && Math.abs(value) < 1e15))) continue;
    if (!formats.has(digits)) formats.set(digits, new Intl.NumberFormat(undefined, { maximumSignificantDigits: digits }));
    const text = Number.isInteger(value) ? value.toLocaleString() : formats.get(digits).format(value);
    if (one.textContent !== text) one.textContent = text;
  }
  for (const button of root.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
}

/** Say something above the page, once; the last of a kind replaces those before it. */
export function say(text, kind = "", name = "said") {
  hush(name);
  const notice = document.createElement("p");
  notice.className = `notice ${kind}`;
  notice.dataset.name = name;
  notice.textContent = text;
  document.getElementById("notices").append(notice);
  return notice;
}

export function hush(name) {
  document.querySelectorAll(`.notice[data-name="${name}"]`).forEach((notice) => notice.remove());
}

/** Show the page behind a path in place of the one shown. */
export async function renew(path = location.href) {
  const page = await fetchPage(path);
  document.title = page.title;
  for (const name of ["main", "footer"]) document.querySelector(name).replaceChildren(...page.querySelector(name).childNodes);
  const loaded = new Set([...document.scripts].map((script) => script.src));
  for (const { src } of page.scripts) {
    if (loaded.has(src)) continue;
    const script = document.createElement("script");
    script.type = "module";
    script.src = src;
    document.head.append(script);
  }
  start();
}

function start() {
  document.getElementById("sign-out").hidden = !key();
  polish();
  document.getElementById("unlock")?.addEventListener("submit", (event) => {
    event.preventDefault();
    keep(document.getElementById("key").value.trim());
    renew().catch((error) => say(`The service does not answer: ${error.message}`, "bad"));
  });
  document.dispatchEvent(new Event("page"));
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
  button.textContent = "Copied";
});
document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-save]");
  if (!link || !(key() || link.dataset.accept)) return;
  event.preventDefault(); // a link cannot send the key
  const answer = await ask(link.href, { headers: { Accept: link.dataset.accept ?? "*/*" } });
  if (!answer.ok) return say(`It could not be saved: the service answered ${answer.status}.`, "bad");
  const copy = document.createElement("a");
  copy.href = URL.createObjectURL(await answer.blob());
  copy.download = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition"))?.[1] ?? link.dataset.name ?? "answer";
  copy.click();
  URL.revokeObjectURL(copy.href);
});
document.getElementById("sign-out").addEventListener("click", () => {
  keep("");
  location.assign("/");
});

// a page that was asked for by following a link came without the key
if (key()) renew().catch(() => start());
else start();

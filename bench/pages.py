"""What the web pages cost: `python -m bench.pages`.

In Chromium, from an empty cache and again: milliseconds to the first contentful paint (medians), bytes, and from moving
a slider to the answer on the page. Then what each page adds to the private memory of the only worker, which has
answered what a program asks for before: that touches most of what is shared.
"""

from __future__ import annotations

import statistics
from typing import Any

import httpx

from bench.table import Table
from harness.browser import browser, visit
from harness.service import ADMIN_TOKEN, Service, demo_models
from serving.process.kernel import read_memory

VISITS, CHANGES = 20, 60

PAGES = (
    "/",
    "/models/wine",
    "/models/wine/importance",
    "/models/wine/versions",
    "/models/wine/card",
    "/models/wine/batch",
    "/monitoring/wine",
    "/entities",
    "/admin",
    "/docs",
)

TWINS = (
    "/health",
    "/v1/models?figures=true",
    "/v1/models/wine",
    "/v1/models/wine/importance",
    "/v1/models/wine/card",
    "/v1/models/wine/quality",
    "/v1/models/wine/drift",
    "/v1/entities",
    "/api/admin/metrics",
    "/openapi.json",
)
"""The JSON behind the pages."""

PAINTED = """() => ({
  paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime,
  bytes: [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .reduce((sum, one) => sum + one.transferSize, 0),
})"""

MOVED = """async (changes) => {
  const slider = document.querySelector(".slider"), answer = document.getElementById("answer"), times = [];
  const { min, max } = slider;
  for (let change = 1; change <= changes; change++) {
    const changed = new Promise((done) => {
      const observer = new MutationObserver(() => (observer.disconnect(), done()));
      observer.observe(answer, { subtree: true, childList: true, characterData: true, attributes: true });
    });
    slider.value = Number(min) + ((Number(max) - Number(min)) * ((change * 37) % changes)) / changes;
    const started = performance.now();
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await changed;
    times.push(performance.now() - started);
    await new Promise((done) => setTimeout(done, 50));
  }
  return times;
}"""


def show_paints(service: Service) -> None:
    """Print what a browser sees."""
    table = Table("page", "first paint ms", "bytes", "again ms", "bytes")
    with browser() as running:
        for path in PAGES[:2]:
            seen: list[list[dict[str, Any]]] = [[], []]
            for _ in range(VISITS):
                with visit(running, service.address) as visitor:
                    for found in seen:
                        visitor.page.goto(path, wait_until="networkidle")
                        found.append(visitor.page.evaluate(PAINTED))
            cells = [(statistics.median(one["paint"] for one in found), found[-1]["bytes"]) for found in seen]
            table.add(path, *(cell if isinstance(cell, int) else f"{cell:.0f}" for pair in cells for cell in pair))
        with visit(running, service.address) as visitor:
            visitor.page.goto(PAGES[1], wait_until="networkidle")
            times = sorted(visitor.page.evaluate(MOVED, CHANGES))
    print(table)
    print(f"\nfrom a slider to the answer: {times[CHANGES // 2]:.0f} ms, p95 {times[CHANGES * 95 // 100]:.0f} ms\n")


def show_memory(service: Service) -> None:
    """Print what pages add to the worker's private memory."""
    (worker,) = service.workers
    instance = service.get("/v1/models/wine")["example"]
    headers = {"Accept": "text/html", "Authorization": f"Bearer {ADMIN_TOKEN}"}
    table = Table("page", "own MB")
    with httpx.Client(base_url=service.address, headers=headers, trust_env=False) as client:
        for number in range(100):
            body = {"instances": [{**instance, "proline": 400.0 + number}]}
            for verb in ("predict", "explain"):
                client.post(f"/v1/models/wine:{verb}", json=body).raise_for_status()
        for path in TWINS * 3:
            client.get(path, headers={"Accept": "application/json"}).raise_for_status()
        first = before = read_memory(worker).private
        for path in PAGES:
            for _ in range(3):
                client.get(path).raise_for_status()
            after = read_memory(worker).private
            table.add(path, f"{(after - before) / 1e6:+.2f}")
            before = after
    table.add("all", f"{(before - first) / 1e6:+.2f}")
    print(table)


def main() -> None:
    with demo_models() as models:
        environ = {"MODEL_DIR": str(models), "ADMIN_TOKEN": ADMIN_TOKEN}
        with Service(environ | {"WEB_CONCURRENCY": "2"}) as service:
            show_paints(service)
        with Service(environ | {"WEB_CONCURRENCY": "1"}) as service:
            show_memory(service)


if __name__ == "__main__":
    main()

"""`python -m harness.screenshots docs`: pictures of the pages over the demo models, in a real browser."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx
from playwright.sync_api import expect

from harness.browser import Scheme, Visit, browser, visit
from harness.entities import import_market, sqlite_source
from harness.service import ADMIN_TOKEN, Service, demo_models

REQUESTS = 300
"""Sent before the pictures, so that the page of the service has something to show."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A page, as it is seen by a visitor whose window has that many pixels."""

    name: str
    path: str
    width: int = 1440
    height: int = 1000
    scheme: Scheme = "light"


PAGES = (
    ("models", "/"),
    ("model", "/models/wine?x.proline=1180&x.alcohol=13.6"),
    ("importance", "/models/mortgage/importance"),
    ("service", "/admin"),
    ("versions", "/models/wine/versions"),
    ("entity", "/entities/AAPL"),
    ("api", "/docs"),
)

SHOTS = (
    *(Shot(name, path) for name, path in PAGES),
    *(Shot(f"{name}-dark", path, scheme="dark") for name, path in PAGES),
    *(Shot(f"{name}-narrow", path, 360, 780, "dark") for name, path in PAGES),
)

KEPT = ("model", "service", "importance-dark")
"""The pictures that the documents show."""


def main(directory: Path, names: tuple[str, ...]) -> None:
    """Take pictures of these names, or those that are kept, into a directory."""
    directory.mkdir(exist_ok=True)
    with demo_models() as models, tempfile.TemporaryDirectory() as data:
        import_market(sqlite_source(Path(data)))
        environ = {"MODEL_DIR": str(models), "DATA_DIR": data, "ADMIN_TOKEN": ADMIN_TOKEN}
        with Service(environ) as service, browser() as running:
            _use(service)
            for shot in SHOTS:
                if shot.name in names:
                    with visit(
                        running, service.address, width=shot.width, height=shot.height, scheme=shot.scheme
                    ) as visitor:
                        _take(visitor, shot, directory)


def _use(service: Service) -> None:
    with httpx.Client(base_url=service.address, trust_env=False) as client:
        for name in ("wine", "mortgage", "diabetes"):
            example = service.get(f"/v1/models/{name}")["example"]
            first = next(iter(example))
            for number in range(REQUESTS // 3):
                instance = {**example, first: example[first] + number % 40 / 100}
                client.post(f"/v1/models/{name}:predict", json={"instances": [instance]})


def _take(visitor: Visit, shot: Shot, directory: Path) -> None:
    if shot.path == "/admin":
        visitor.context.add_init_script(f"sessionStorage.setItem('forkserve-key', '{ADMIN_TOKEN}')")
    visitor.page.goto(shot.path)
    visitor.page.locator("main h1").wait_for()
    if shot.path == "/admin":
        visitor.page.locator("table.processes").wait_for()
        # two looks, so that there are rates
        expect(visitor.page.locator("[data-name=all]")).not_to_have_text("\N{EN DASH}")
    visitor.page.screenshot(path=directory / f"{shot.name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or KEPT)

"""A real Chromium, which npm's `@sparticuz/chromium` carries in itself, driven by Playwright; no root is needed.

It is unpacked once into the environment beside axe. Playwright's own browsers, which are downloads, are not used.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from harness.npm import installed, node_program

PACKAGE = Path(__file__).with_name("chromium")
INSTALLED = Path(sys.prefix).resolve() / "chromium"

UNPACK = """
import chromium from "@sparticuz/chromium";
console.log(await chromium.executablePath());
"""

OPTIONS = [
    "--no-sandbox",  # as root it starts without one only
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
    "--font-render-hinting=none",
    "--hide-scrollbars",
]

FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{0}/fonts</dir><dir>/usr/share/fonts</dir><cachedir>{0}/fonts-cache</cachedir></fontconfig>
"""

Scheme = Literal["light", "dark"]

AXE = INSTALLED / "node_modules" / "axe-core" / "axe.min.js"


def chromium_program() -> Path:
    """The browser, which the first call installs and unpacks. Raises RuntimeError if it cannot be installed."""
    installed(PACKAGE, INSTALLED)
    program = INSTALLED / "unpacked" / "chromium"
    with (INSTALLED / ".unpacking").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            program.parent.mkdir(exist_ok=True)
            script = INSTALLED / "unpack.mjs"
            script.write_text(UNPACK)
            done = subprocess.run(
                [node_program(), script],
                env=os.environ | {"TMPDIR": str(program.parent)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not program.exists():
                raise RuntimeError(f"Chromium cannot be unpacked:\n{done.stdout}{done.stderr}")
            (program.parent / "fonts" / "fonts.conf").write_text(FONTS.format(program.parent))
    return program


@contextmanager
def browser() -> Iterator[Browser]:
    """A running Chromium."""
    program = chromium_program()
    environ = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environ["FONTCONFIG_FILE"] = str(program.parent / "fonts" / "fonts.conf")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program, args=OPTIONS, env=dict(environ), headless=True, timeout=60_000
        )
        try:
            yield running
        finally:
            running.close()


@dataclass
class Visit:
    """A visit of somebody to a service: a page of theirs, and what the browser complained about."""

    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)
    """Errors of scripts, of the console, and violations of the Content-Security-Policy."""

    def violations(self) -> list[str]:
        """What axe finds on the page as it is now."""
        # the policy of the page lets no foreign script in; the driver's own world does
        self.page.evaluate(AXE.read_text())
        found: Any = self.page.evaluate("axe.run({resultTypes: ['violations']})")
        return [f"{one['id']}: {node['html']}" for one in found["violations"] for node in one["nodes"]]


@contextmanager
def visit(
    running: Browser,
    address: str,
    *,
    width: int = 1440,
    height: int = 900,
    scheme: Scheme = "light",
    script: bool = True,
) -> Iterator[Visit]:
    """A new visitor without a history, whose window has that many pixels."""
    with running.new_context(
        base_url=address,
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        java_script_enabled=script,
        reduced_motion="reduce",
        locale="en-GB",
    ) as context:
        page = context.new_page()
        page.set_default_timeout(15_000)
        visitor = Visit(context, page)
        page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: visitor.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        yield visitor

"""The pages in a real Chromium, before a real service of two workers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from harness.browser import Visit, browser, visit
from harness.hostile import add_hostile
from harness.service import ADMIN_TOKEN, Service

PAGES = ("/", "/models/wine", "/models/mortgage", "/models/hostile", "/models/wide", "/models/nothing")


@pytest.fixture(scope="module")
def shown(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over a few demo models and the hostile ones."""
    root = tmp_path_factory.mktemp("shown")
    for name in ("wine", "mortgage", "diabetes"):
        shutil.copytree(models / name, root / name)
    add_hostile(root)
    with Service({"MODEL_DIR": str(root), "ADMIN_TOKEN": ADMIN_TOKEN}) as service:
        yield service


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def visitor(shown: Service, chromium: Browser) -> Iterator[Visit]:
    """A visitor whose browser has nothing to complain about."""
    with visit(chromium, shown.address) as visitor:
        yield visitor
        assert visitor.complaints == []


def outcome(visitor: Visit) -> str:
    return visitor.page.locator(".outcome").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(shown: Service, chromium: Browser, scheme: str) -> None:
    found = {}
    with visit(chromium, shown.address, scheme="dark" if scheme == "dark" else "light") as visitor:
        for path in PAGES:
            visitor.page.goto(path)
            found[path] = visitor.violations()
            wide = visitor.page.evaluate("document.documentElement.scrollWidth > innerWidth")
            assert not wide, f"{path} is wider than the window"
    assert {path: one for path, one in found.items() if one} == {}
    assert [one for one in visitor.complaints if "404" not in one] == []


def test_no_page_is_wider_than_a_telephone(shown: Service, chromium: Browser) -> None:
    with visit(chromium, shown.address, width=360, height=740) as visitor:
        for path in PAGES:
            visitor.page.goto(path)
            assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_names_that_are_markup_are_shown_and_run_nothing(visitor: Visit) -> None:
    visitor.page.goto("/models/hostile")
    visitor.page.locator(".field input").first.fill("1.5")
    expect(visitor.page).to_have_url(re.compile("x.%3Cimg"))
    assert visitor.page.title() == "hostile · forkserve"
    assert visitor.page.locator("main img").count() == 0


def test_a_change_is_answered_while_it_is_made(visitor: Visit) -> None:
    page = visitor.page
    page.goto("/models/wine")
    before = page.locator("table.bars td.number").first.inner_text()
    page.get_by_label("proline", exact=True).fill("1400")
    expect(page.locator("table.bars td.number").first).not_to_have_text(before)
    expect(page.locator(".outcome")).to_have_text("class_0")
    assert page.url.endswith("/models/wine?x.proline=1400")
    assert float(page.get_by_label("proline, slider").input_value()) == pytest.approx(1400, abs=10)
    page.reload()
    assert outcome(visitor) == "class_0", "the address holds the state"
    page.get_by_role("button", name="Back to the example").click()
    expect(page.locator(".outcome")).to_have_text("class_1")
    assert page.url.endswith("/models/wine")


def test_an_older_answer_never_replaces_a_newer_one(visitor: Visit) -> None:
    """The first answers are held back until the last change is made."""
    page = visitor.page
    page.goto("/models/wine")
    held: list[Route] = []
    page.route("**/models/wine", lambda route: held.append(route) if not held else route.continue_())
    field = page.get_by_label("proline", exact=True)
    with page.expect_request("**/models/wine"):
        field.fill("600")
    for value in ("700", "1000", "1400"):
        field.fill(value)
    held[0].continue_()
    expect(page.locator(".outcome")).to_have_text("class_0")
    assert page.url.endswith("?x.proline=1400")


def test_a_wrong_value_is_said_at_its_field(visitor: Visit) -> None:
    page = visitor.page
    page.goto("/models/wine")
    field = page.get_by_label("alcohol", exact=True)
    field.fill("999")
    expect(page.locator(".field .fault").first).to_contain_text("must be between")
    assert field.get_attribute("aria-invalid") == "true"
    assert visitor.violations() == []
    field.fill("13")
    expect(page.locator(".field .fault").first).to_be_empty()
    assert field.get_attribute("aria-invalid") is None


def test_two_rows_are_compared(visitor: Visit) -> None:
    page = visitor.page
    page.goto("/models/wine")
    page.get_by_role("button", name="Compare what-if").click()
    expect(page.get_by_text("Nothing yet: change a value.")).to_be_visible()
    page.get_by_label("proline", exact=True).fill("1400")
    expect(page.locator(".outcome")).to_have_text(["class_0", "class_1"])
    page.reload()
    expect(page.locator(".outcome")).to_have_text(["class_0", "class_1"])
    page.get_by_role("button", name="Stop comparing").click()
    expect(page.locator(".outcome")).to_have_text(["class_0"])


def test_a_form_works_without_javascript(shown: Service, chromium: Browser) -> None:
    with visit(chromium, shown.address, script=False) as visitor:
        page = visitor.page
        page.goto("/")
        page.get_by_role("link", name="wine").click()
        page.get_by_label("proline", exact=True).fill("1400")
        page.get_by_role("button", name="Ask the model").click()
        assert outcome(visitor) == "class_0"
        page.get_by_role("link", name="Link to this").click()
        assert page.url.endswith("/models/wine?x.proline=1400")
        assert outcome(visitor) == "class_0"
        assert visitor.complaints == []


def test_the_keyboard_alone_is_enough(visitor: Visit) -> None:
    page = visitor.page
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_role("searchbox").focus()
    page.keyboard.type("win")
    expect(page.locator(".card:visible")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page).to_have_title("wine · forkserve")
    slider = page.get_by_label("proline, slider")
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator(".outcome")).to_have_text("class_0")
    assert page.evaluate("document.activeElement.type") == "range", "the answer leaves the focus where it is"


def test_a_service_that_is_away_is_said_and_comes_back(visitor: Visit) -> None:
    page = visitor.page
    page.goto("/models/wine")
    page.route("**/models/wine", lambda route: route.abort())
    page.get_by_label("proline", exact=True).fill("1400")
    expect(page.locator(".notice")).to_contain_text("does not answer")
    expect(page.locator("#answer")).to_have_class("stale")
    page.unroute("**/models/wine")
    expect(page.locator(".notice")).to_have_count(0)
    expect(page.locator(".outcome")).to_have_text("class_0")
    assert all("ERR_FAILED" in one for one in visitor.complaints)
    visitor.complaints.clear()

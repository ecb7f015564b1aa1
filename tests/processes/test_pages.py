"""The pages in a real Chromium, before a real service of two workers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pandas as pd
import pytest
from playwright.sync_api import Browser, Route, expect
from sklearn.linear_model import LinearRegression

from harness.admin import ask_admin
from harness.browser import Visit, browser, visit
from harness.hostile import add_hostile
from harness.processes import eventually
from harness.service import ADMIN_TOKEN, FORKSERVE, Service
from registry.store.add import add_trained
from registry.training.script import Trained

MODEL_PAGES = [f"/models/{name}" for name in ("wine", "mortgage", "hostile", "wide", "nothing")]
expect.set_options(timeout=20_000)

PAGES = (
    "/",
    "/docs",
    *MODEL_PAGES,
    "/models/hostile/versions",
    "/models/hostile/importance",
    "/models/hostile/card",
    "/models/wide/batch",
    "/entities",
    "/entities/nothing",
    "/jobs/nothing",
    "/admin",
    "/monitoring/hostile",
    "/pages/patterns",
    "/monitoring/wine",
)


@pytest.fixture(scope="module")
def shown(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service over a few demo models and the hostile ones."""
    root = tmp_path_factory.mktemp("shown")
    for name in ("wine", "mortgage", "diabetes"):
        shutil.copytree(models / name, root / name)
    add_hostile(root)
    shutil.copytree(models / "diabetes" / "1", root / "diabetes" / "2")
    manifest = root / "diabetes" / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"'))
    sample = pd.DataFrame({"size": [0.0, 10.0, 30.0]})
    doubled = LinearRegression().fit(sample, 2 * sample["size"])
    add_trained(root, "doubled", Trained(estimator=doubled, sample=sample), entities=True)
    schedules = "nightly: 0 3 1 1 *: reload"
    environ = {"ADMIN_TOKEN": ADMIN_TOKEN, "SCHEDULES": schedules, "PAGES_PATTERNS": "true", "LOG_PREDICTIONS": "all"}
    with Service({"MODEL_DIR": str(root), **environ}) as service:
        _judge(service, "wine", ["class_0", "class_1", "class_2"])
        yield service


def _judge(service: Service, name: str, outcomes: list[str]) -> None:
    """Ask a model, and say what happened."""
    instances = [service.get(f"/v1/models/{name}")["example"]] * len(outcomes)
    with httpx.Client(base_url=f"{service.address}/v1/models", trust_env=False) as client:
        assert client.post(f"/{name}:predict", json={"instances": instances}).is_success
        assert client.post(f"/{name}/outcomes", json={"instances": instances, "outcomes": outcomes}).is_success


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


def unlock(visitor: Visit) -> None:
    """Have the visitor's tab keep the key, as if it had been typed."""
    visitor.context.add_init_script(f"sessionStorage.setItem('forkserve-key', '{ADMIN_TOKEN}')")


def settle(visitor: Visit, path: str) -> None:
    """Show a page, which a visitor with a key asks for twice: a link cannot send it."""
    visitor.page.goto(path)
    expect(visitor.page.locator("#sign-out")).to_be_visible()
    expect(visitor.page.locator("#locked")).to_have_count(0)


def outcome(visitor: Visit) -> str:
    return visitor.page.locator(".outcome").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_page(shown: Service, chromium: Browser, scheme: str) -> None:
    found = {}
    with visit(chromium, shown.address, scheme="dark" if scheme == "dark" else "light") as visitor:
        visitor.page.goto("/admin")
        found["the lock"] = visitor.violations()
        unlock(visitor)
        for path in PAGES:
            settle(visitor, path)
            found[path] = visitor.violations()
            wide = visitor.page.evaluate("document.documentElement.scrollWidth > innerWidth")
            assert not wide, f"{path} is wider than the window"
    assert {path: one for path, one in found.items() if one} == {}
    assert [one for one in visitor.complaints if "404" not in one] == []


def test_no_page_is_wider_than_a_telephone(shown: Service, chromium: Browser) -> None:
    with visit(chromium, shown.address, width=360, height=740) as visitor:
        unlock(visitor)
        for path in PAGES:
            settle(visitor, path)
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


def test_how_a_model_is_doing_is_read_without_javascript(shown: Service, chromium: Browser) -> None:
    with visit(chromium, shown.address, script=False) as visitor:
        page = visitor.page
        page.goto("/models/wine")
        page.get_by_role("link", name="Monitoring").click()
        expect(page.locator("svg.series polyline.c0")).to_have_count(2)
        page.get_by_label("Quality over the last").select_option("year")
        page.get_by_label("Calibration of").select_option("class_2")
        page.get_by_label("Drift over").select_option("latest")
        page.get_by_role("button", name="Show").click()
        assert page.url.endswith("/monitoring/wine?over=year&metric=accuracy&curve=class_2&window=latest")
        expect(page.get_by_role("heading", name="Calibration: class_2")).to_be_visible()
        page.get_by_text("1 day as a table").click()
        expect(page.get_by_role("group", name="Quality over time").locator("tbody tr")).to_have_count(1)
        page.locator("table.drift summary").first.click()
        expect(page.locator("table.shares").first).to_be_visible()
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


def test_a_key_is_asked_for_and_stays_in_its_tab(visitor: Visit, shown: Service) -> None:
    page = visitor.page
    page.goto("/admin")
    page.get_by_label("Key").fill("not-the-key-of-anybody")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("alert")).to_have_text("the key is not known")
    page.get_by_label("Key").fill(ADMIN_TOKEN)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", name="Processes")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Processes")).to_be_visible()
    assert page.context.cookies() == []
    assert page.evaluate("localStorage.length") == 0
    other = page.context.new_page()
    other.goto(f"{shown.address}/admin")
    expect(other.get_by_label("Key")).to_be_visible()
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_the_page_of_the_service_is_live(visitor: Visit, shown: Service) -> None:
    unlock(visitor)
    settle(visitor, "/admin")
    page = visitor.page
    shown_pids = page.locator("table.processes th .number")
    children = len(shown.workers) + len(shown.runners) + len(shown.schedulers)
    expect(shown_pids).to_have_count(1 + children)
    assert {str(pid) for pid in shown.workers} <= set(shown_pids.all_inner_texts())
    old = shown.workers[0]
    os.kill(old, signal.SIGKILL)
    expect(page.get_by_text(str(old), exact=True)).to_have_count(0)
    expect(page.locator("table.processes .child")).to_have_count(children)
    expect(page.locator("[data-name='all']")).not_to_have_text("\N{EN DASH}")
    visitor.complaints.clear()  # the worker that was killed may have held a request


def test_a_worker_drains_and_no_request_is_lost(visitor: Visit, shown: Service) -> None:
    unlock(visitor)
    settle(visitor, "/admin")
    page, old = visitor.page, shown.workers[0]
    body = {"instances": [shown.get("/v1/models/wine")["example"]]}
    gone = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(base_url=shown.address, trust_env=False) as client:
            while not gone.is_set():
                statuses.append(client.post("/v1/models/wine:predict", json=body).status_code)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            row = page.locator("tr", has=page.get_by_text(str(old), exact=True))
            row.get_by_role("button", name="Drain").click()
            expect(page.get_by_role("dialog")).to_contain_text(f"Drain worker {old}?")
            page.get_by_role("button", name="Yes").click()
            expect(page.locator(".notice")).to_have_text(f"Worker {old} drains.")
            expect(page.get_by_text(str(old), exact=True)).to_have_count(0)
        finally:
            gone.set()
    assert [one.exception() for one in asking] == [None] * 4
    assert set(statuses) == {200}
    assert old not in shown.workers
    for stranger in (old, os.getpid(), 1, shown.runners[0], 0, "x"):
        assert ask_admin(shown, f"workers/{stranger}:drain")[0] == 404


def test_a_schedule_is_paused_and_resumed(visitor: Visit, shown: Service) -> None:
    unlock(visitor)
    settle(visitor, "/admin")
    page = visitor.page
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.get_by_text("reload, paused")).to_be_visible()
    page.reload()
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.get_by_text("reload, next")).to_be_visible()
    assert ask_admin(shown, "schedules/none:pause")[0] == 404


def test_warnings_of_all_processes_are_shown(visitor: Visit, shown: Service) -> None:
    """The master logs that a runner has died, and any worker shows it."""
    unlock(visitor)
    os.kill(shown.runners[0], signal.SIGKILL)
    settle(visitor, "/admin")
    expect(visitor.page.get_by_role("rowheader", name="Runner died").first).to_be_visible()


def test_a_version_is_promoted_and_rolled_back(visitor: Visit, shown: Service) -> None:
    unlock(visitor)
    settle(visitor, "/models/diabetes/versions")
    page = visitor.page
    live = page.locator("tr", has=page.locator(".pill.live")).locator("th")
    expect(live).to_have_text("2")
    page.get_by_role("button", name="Promote").click()
    expect(page.get_by_role("dialog")).to_contain_text("Make version 1 live?")
    page.get_by_role("button", name="No").click()
    page.get_by_role("button", name="Promote").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator(".notice")).to_have_text("Version 1 is live.")
    expect(live).to_have_text("1")
    page.get_by_role("button", name="Roll back to 2").click()
    page.get_by_role("button", name="Yes").click()
    expect(live).to_have_text("2")
    assert shown.get("/v1/models/diabetes")["version"] == "2"


def test_a_page_says_that_another_version_is_live(visitor: Visit, shown: Service) -> None:
    page = visitor.page
    page.goto("/models/diabetes")
    assert ask_admin(shown, "models/diabetes:rollback")[0] == 200
    expect(page.locator(".notice")).to_contain_text("is live now", timeout=60_000)
    assert ask_admin(shown, "models/diabetes:rollback")[0] == 200


def test_a_batch_becomes_a_job_whose_answers_are_downloaded(visitor: Visit, shown: Service, tmp_path: Path) -> None:
    example = shown.get("/v1/models/wine")["example"]
    header = ",".join(example)
    line = ",".join(map(str, example.values()))
    page = visitor.page
    page.goto("/models/wine/batch")
    file = tmp_path / "rows.csv"
    file.write_text(f"{header},more\n{line},1\n")
    page.locator("#file").set_input_files(file)
    expect(page.locator("#found")).to_contain_text("Not features of this model: more")
    file = tmp_path / "wrong.csv"
    file.write_text("\n".join([header, line, line.replace("13.1", "much"), *[line] * 998]) + "\n")
    page.locator("#file").set_input_files(file)
    expect(page.locator("#found")).to_contain_text("1,000 rows, 13 columns")
    expect(page.locator("#found")).to_contain_text("line 3: alcohol must be a number")
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("#found")).to_contain_text("line 3: alcohol must be a number")
    file = tmp_path / "right.csv"
    file.write_text("\n".join([header, *[line] * 1000]) + "\n")
    page.locator("#file").set_input_files(file)
    expect(page.locator("#found")).to_contain_text("All rows are as they should be.")
    expect(page.locator("#found")).to_contain_text("It will take about")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/*")
    expect(page.locator(".pill")).to_have_text("done")
    page.reload()
    expect(page.get_by_role("heading", name="The first answers")).to_be_visible()
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download CSV").click()
    saved = downloading.value.path().read_text().splitlines()
    assert len(saved) == 1001
    assert [one for one in visitor.complaints if "422" not in one] == []
    visitor.complaints.clear()


def test_a_large_batch_is_refused_by_line_and_followed_while_workers_are_killed(
    visitor: Visit, shown: Service, tmp_path: Path
) -> None:
    example = shown.get("/v1/models/mortgage")["example"]
    name = next(name for name, value in example.items() if isinstance(value, float))
    row, wrong = (",".join(map(str, one.values())) for one in (example, example | {name: "much"}))
    lines = [",".join(example), *[row] * 100_000]
    lines[90_000] = wrong
    page, file = visitor.page, tmp_path / "large.csv"
    file.write_text("\n".join(lines) + "\n")
    page.goto("/models/mortgage/batch?operation=explain")
    page.locator("#file").set_input_files(file)
    expect(page.locator("#found")).to_contain_text(re.compile("about (99|100),"))
    expect(page.locator("#found")).to_contain_text(re.compile(r"The first [\d,]+ rows are as they should be"))
    page.get_by_role("button", name="Start the job").click()
    expect(page.locator("#found")).to_have_text(f"line 90001: {name} must be a number")
    lines[90_000] = row
    file.write_text("\n".join(lines) + "\n")
    page.locator("#file").set_input_files(file)
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/jobs/*")
    chunks = page.locator("dt", has_text="chunks").locator("+ dd")
    expect(chunks).not_to_have_text(re.compile("^0 of"))
    for worker in shown.workers:
        os.kill(worker, signal.SIGKILL)
    expect(page.locator(".notice")).to_contain_text("does not answer")
    expect(page.locator(".notice")).to_have_count(0)
    before = chunks.inner_text()
    expect(chunks).not_to_have_text(before)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Yes").click()
    expect(page.locator(".pill")).to_have_text("cancelled")
    assert all("422" in one or "ERR_" in one for one in visitor.complaints)
    visitor.complaints.clear()


def test_the_last_logged_predictions_are_rows_of_importance(visitor: Visit, shown: Service) -> None:
    instances = [shown.get("/v1/models/diabetes")["example"]] * 30
    body = {"instances": instances}
    sent = httpx.post(f"{shown.address}/v1/models/diabetes:predict", json=body, trust_env=False)
    assert sent.status_code == 200
    assert eventually(lambda: len(shown.get("/v1/predictions?model=diabetes")["predictions"]) >= 30)
    page = visitor.page
    page.goto("/models/diabetes/importance")
    page.get_by_role("button", name="The last logged predictions").click()
    page.wait_for_url("**/jobs/*")
    page.get_by_role("link", name="Show what matters").click()
    expect(page.locator(".rows")).to_contain_text("rows of a job")
    expect(page.get_by_text("A point for each row.")).to_be_visible()


def test_the_reference_is_tried_out(visitor: Visit) -> None:
    page = visitor.page
    page.goto("/docs")
    page.get_by_role("searchbox").fill("wine:predict")
    operation = page.locator("details.operation:visible")
    expect(operation).to_have_count(1)
    operation.locator("summary").click()
    operation.get_by_role("button", name="Send").click()
    expect(operation.locator("output")).to_contain_text("200 OK")
    expect(operation.locator("output")).to_contain_text('"probabilities"')


def test_an_entity_is_followed(visitor: Visit, shown: Service) -> None:
    def record(value: float) -> None:
        body = {"values": {"size": value}}
        assert httpx.post(f"{shown.address}/v1/entities/one/records", json=body, trust_env=False).status_code == 201

    record(1.0)
    page = visitor.page
    page.goto("/entities")
    page.get_by_role("link", name="one", exact=True).click()
    expect(page.locator(".card .outcome")).to_have_text("2")
    expect(page.locator("tbody tr")).to_have_count(1)
    record(21.0)
    expect(page.locator(".card .outcome")).to_have_text("42")
    expect(page.locator("tbody tr")).to_have_count(2)


def test_whoever_has_no_model_yet_is_told_how_to_add_one_and_shown_it(
    chromium: Browser, few_models: Path, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    environ = {"MODEL_DIR": str(root), "JOB_RUNNERS": "1", "GRACEFUL_TIMEOUT_SECONDS": "1"}
    with Service(environ, (str(FORKSERVE), "serve")) as service, visit(chromium, service.address) as visitor:
        assert "serves no model yet" in service.log()
        visitor.page.goto("/")
        expect(visitor.page.get_by_text("forkserve add model.joblib")).to_be_visible()
        assert visitor.violations() == []
        root.mkdir(exist_ok=True)
        shutil.copytree(few_models / "wine", root / "wine")
        expect(visitor.page.get_by_role("link", name="wine")).to_be_visible(timeout=60_000)
        assert visitor.complaints == []


def test_a_service_that_starts_anew_is_shown_again(chromium: Browser, few_models: Path) -> None:
    environ = {
        "MODEL_DIR": str(few_models),
        "ADMIN_TOKEN": ADMIN_TOKEN,
        "WEB_CONCURRENCY": "1",
        "GRACEFUL_TIMEOUT_SECONDS": "1",
    }
    with Service(environ) as service:
        address = service.address
        with visit(chromium, address) as visitor:
            unlock(visitor)
            settle(visitor, "/admin")
            service.stop()
            expect(visitor.page.locator(".notice")).to_contain_text("does not answer")
            with Service(environ | {"PORT": address.rpartition(":")[2]}) as again:
                expect(visitor.page.locator(".notice")).to_have_count(0)
                expect(visitor.page.get_by_text(str(again.workers[0]), exact=True)).to_be_visible()

"""Drift of live rows over HTTP: what is counted, how it is shown, and when there is an alert."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from harness.apps import ask_app
from registry.estimator import Outputs
from registry.model import LoadedModel
from registry.store.add import add_version
from registry.store.manifest import read_manifest, write_manifest
from serving.app import Application, build, build_alerts, renew
from serving.monitoring.outputs import OutputReader
from serving.predict.observer import Answered
from serving.predict.operation import Verb
from serving.settings import Settings

RNG = np.random.default_rng(5)
ROWS = 600
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def add_models(root: Path) -> None:
    """A model of every kind of feature, of labels with a comma; a regression; one of two targets; an old one."""
    table = pd.DataFrame(
        {
            "size": RNG.normal(10.0, 2.0, ROWS),
            "kind": RNG.choice(["a", "b", "c"], ROWS),
            "note": [f"note {'word ' * (n % 7)}" for n in range(ROWS)],
        }
    )
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["kind"]), (TfidfVectorizer(), "note"), ("passthrough", ["size"])
    )
    target = np.where(table["size"] > 10, "large, heavy", "small")
    mixed = make_pipeline(encode, LogisticRegression(max_iter=1000)).fit(table, target)
    add_version(root, "mixed", mixed, table, margin=100)
    numbers = pd.DataFrame(RNG.normal(size=(ROWS, 2)), columns=["a", "b"])
    add_version(root, "line", LinearRegression().fit(numbers, numbers["a"]), numbers, margin=100)
    both = numbers.assign(high=numbers["a"] > 0, wide=numbers["b"] > 1)
    pair = MultiOutputClassifier(LogisticRegression()).fit(numbers, both[["high", "wide"]])
    add_version(root, "pair", pair, numbers, margin=100, targets=["high", "wide"])
    old = add_version(root, "old", LinearRegression().fit(numbers, numbers["a"]), numbers)
    write_manifest(root / "old" / "1", msgspec.structs.replace(old.manifest, distributions=None))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    add_models(root)
    return root


def answered(model: LoadedModel, verb: Verb, answers: Sequence[bytes] | Outputs) -> Answered:
    return Answered(model, verb, model.background[: len(answers)], answers, ["miss"] * len(answers), 0.001)


def reader_of(model: LoadedModel) -> Callable[[Verb, Sequence[bytes] | Outputs], Outputs]:
    """Reads the answers of one request."""
    reader = OutputReader(model)
    return lambda verb, answers: reader.read([answered(model, verb, answers)])


@pytest.fixture
def app(root: Path, tmp_path: Path) -> Iterator[Application]:
    settings = Settings(model_dir=root, data_dir=tmp_path, access_log=False)
    app = build(settings, build_alerts(settings))
    app.service.shared.book.enter_alone()
    app.service.batcher.start()
    yield app
    app.service.batcher.stop()


def ask(app: Application, name: str, instances: list[Any], verb: str = "predict", **options: Any) -> None:
    reply = ask_app(app, "POST", f"/v1/models/{name}:{verb}", json={"instances": instances}, **options)
    assert reply.status_code == 200, reply.text


def drift(app: Application, name: str, window: str = "1h") -> Any:
    reply = ask_app(app, "GET", f"/v1/models/{name}/drift", params={"window": window})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_every_kind_of_feature_is_counted_in_the_bins_of_the_sample(app: Application) -> None:
    kinds = ["a", "a", "b", "z"]
    ask(app, "mixed", [{"size": 10.0, "kind": kind, "note": "note " + "word " * n} for n, kind in enumerate(kinds)])
    found = drift(app, "mixed")
    assert (found["rows"], found["sample_rows"], found["reason"]) == (4, ROWS, None)
    kind, size, note = (found["features"][name] for name in ("kind", "size", "note"))
    live = dict(zip(kind["values"], kind["live"]["shares"], strict=True))
    assert live == {"a": 0.5, "b": 0.25, "c": 0.0}
    assert (kind["live"]["other"], kind["live"]["unseen"]) == (0.25, 0.25)
    assert sum(size["live"]["shares"]) == 1.0
    assert size["edges"][size["live"]["shares"].index(1.0)] <= 10.0
    lengths = {value: share for value, share in zip(note["values"], note["live"]["shares"], strict=True) if share}
    assert lengths == {5: 0.25, 10: 0.25, 15: 0.25, 20: 0.25}


def test_labels_and_values_that_were_answered_are_counted(app: Application) -> None:
    rows = [[value, 0.0] for value in (-2.0, 0.1, 0.2, 9.0)]
    ask(app, "line", rows[:1])
    ask(app, "line", rows[1:])
    output = drift(app, "line")["output"]
    assert output["live"]["above"] == 0.25
    assert [share for share in output["live"]["shares"] if share] == [0.25, 0.5, 0.25]
    sizes = [{"size": size, "kind": "a", "note": "note"} for size in (2.0, 3.0, 20.0, 4.0)]
    ask(app, "mixed", sizes[:1])
    ask(app, "mixed", sizes[1:])
    output = drift(app, "mixed")["output"]
    assert dict(zip(output["values"], output["live"]["shares"], strict=True)) == {"large, heavy": 0.25, "small": 0.75}


def test_the_labels_of_each_target_are_counted(app: Application) -> None:
    ask(app, "pair", [[2.0, -2.0], [3.0, -3.0], [-3.0, 3.0]])
    found = drift(app, "pair")["outputs"]
    shares = {name: dict(zip(one["values"], one["live"]["shares"], strict=True)) for name, one in found.items()}
    assert shares["high"] == pytest.approx({True: 0.6667, False: 0.3333})
    assert shares["wide"] == pytest.approx({True: 0.3333, False: 0.6667})


def test_outputs_are_read_from_every_kind_of_answer(app: Application) -> None:
    registry = app.service.registry
    for name in ("mixed", "line", "pair"):
        model = registry.get(name)
        rows = model.background[:20]
        outputs = model.outputs(rows)
        answers = [msgspec.json.encode(one) for one in model.predict(rows)]
        read = reader_of(model)
        expected = read("predict", outputs)
        np.testing.assert_array_equal(read("predict", answers), expected)
        for index, answer in enumerate(answers):
            np.testing.assert_array_equal(read("predict", [answer])[0], expected[index])
        explained = [msgspec.json.encode(one) for one in model.explain(rows)]
        if name == "line":
            assert len(read("explain", explained)) == 0
        else:
            np.testing.assert_array_equal(read("explain", explained), expected)


def test_predictions_with_an_interval_are_counted(app: Application) -> None:
    read = reader_of(app.service.registry.get("line"))
    answer = b'{"prediction":2.5,"interval":[1.0,3.0]}'
    assert read("predict", [answer]).tolist() == [[2.5]]
    assert read("predict", [b"1.5", answer]).tolist() == [[1.5], [2.5]]


def test_answers_of_several_requests_are_read_together(app: Application) -> None:
    for name in ("mixed", "line", "pair"):
        model = app.service.registry.get(name)
        rows = model.background[:6]
        answers = [msgspec.json.encode(one) for one in model.predict(rows)]
        explained = [msgspec.json.encode(one) for one in model.explain(rows)]
        outputs = model.outputs(rows)
        several = [
            answered(model, "predict", answers[:2]),
            answered(model, "explain", explained[2:3]),
            answered(model, "predict", outputs[3:5]),
            answered(model, "predict", answers[5:]),
        ]
        expected = OutputReader(model).read([answered(model, "predict", outputs)])
        if name == "line":
            expected = np.delete(expected, 2, axis=0)
        found = OutputReader(model).read(several)
        assert sorted(found.tolist()) == sorted(expected.tolist())


def test_rows_count_once_whatever_is_asked_about_them(app: Application) -> None:
    ask(app, "line", [[1.0, 2.0]])
    ask(app, "line", [[1.0, 2.0]])  # from the cache
    ask(app, "line", [[1.0, 2.0]], "explain")
    column = {"shape": [2, 1], "datatype": "FP64", "data": [1.0, 2.0]}
    inputs = [{"name": name, **column} for name in ("a", "b")]
    body = {"inputs": inputs, "outputs": [{"name": "explain"}, {"name": "predict"}]}
    reply = ask_app(app, "POST", "/v2/models/line/infer", json=body)
    assert reply.status_code == 200, reply.text
    found = drift(app, "line")
    assert (found["rows"], found["output"]["rows"]) == (5, 4)


def test_rows_that_are_refused_do_not_count(app: Application) -> None:
    reply = ask_app(app, "POST", "/v1/models/line:predict", json={"instances": [[1.0, "b"]]})
    assert reply.status_code == 422
    assert drift(app, "line")["rows"] == 0


def test_a_version_without_distributions_says_why_nothing_is_known(app: Application) -> None:
    ask(app, "old", [[1.0, 2.0]])
    found = drift(app, "old")
    assert (found["rows"], found["features"], found["output"], found["psi"]) == (0, {}, None, None)
    assert found["reason"].endswith("run: forkserve describe old 1 DATA.csv")


def test_a_window_that_is_not_measured_is_refused(app: Application) -> None:
    reply = ask_app(app, "GET", "/v1/models/line/drift", params={"window": "2h"})
    assert reply.status_code == 422
    assert reply.json()["detail"] == "window must be one of 1h, 1d, latest"


def test_without_windows_nothing_is_counted(root: Path, tmp_path: Path) -> None:
    settings = Settings(model_dir=root, data_dir=tmp_path, drift_window=())
    app = build(settings, build_alerts(settings))
    assert app.service.observers == ()
    found = ask_app(app, "GET", "/v1/models/line/drift").json()
    assert (found["windows"], found["reason"]) == ([], "rows are not counted: DRIFT_WINDOW is empty")


def send(app: Application, rows: int, shift: float = 0.0) -> None:
    for _ in range(rows // 100):
        ask(app, "line", RNG.normal((0.0, shift), size=(100, 2)).tolist())


def alerts(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The alerts since the last call."""
    lines = [line for line in capsys.readouterr().out.splitlines() if "Alert " in line]
    return [ANSI.sub("", line) for line in lines]


def is_alerted(app: Application) -> bool:
    return bool(drift(app, "line", "latest")["features"]["b"]["alert"])


def test_there_is_one_alert_until_the_drift_has_been_over(app: Application, capsys: pytest.CaptureFixture[str]) -> None:
    send(app, 1000)
    assert alerts(capsys) == []
    send(app, 600, shift=3.0)
    (told,) = alerts(capsys)
    assert "drift line" in told
    assert re.search(r"Drift of line 1: b \d+\.\d\d \(PSI of the latest \d{3} rows, above 0\.2\)", told)
    send(app, 1000, shift=3.0)
    assert is_alerted(app)
    assert alerts(capsys) == []
    send(app, 700)
    assert not is_alerted(app)
    send(app, 600, shift=3.0)
    assert len(alerts(capsys)) == 1


def test_an_alert_is_not_over_before_the_index_is_far_below_what_it_had_exceeded(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = app.service.drift.of(app.service.registry.get("line"))
    assert version is not None
    found: list[bool] = []
    columns = version.bins.table[:, 0]
    monkeypatch.setattr(version.bins, "chance", np.zeros_like)
    for index in (0.19, 0.25, 0.18, 0.25, 0.16, 0.14, 0.18, 0.25):
        measured = np.full_like(columns, 500.0), np.full_like(columns, index)
        monkeypatch.setattr(version.bins, "measure", lambda _counts, measured=measured: measured)
        send(app, 600)
        found.append(is_alerted(app))
    assert found == [False, True, True, True, True, False, False, True]


def test_fewer_rows_than_an_alert_is_about_raise_none(app: Application, capsys: pytest.CaptureFixture[str]) -> None:
    send(app, 400, shift=9.0)
    assert alerts(capsys) == []
    send(app, 200, shift=9.0)
    assert len(alerts(capsys)) == 1


def test_windows_slide(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    now = monotonic()
    minutes = iter(range(1, 10_000))
    monkeypatch.setattr("serving.monitoring.drift.monotonic", lambda: now)

    def rows_after(last: int) -> tuple[int, int]:
        """The rows of the last hour and day after so many minutes, at each of which the service ticks."""
        nonlocal now
        for minute in minutes:
            now += 60.0
            app.tick()
            if minute == last:
                break
        return drift(app, "line", "1h")["rows"], drift(app, "line", "1d")["rows"]

    send(app, 200)
    assert rows_after(50) == (200, 200)
    send(app, 300)
    assert rows_after(59) == (500, 500)
    assert rows_after(65) == (300, 500)
    assert rows_after(116) == (0, 500)
    assert rows_after(24 * 60 + 50 + 2 * 60) == (0, 0)


def test_a_reload_loses_no_count_and_a_version_that_is_described_anew_starts_anew(root: Path, tmp_path: Path) -> None:
    models = shutil.copytree(root, tmp_path / "models")
    settings = Settings(model_dir=models, data_dir=tmp_path, access_log=False)
    app = build(settings, build_alerts(settings))
    app.service.shared.book.enter_alone()
    send(app, 100)
    app, refused = renew(app)
    assert refused == ()
    send(app, 100)
    assert drift(app, "line")["rows"] == 200
    manifest = read_manifest(models / "line" / "1")
    assert manifest.distributions is not None
    fewer = msgspec.structs.replace(manifest.distributions, rows=599)
    write_manifest(models / "line" / "1", msgspec.structs.replace(manifest, distributions=fewer))
    app, _ = renew(app)
    assert (drift(app, "line")["rows"], drift(app, "line")["sample_rows"]) == (0, 599)

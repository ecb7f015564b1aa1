"""Models that people bring, added and asked as they would be: `python -m bench.zoo` prints a table for each part.

`classes`: every class of scikit-learn that predicts. `models`: some 650 pipelines, wrappers, boosters, kinds of columns
and texts. Each is fitted, saved, and given to `forkserve add` with a CSV of its input, in a process of its own; then
the rows that were held out are asked as JSON, and the answers compared with the estimator's own. `versions`: pickles of
other versions of scikit-learn, made in environments of their own (they are installed below `--environments`).
`wide`: how long a linear model of 500 columns takes to be added and loaded. `speed`: requests a second beside plain
FastAPI that calls the estimator; wrk must be on PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

from serving.process.child import limit_numeric_threads

limit_numeric_threads(os.environ)

import joblib  # noqa: E402 - numpy counts the threads it may have when it is imported
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from sklearn import ensemble, feature_extraction, linear_model, pipeline, preprocessing  # noqa: E402

from bench import wrk, zoo_models  # noqa: E402
from bench.models import forest_of_100  # noqa: E402
from bench.peers.catalogue import PLAIN  # noqa: E402
from bench.peers.starting import aim  # noqa: E402
from bench.table import Table  # noqa: E402
from bench.zoo_models import TARGET, Animal, Make  # noqa: E402
from bench.zoo_steps import Clip  # noqa: E402
from harness.service import Service  # noqa: E402
from registry.errors import RegistryError  # noqa: E402
from registry.registry import load_one  # noqa: E402
from registry.store.add import add_version  # noqa: E402
from registry.store.loader import load_version  # noqa: E402
from serving.cli.parser import parser  # noqa: E402
from serving.errors import ServingError  # noqa: E402
from serving.settings import Settings  # noqa: E402
from serving.telemetry import logs  # noqa: E402

PARTS = ("classes", "models", "wide", "speed", "versions")
CONNECTIONS = 20
OLD_MODELS = Path(__file__).with_name("zoo_old_models.py")
OLD_VERSIONS = {
    "1.3.2": "<2",
    "1.4.2": "<2",
    "1.5.2": "<2.3",
    "1.6.1": "<2.3",
    "1.7.2": "<2.4",
    "1.8.0": "<2.5",
    "1.9.0": "<2.6",
}
"""Releases of scikit-learn, and the versions of numpy that they work with."""

STEPS = Path(__file__).with_name("zoo_steps.py")
SECONDS = 180
CLOSE = 1e-13
PROCESSES = 2


@dataclass
class Found:
    """What became of one model; `far` is the largest relative difference to the estimator's own numbers."""

    added: bool = False
    served: bool = False
    wrong: int = 0
    far: float = 0.0
    compiled: bool = False
    explained: str = "no"
    reason: str = ""


def try_animal(make: Make, place: Path) -> Found:
    """Fit, add, load and ask one model in the directory `place`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            animal = make()
        except Exception as error:  # noqa: BLE001 - the zoo is to be mended, not the product
            return Found(reason=f"NOT FITTED {type(error).__name__}: {error}")
        found = Found()
        try:
            _ask(found, animal, place)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            found.reason = f"{type(error).__name__}: {error}"
        return found


def _ask(found: Found, animal: Animal, place: Path) -> None:
    animal.table.to_csv(place / "table.csv", index=False)
    joblib.dump(animal.estimator, place / "model.joblib")
    status, said = add(place, animal.options)
    if status:
        found.reason = said.strip().splitlines()[-1]
        return
    found.added = True
    model = load_one(place / "models", "animal")
    found.compiled = bool(model.compiled)
    if model.explainer is not None:
        found.explained = "job" if model.explainer.jobs_only else model.explainer.method
    instances = sent(animal.table.drop(columns=TARGET).iloc[-zoo_models.HELD_OUT :])
    rows = model.schema.rows([[one[feature] for feature in model.schema.names] for one in instances])
    answers = json.loads(json.dumps(model.predict(rows)))
    found.served = len(answers) == len(instances)
    compare(found, animal, answers)


def add(place: Path, options: Iterable[str]) -> tuple[int, str]:
    """`forkserve add` of the files in `place`: its status, and what it printed."""
    command = ["add", str(place / "model.joblib"), "--name", "animal", "--data", str(place / "table.csv")]
    arguments = parser().parse_args([*command, "--target", TARGET, *options])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.chdir(place):
        try:
            status = arguments.run(arguments, Settings.from_env({"MODEL_DIR": str(place / "models")}))
        except (RegistryError, ServingError) as error:
            return 1, str(error)
    return status, printed.getvalue()


def sent(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as a client has them in JSON."""
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records", date_format="iso", double_precision=15))
    exact = table.astype(object).where(table.notna(), None)
    return [
        {
            column: one[column] if not isinstance(exact.at[index, column], float) else exact.at[index, column]
            for column in one
        }
        for index, one in zip(table.index, rows, strict=True)
    ]


def compare(found: Found, animal: Animal, answers: list[Any]) -> None:
    """Count the answers that are not the estimator's, and see how far numbers are apart."""
    estimator, inputs = animal.estimator, animal.inputs
    labels = np.asarray(estimator.predict(inputs))
    labels = labels.reshape(len(inputs), -1)
    shares = None
    if hasattr(estimator, "predict_proba"):
        shares = estimator.predict_proba(inputs)
    for index, answer in enumerate(answers):
        given = numbers_and_labels(answer)
        expected = list(labels[index])
        if shares is not None and not isinstance(shares, list):
            expected += list(shares[index])
        wrong = 0
        for one in expected:
            number = not isinstance(one, str) and np.isreal(one)
            near = [abs(float(one) - other) / max(1.0, abs(float(one))) for other in given[0]] if number else []
            if str(one) in given[1] or (near and min(near) <= 1e-9):
                found.far = max(found.far, min(near) if near and str(one) not in given[1] else 0.0)
            else:
                wrong = 1
        found.wrong += wrong


def numbers_and_labels(answer: Any) -> tuple[list[float], set[str]]:
    """All numbers of an answer, and all labels as text."""
    numbers: list[float] = []
    labels: set[str] = set()

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, name)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, key)
        elif isinstance(value, str) or key == "label":
            labels.add(str(value))
            if not isinstance(value, str):
                labels.add(str(float(value)))
                numbers.append(float(value))
        elif value is not None:
            numbers.append(float(value))

    walk(answer, "")
    return numbers, labels


def _in_child(make: Make, writing: Connection) -> None:
    with tempfile.TemporaryDirectory(prefix="zoo-") as directory:
        place = Path(directory)
        shutil.copy(STEPS, place / "own_steps.py")
        logs.configure("error")
        log = (place / "log").open("wb")
        os.dup2(log.fileno(), 2)
        writing.send(asdict(try_animal(make, place)))


def run(animals: Iterable[tuple[str, Make]]) -> Iterator[tuple[str, Found]]:
    """Each model in a process of its own, some at a time; what a process does not tell is a finding, too."""
    context = multiprocessing.get_context("fork")
    running: list[tuple[str, Any, Connection, float]] = []
    waiting = iter(animals)
    while True:
        while len(running) < PROCESSES and (following := next(waiting, None)) is not None:
            reading, writing = context.Pipe(duplex=False)
            process = context.Process(target=_in_child, args=(following[1], writing))
            process.start()
            writing.close()
            running.append((following[0], process, reading, time.monotonic() + SECONDS))
        if not running:
            return
        for entry in running[:]:
            name, process, reading, deadline = entry
            if reading.poll(0.05) or not process.is_alive() or time.monotonic() > deadline:
                running.remove(entry)
                yield name, _result(process, reading, deadline)


def _result(process: Any, reading: Connection, deadline: float) -> Found:
    try:
        if time.monotonic() > deadline:
            return Found(reason=f"takes more than {SECONDS} s")
        return Found(**reading.recv())
    except EOFError:
        process.join()
        return Found(reason=f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def report(title: str, results: dict[str, Found], *, listed: bool) -> None:
    """The totals of a part; with `listed` a line for each model, otherwise for those that are not served or wrong."""
    every = list(results.values())
    fitted = [one for one in every if not one.reason.startswith("NOT FITTED")]
    lines = Table(
        "", "added", "served", "wrong", "compiled", "equal bits", "within 1e-13", "explained at once", "in jobs"
    )
    served = [one for one in fitted if one.served]

    def share(count: int) -> str:
        return f"{count} ({count / max(1, len(fitted)):.0%})"

    lines.add(
        title,
        share(sum(one.added for one in fitted)),
        share(len(served)),
        sum(one.wrong > 0 for one in served),
        share(sum(one.compiled for one in served)),
        sum(one.far == 0 for one in served),
        sum(one.far <= CLOSE for one in served),
        share(sum(one.explained not in ("no", "job") for one in served)),
        sum(one.explained == "job" for one in served),
    )
    details = Table("model", "served", "wrong", "compiled", "explained", "apart", "reason")
    for name, one in results.items():
        if listed or not one.served or one.wrong or one.far > CLOSE:
            details.add(name, one.served, one.wrong, one.compiled, one.explained, f"{one.far:.0e}", one.reason[:160])
    print(details)
    print()
    print(lines)
    reasons = Counter(one.reason[:80] for one in fitted if one.reason)
    for reason, count in reasons.most_common(12):
        print(f"{count:5} {reason}")
    print(flush=True)


def wide() -> None:
    """Seconds to add and to load a linear model of 500 columns."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(400, 500)), columns=[f"x{index}" for index in range(500)])
    target = (table.sum(axis=1) > 0).astype(int)
    scaled = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())
    lines = Table("500 columns, on a frame", "add (s)", "load (s)", "compiled")
    for name, estimator in {"logistic": scaled, "forest": ensemble.RandomForestClassifier(50, random_state=0)}.items():
        estimator.fit(table, target)
        with tempfile.TemporaryDirectory() as directory:
            started = time.perf_counter()
            add_version(Path(directory), "wide", estimator, table)
            added = time.perf_counter()
            model = load_version(Path(directory), Path(directory, "wide", "1"))
            seconds = time.perf_counter() - added
        lines.add(name, f"{added - started:.2f}", f"{seconds:.2f}", model.compiled)
    print(lines, flush=True)


def text_classifier(root: Path) -> None:
    """Add a classifier of texts with 20,000 words as `text` below `root`."""
    random = np.random.default_rng(0)
    words = np.array([f"word{index}" for index in range(20_000)])
    chosen = random.zipf(1.3, size=(4000, 40)) % len(words)
    texts = pd.Series([" ".join(words[row]) for row in np.vstack([chosen, np.arange(20_000).reshape(-1, 40)])])
    target = np.where(random.random(len(texts)) < 0.5, "ham", "spam")
    vectorizer = feature_extraction.text.TfidfVectorizer()
    classifier = pipeline.make_pipeline(vectorizer, linear_model.LogisticRegression(max_iter=50)).fit(texts, target)
    add_version(root, "text", classifier, texts[:300].to_frame("note"))


def forest_behind_a_step(root: Path) -> None:
    """Add a forest of 100 trees behind a transformer of one's own as `forest` below `root`."""
    table, target = forest_of_100()
    classifier = ensemble.RandomForestClassifier(100, max_depth=12, random_state=0)
    add_version(root, "forest", pipeline.make_pipeline(Clip(), classifier).fit(table.to_numpy(), target), table[:500])


def speed(seconds: float) -> None:
    """Requests a second beside plain FastAPI that calls the estimator, over 20 connections."""
    lines = Table("model", "who", "requests/s", "x", "p50 ms", "p99 ms", "refused or lost")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        text_classifier(root)
        forest_behind_a_step(root)
        for name in ("text", "forest"):
            target = _shot(root, name, PLAIN.path, PLAIN.body)
            with PLAIN.running(sys.executable, root, name) as address:
                plain = _fire(address, target, seconds)
            lines.add(name, PLAIN.who, f"{plain.rate:.0f}", "", *_times(plain))
            target = _shot(root, name, f"/v1/models/{name}:predict", lambda one, _manifest: {"instances": [one]})
            environ = {"MODEL_DIR": str(root), "MAX_REQUESTS": "0", "ACCESS_LOG": "false"}
            with Service(environ) as service:
                ours = _fire(service.address, target, seconds)
            lines.add(name, "forkserve", f"{ours.rate:.0f}", f"{ours.rate / plain.rate:.1f}", *_times(ours))
    print(lines, flush=True)


def _shot(root: Path, name: str, path: str, body: Callable[[Any, Any], Any]) -> wrk.Shot:
    """A row that is new in every request: a number of it, or a word of its text."""
    if name != "text":
        return aim(root, name, path, body)
    manifest = json.loads((root / name / "1" / "manifest.json").read_text())
    ((feature, text),) = manifest["example"].items()
    return wrk.Shot(path, json.dumps(body({feature: f"{text} @@"}, manifest)), 0.0, 1.0)


def _fire(address: str, target: wrk.Shot, seconds: float) -> wrk.Load:
    wrk.run(address, target, connections=CONNECTIONS, seconds=1)
    return wrk.run(address, target, connections=CONNECTIONS, seconds=seconds, seed=1_000_000)


def _times(load: wrk.Load) -> tuple[str, str, int]:
    return f"{load.p50 * 1e3:.1f}", f"{load.p99 * 1e3:.1f}", load.refused + load.lost


def versions(place: Path, python: str) -> None:
    """Pickles of other versions of scikit-learn: added, answered wrongly, and whether refusals name both versions."""
    lines = Table("scikit-learn", "pickles", "refused", "naming both versions", "served", "wrong")
    here = importlib.metadata.version("scikit-learn")
    for version, numpy in OLD_VERSIONS.items():
        fitted = _fit_elsewhere(place, python, version, numpy)
        refused = naming = wrong = 0
        for artefact in fitted:
            with tempfile.TemporaryDirectory(prefix="zoo-") as directory:
                status, said = _add_pickle(Path(directory), artefact)
                refused += status != 0
                naming += status != 0 and version in said and here in said
                if status == 0:
                    wrong += not _answers_as_it_did(Path(directory), artefact)
                elif not (version in said and here in said):
                    print(f"{version} {artefact.stem}: {said.strip()[:200]}")
        lines.add(version, len(fitted), refused, naming, len(fitted) - refused, wrong)
    print(lines, flush=True)


def _fit_elsewhere(place: Path, python: str, version: str, numpy: str) -> list[Path]:
    """Artefacts of a version of scikit-learn, fitted in an environment of its own that is kept in `place`."""
    environment, fitted = place / f"scikit-learn-{version}", place / f"fitted-{version}"
    if not environment.exists():
        subprocess.run([python, "-m", "venv", str(environment)], check=True)
        packages = [f"scikit-learn=={version}", f"numpy{numpy}", "pandas"]
        subprocess.run([str(environment / "bin" / "pip"), "install", "--quiet", *packages], check=True)
    if not fitted.exists():
        subprocess.run([str(environment / "bin" / "python"), str(OLD_MODELS), str(fitted)], check=True)
    return sorted(fitted.glob("*.joblib"))


def _add_pickle(place: Path, artefact: Path) -> tuple[int, str]:
    shutil.copy(artefact, place / "model.joblib")
    shutil.copy(artefact.with_suffix(".csv"), place / "table.csv")
    return add(place, ())


def _answers_as_it_did(place: Path, artefact: Path) -> bool:
    """Return whether the answers are those that the estimator gave where it was fitted."""
    model = load_one(place / "models", "animal")
    table = pd.read_csv(place / "table.csv").drop(columns=TARGET)
    answers = model.predict(model.schema.rows(table.to_numpy().tolist()))
    expected = json.loads(artefact.with_suffix(".json").read_text())
    for answer, (label, numbers) in zip(answers, expected, strict=True):
        found, labels = numbers_and_labels(answer)
        if label is not None and label not in labels:
            return False
        if not all(any(abs(one - other) <= 1e-9 * max(1.0, abs(one)) for other in found) for one in numbers):
            return False
    return True


def own_steps(directory: Path) -> ModuleType:
    """The module of steps of one's own, imported from a directory of its own."""
    shutil.copy(STEPS, directory / "own_steps.py")
    sys.path.insert(0, str(directory))
    return importlib.import_module("own_steps")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("parts", nargs="*", default=[*PARTS], help=", ".join(PARTS))
    arguments.add_argument("--only", default="", help="models whose name contains this")
    arguments.add_argument("--every", type=int, default=1, help="take each n-th model only")
    arguments.add_argument("--listed", action="store_true", help="a line for each model")
    arguments.add_argument("--seconds", type=float, default=5, help="of each load")
    arguments.add_argument("--environments", type=Path, help="a directory for environments of other versions")
    arguments.add_argument("--python", default=sys.executable, help="an interpreter (3.9 to 3.12) for those")
    options = arguments.parse_args()
    logs.configure("error")
    with tempfile.TemporaryDirectory() as directory:
        own = own_steps(Path(directory))
        animals = {"classes": zoo_models.classes(), "models": zoo_models.everything(own)}
        for part in options.parts:
            if part in animals:
                chosen = [animal for animal in animals[part] if options.only in animal[0]][:: options.every]
                report(part, dict(run(chosen)), listed=options.listed)
    if "wide" in options.parts:
        wide()
    if "speed" in options.parts:
        speed(options.seconds)
    if "versions" in options.parts:
        if options.environments is None:
            sys.exit("versions needs --environments")
        options.environments.mkdir(exist_ok=True)
        versions(options.environments, options.python)


if __name__ == "__main__":
    main()

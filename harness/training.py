"""A small model whose train.py does whatever a file beside it says, and how a service is asked to train it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression

from harness.jobs import Answer
from harness.service import ADMIN_TOKEN, Service
from registry.store.add import add_trained
from registry.training.script import Trained, record_script, write_script

MODE = "mode.txt"

SCRIPT = b'''"""Fits a line, or does what the file beside it says."""

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression

from forkserve import Trained
from harness.training import small_table


class OfItsOwn(LinearRegression):
    pass


def train(data):
    mode = (Path(__file__).parent / "mode.txt").read_text()
    table, split = small_table(), 80
    truth, kind = table["z"].to_numpy(), LinearRegression
    match mode.split():
        case ["raises"]:
            raise ValueError("the well is dry")
        case ["exits"]:
            sys.exit(3)
        case ["ends"]:
            os._exit(3)
        case ["nonsense"]:
            return {"estimator": None}
        case ["prints"]:
            print("a line that is no JSON", flush=True)
            os.write(1, b"another line\\n")
        case ["forks"]:
            forked = os.fork()
            if forked == 0:
                time.sleep(600)
                os._exit(0)
            (Path(__file__).parent / "forked.txt").write_text(str(forked))
        case ["threads"]:
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        case ["greedy"]:
            kept = [np.ones(1 << 24) for _ in range(1000)]
        case ["sleeps", seconds]:
            time.sleep(float(seconds))
        case ["worse"]:
            truth = truth[::-1]
        case ["renamed"]:
            table = table.rename(columns={"y": "why"})
        case ["flags"]:
            table["y"] = table["y"] > 0
        case ["own"]:
            kind = OfItsOwn
        case ["learns"]:
            known = data.outcomes.rename(columns={"outcome": "z"})[["x", "y", "z"]]
            table = pd.concat([known, table[80:]], ignore_index=True)
            truth = table["z"].to_numpy()
            split = len(known)
    features = table.drop(columns="z")
    estimator = kind().fit(features[:split].to_numpy(), truth[:split])
    assert list(data.outcomes) == ["x", "y", "outcome", "time"]
    return Trained(estimator=estimator, sample=table[:split], held_out=table[split:], target="z")
'''


def small_table() -> pd.DataFrame:
    """120 rows of a plane with some noise."""
    random = np.random.default_rng(3)
    table = pd.DataFrame(random.normal(size=(120, 2)), columns=["x", "y"])
    return table.assign(z=2 * table["x"] - table["y"] + random.normal(scale=0.1, size=120))


def add_small(root: Path, name: str = "small", script: bytes = SCRIPT) -> Path:
    """The directory of a model with one version, which can be trained anew."""
    table = small_table()
    estimator = LinearRegression().fit(table[["x", "y"]].to_numpy(), table["z"])
    record = record_script(script)
    trained = Trained(estimator=estimator, sample=table[:80], held_out=table[80:], target="z")
    add_trained(root, name, trained, training=record)
    write_script(root / name, script)
    (root / name / MODE).write_text("well")
    return root / name


def trigger(service: Service, model: str = "small") -> Answer:
    """Ask for a training as the admin does."""
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    request = urllib.request.Request(f"{service.address}/api/admin/models/{model}:train", b"", headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def result_of(service: Service, job: Any) -> Any:
    """The result of a job that is done."""
    assert job["state"] == "done", job
    with urllib.request.urlopen(service.address + job["result"], timeout=60) as answer:
        return json.load(answer)

"""The `forkserve` command, run as its users run it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import socket
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.train import DEMOS
from registry.errors import CannotAdd
from registry.store.add import add_version
from registry.store.tables import read_table
from serving.cli.parser import COMMANDS, parser
from tests.conftest import Run


def test_without_a_command_it_shows_them_all(run: Run) -> None:
    shown = run()
    assert shown.returncode == 0
    assert all(command.run.__name__.replace("_", "-") in shown.stdout for command in COMMANDS)
    assert run("--version").stdout == f"forkserve {importlib.metadata.version('forkserve')}\n"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["sevre"], "unknown: sevre; did you mean serve?"),
        (["entites", "list"], "did you mean entities?"),
        (["xyzzy"], "unknown: xyzzy; choose one of serve, worker, "),
        (["verify", "--sceonds", "3"], "unrecognized arguments: --sceonds"),
        (["explain", "churn", "--row", "row.json", "--vesrion=2"], "did you mean --version?"),
    ],
)
def test_what_is_misspelt_is_named_with_what_may_be_meant(run: Run, arguments: list[str], meant: str) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2
    assert meant in refused.stderr


def test_a_port_in_use_is_said_before_anything_is_loaded(run: Run, linear: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = run("serve", MODEL_DIR=linear, PORT=str(port))
    assert refused.returncode == 1
    assert refused.stderr == f"forkserve: port {port} is in use: end what listens there, or set PORT={port + 1}\n"


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory with one model; not to be written to."""
    root = tmp_path_factory.mktemp("linear")
    table = pd.DataFrame({"months": range(40), "calls": [i % 7 for i in range(40)]})
    add_version(root, "churn", make_pipeline(StandardScaler(), LogisticRegression()).fit(table, [0, 1] * 20), table)
    return str(root)


@pytest.fixture
def explain(run: Run, linear: str, tmp_path: Path) -> Run:
    """Runs `forkserve explain` beside some files with rows."""
    (tmp_path / "row.json").write_text('{"months": 3, "calls": 2}')
    (tmp_path / "short.json").write_text("[1]")
    (tmp_path / "row.csv").write_text("months,calls\n3,2\n")
    return functools.partial(run, "explain", "--row", "row.json", MODEL_DIR=linear)


def test_explain_prints_what_adds_up_and_draws_it(explain: Run, tmp_path: Path) -> None:
    explained = explain("churn", "--plot", "out.html")
    assert explained.returncode == 0, explained.stderr
    explanation = json.loads(explained.stdout)
    assert set(explanation["values"]) == {"months", "calls"}
    assert explanation["base_value"] + sum(explanation["values"].values()) == pytest.approx(explanation["output"])
    page = (tmp_path / "out.html").read_text()
    assert "<svg" in page
    assert f"<td>{explanation['values']['calls']!r}</td>" in page


def test_explain_sums_the_smaller_contributions(explain: Run, tmp_path: Path) -> None:
    explained = explain("churn", "--version", "1", "--top", "1", "--plot", "out.svg")
    assert len(json.loads(explained.stdout)["values"]) == 2
    assert "(other)" in explained.stdout
    assert "other features" in "".join(ElementTree.parse(tmp_path / "out.svg").getroot().itertext())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["gone"], "there is no model 'gone'"),
        (["churn", "--version", "2"], "model 'churn' has no version '2'"),
        (["churn", "--top", "0"], "top must be at least 1"),
        (["churn", "--row", "nowhere.json"], "nowhere.json"),
        (["churn", "--row", "row.csv"], "row.csv"),
        (["churn", "--row", "short.json"], "short.json: the row must have 2 values, has 1"),
        (["churn", "--plot", "out.txt.gone"], "out.txt.gone: a picture is a file .svg or .html"),
        (["churn", "--plot", "nowhere/out.svg"], "nowhere/out.svg: "),
    ],
)
def test_explain_refuses_with_one_line(explain: Run, arguments: list[str], reason: str) -> None:
    refused = explain(*arguments)
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def hashes(root: Path) -> list[str]:
    """Of the artefacts of all models below `root`."""
    return [json.loads(path.read_text())["sha256"] for path in sorted(root.rglob("manifest.json"))]


def test_train_makes_the_demo_models_with_held_out_metrics_and_again_the_same(run: Run, tmp_path: Path) -> None:
    trained = run("train")
    assert trained.returncode == 0, trained.stderr
    lines = trained.stdout.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [demo.name for demo in DEMOS]
    assert all("(held out)" in line for line in lines[:-1])
    assert lines[-1] == "imported 1176 records, 1176 of them new"
    assert run("train", MODEL_DIR=str(tmp_path / "again")).returncode == 0
    assert hashes(tmp_path / "models") == hashes(tmp_path / "again")
    assert run("entities", "demo").stdout == "imported 1176 records, 0 of them new\n"


def test_records_are_imported_from_a_file_that_may_come_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / "days.csv").write_text("entity,time,x\na,2026-05-01,1\na,2026-05-02,2\n")
    assert run("entities", "import", "days.csv").stdout == "imported 2 records, 2 of them new\n"
    assert run("entities", "import", "days.csv").stdout == "imported 2 records, 0 of them new\n"
    assert (tmp_path / "data" / "data.db").exists()


def test_an_import_that_cannot_be_says_why_in_a_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "days.csv").write_text("entity,time,x\na,2026-05-01,nan\n")
    expected = {
        ("days.csv", ""): "forkserve: days.csv: line 2: x must be finite; the 0 records before are imported\n",
        ("none.csv", ""): "forkserve: [Errno 2] No such file or directory: 'none.csv'\n",
        ("days.csv", "ftp://x"): "forkserve: SUPABASE_URL must begin with https:// or http://\n",
    }
    for (name, url), said in expected.items():
        done = run("entities", "import", name, SUPABASE_URL=url)
        assert (done.returncode, done.stderr) == (1, said)


def test_an_import_into_a_project_that_is_away_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "days.csv").write_text("entity,time,x\na,2026-05-01,1\n")
    done = run("entities", "import", "days.csv", SUPABASE_URL="http://127.0.0.1:1", SUPABASE_SERVICE_KEY="key")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "forkserve: Supabase is unavailable: ConnectError"


def test_a_new_key_is_printed_once_with_an_entry_that_the_settings_take(run: Run) -> None:
    made = run("keys", "new", "shop", "--scopes", "predict,write", "--rate", "600/minute", "--expires", "2020-01-31")
    assert (made.returncode, made.stderr) == (0, "")
    secret, entry = (line.split()[-1] for line in made.stdout.splitlines())
    assert entry == f"shop:{hashlib.sha256(secret.encode()).hexdigest()}:predict,write:600/minute::2020-01-31"
    listed = run("keys", "list", API_KEYS=entry)
    assert " ".join(listed.stdout.split()) == (
        "shop predict,write 600 in 60 s all models expired 2020-01-31T00:00+00:00"
    )
    assert run("keys", "new", "shop").stdout != run("keys", "new", "shop").stdout


@pytest.mark.parametrize("arguments", [[], ["a b"], ["shop", "--scopes", "cook"], ["shop", "--expires", "soon"]])
def test_a_key_whose_entry_the_settings_would_refuse_is_not_made(run: Run, arguments: list[str]) -> None:
    refused = run("keys", "new", *arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("forkserve: the entry ")


@pytest.mark.parametrize(
    ("before", "options", "after"),
    [
        (["load-test"], ["--models", "wine", "--seconds", "5"], ["http://localhost"]),
        (["verify"], ["--max-memory-mb", "5"], ["http://localhost"]),
        (["remove", "churn"], ["--force"], ["2"]),
    ],
)
def test_options_may_stand_before_and_after_what_may_be_left_out(
    before: list[str], options: list[str], after: list[str]
) -> None:
    orders = [[*before, *options, *after], [*before, *after, *options], [before[0], *options, *before[1:], *after]]
    first, *others = [vars(parser().parse_args(order)) for order in orders]
    assert after[0] in first.values()
    assert all(other == first for other in others)


@pytest.mark.parametrize("seconds", ["-5", "0", "nan", "inf", "x"])
def test_a_load_test_of_no_time_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["load-test", f"--seconds={seconds}"])
    assert ended.value.code == 2
    assert "argument --seconds" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["a,a", "a,b,a", '"a",a'])
def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path: Path, header: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"{header}\n{','.join('1' * len(header.split(',')))}\n")
    with pytest.raises(CannotAdd, match="the header has two columns 'a'"):
        read_table(table)

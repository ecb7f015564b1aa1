"""The `forkserve` command, run as its users run it."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import joblib
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from examples.train import DEMOS
from harness.estimators import ExplainShyRegressor, ForkShyRegressor
from harness.service import ROOT
from registry.errors import CannotAdd
from registry.store.add import add_version
from registry.store.aliases import promote
from registry.store.reading import read_trained
from registry.store.tables import read_table
from serving.cli.parser import parser
from tests.conftest import Run

SOON = "a running service will serve it within a few seconds\n"
GONE = "a running service will follow within a few seconds\n"


@pytest.fixture
def churn(tmp_path: Path) -> Path:
    """A pipeline that somebody has fitted on a DataFrame, and the table it came from."""
    table = pd.DataFrame({"months": range(40), "calls": [i % 7 for i in range(40)], "left": ["yes", "no"] * 20})
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(table[["months", "calls"]], table["left"])
    joblib.dump(estimator, tmp_path / "churn.joblib")
    table.to_csv(tmp_path / "churn.csv", index=False)
    return tmp_path


def test_add_makes_a_version_that_models_lists_and_check_accepts(run: Run, churn: Path) -> None:
    added = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--target", "left")
    assert (added.returncode, added.stderr) == (0, "")
    again = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv")
    assert "added churn version 2" in again.stdout
    listed = run("models")
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [["churn", "1"], ["churn", "2"]]
    checked = run("check")
    assert (checked.returncode, checked.stdout) == (0, "ready to serve\n")
    manifest = json.loads((churn / "models/churn/1/manifest.json").read_text())
    assert set(manifest["metrics"]) == {"accuracy", "log_loss", "roc_auc"}


def test_add_calibrates_and_names_several_outputs(run: Run, churn: Path) -> None:
    added = run(
        *("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--target", "left"),
        *("--calibrate", "churn.csv"),
    )
    assert "calibrated with 40 rows: a request may ask for a coverage of up to 0.975609" in added.stdout
    table = pd.read_csv(churn / "churn.csv").assign(up=1.5, down=range(40))
    table.to_csv(churn / "two.csv", index=False)
    joblib.dump(Ridge().fit(table[["months", "calls"]], table[["up", "down"]]), churn / "two.joblib")
    two = ("add", "two.joblib", "--name", "two", "--data", "two.csv")
    assert run(*two, "--targets", "up,down").returncode == 0
    manifest = json.loads((churn / "models/two/1/manifest.json").read_text())
    assert [target["name"] for target in manifest["targets"]] == ["up", "down"]
    refused = run(*two, "--target", "up,down")
    assert "the table has no column 'up,down'; name several with --targets" in refused.stderr


def test_add_groups_and_labels_features_and_says_how_they_are_explained(run: Run, churn: Path) -> None:
    added = run(
        *("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--target", "left"),
        *("--group", "usage=months,calls", "--label", "usage=How it is used", "--label", "calls=Calls a=b"),
    )
    assert (added.returncode, added.stderr) == (0, "")
    assert "explained within a request: linear, margin; on request also probability" in added.stdout
    manifest = json.loads((churn / "models/churn/1/manifest.json").read_text())
    assert manifest["groups"] == {"usage": ["months", "calls"]}
    assert manifest["feature_labels"] == {"usage": "How it is used", "calls": "Calls a=b"}
    (churn / "row.json").write_text('{"months": 3, "calls": 5}')
    explained = json.loads(run("explain", "churn", "--row", "row.json", "--space", "probability").stdout)
    assert (list(explained["values"]), explained["space"]) == (["usage"], "probability")
    assert explained["labels"] == {"usage": "How it is used"}


def test_add_puts_a_train_py_beside_the_versions_and_records_its_hash(run: Run, churn: Path) -> None:
    script = b"from forkserve import Trained\n\ndef train(data):\n    raise ValueError('nothing to learn')\n"
    (churn / "mine.py").write_bytes(script)
    added = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--train", "mine.py")
    assert (added.returncode, added.stderr) == (0, "")
    manifest = json.loads((churn / "models/churn/1/manifest.json").read_text())
    assert manifest["training"] == {"script": "train.py", "sha256": hashlib.sha256(script).hexdigest()}
    assert (churn / "models/churn/train.py").read_bytes() == script
    failed = run("retrain", "churn", DATA_DIR=str(churn / "data"))
    assert (failed.returncode, "the training failed: ValueError: nothing to learn" in failed.stderr) == (1, True)


@pytest.mark.parametrize(
    ("script", "reason"),
    [(b"def train(:", "is not Python"), (b"train = 3\n", "does not define a function 'train'"), (None, "No such file")],
)
def test_add_refuses_what_is_no_train_py(run: Run, churn: Path, script: bytes | None, reason: str) -> None:
    if script is not None:
        (churn / "mine.py").write_bytes(script)
    added = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--train", "mine.py")
    assert (added.returncode, reason in added.stderr, (churn / "models").exists()) == (1, True, False)


def test_retrain_says_that_a_model_has_no_training_function(run: Run, churn: Path) -> None:
    run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv")
    refused = run("retrain", "churn", DATA_DIR=str(churn / "data"))
    assert (refused.returncode, "churn/1 has no training function" in refused.stderr) == (1, True)


def add_churn(churn: Path, name: str, versions: int) -> None:
    """What `forkserve add` does, in a tenth of its time."""
    for _ in range(versions):
        table = read_table(churn / "churn.csv")
        add_version(churn / "models", name, read_trained(churn / "churn.joblib")[0], table)


@pytest.fixture
def two_versions(churn: Path) -> Path:
    """The directory of a model with two versions."""
    add_churn(churn, "churn", 2)
    return churn / "models" / "churn"


@pytest.mark.usefixtures("two_versions")
def test_promote_and_rollback_change_what_is_live(run: Run) -> None:
    promoted = run("promote", "churn", "1")
    assert (promoted.returncode, promoted.stdout) == (0, f"churn: version 1 is live, the previous one is 2\n{SOON}")
    assert [line.split()[1:3] for line in run("models").stdout.splitlines()] == [["1", "live"], ["2", "classification"]]
    assert run("rollback", "churn").stdout == f"churn: version 2 is live, the previous one is 1\n{SOON}"
    asked = run("promote", "churn", "1", WATCH_MODELS="false").stdout
    assert "WATCH_MODELS is false: a running service will serve it after a reload" in asked


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["promote", "churn", "3"], "model 'churn' has no version '3'"),
        (["promote", "gone", "1"], "there is no model 'gone'"),
        (["rollback", "../churn"], "there is no model '../churn'"),
        (["promote", "churn", "1"], "churn/1/model.joblib: has sha256"),
        (["rollback", "churn"], "churn/1/model.joblib: has sha256"),
    ],
)
def test_nothing_goes_live_that_does_not_load(run: Run, two_versions: Path, arguments: list[str], reason: str) -> None:
    with (two_versions / "1" / "model.joblib").open("ab") as artefact:
        artefact.write(b"!")
    refused = run(*arguments)
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (two_versions / "aliases.json").exists()


def test_damaged_aliases_are_named_and_mended_by_promote(run: Run, two_versions: Path) -> None:
    (two_versions / "aliases.json").write_text("{")
    refused = run("check")
    assert (refused.returncode, "churn/aliases.json" in refused.stderr) == (1, True)
    listed = run("models")
    assert (listed.returncode, "broken: aliases.json does not say which" in listed.stdout) == (0, True)
    assert run("promote", "churn", "2").returncode == 0
    assert run("check").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target", "gone"], "the table has no column 'gone'"),
        (["--name", "../x"], "is not a model name"),
        (["--labels", "a,b,c"], "3 labels for 2 classes"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_add_refuses_with_one_line_and_leaves_nothing(run: Run, churn: Path, arguments: list[str], reason: str) -> None:
    refused = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", *arguments)
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not list((churn / "models").rglob("*")) if (churn / "models").exists() else True


HARM = {
    "crashes": ("exec, ('import os; os.kill(os.getpid(), 11)',)", "its process was ended by signal 11"),
    "exits": ("os._exit, (3,)", "its process exited with status 3"),
    "hangs": ("time.sleep, (600,)", "takes too long to be read"),
    "prints": ("exec, ('import os\\nwhile True: os.write(1, bytes(1 << 20))',)", "prints more than 10 MB"),
    "starts a thread": (
        "exec, ('import threading, time; threading.Thread(target=time.sleep, args=[600], daemon=True).start()',)",
        "a service could not serve it: starts threads",
    ),
    "forks": ("exec, ('import os, time; os.fork() or time.sleep(600)',)", "a service could not serve it: starts proc"),
}
HARMFUL = """
import os, sys, time, joblib
from sklearn.linear_model import LinearRegression
class Harm:
    def __init__(self, call): self.call = call
    def __reduce__(self): return self.call
estimator = LinearRegression().fit([[0, 0], [1, 1], [3, 2]], [0, 1, 2])
estimator.harm = Harm(({call}))
joblib.dump(estimator, "harm.joblib")
"""


@pytest.mark.parametrize(("call", "reason"), HARM.values(), ids=HARM)
def test_add_refuses_with_one_line_what_would_harm_a_service(run: Run, churn: Path, call: str, reason: str) -> None:
    (churn / "numbers.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    subprocess.run([sys.executable, "-c", HARMFUL.format(call=call)], cwd=churn, check=True)
    added = run("add", "harm.joblib", "--name", "harm", "--data", "numbers.csv", RELOAD_TIMEOUT_SECONDS="5")
    assert (added.returncode, reason in added.stderr) == (1, True), added.stderr
    assert len(added.stderr.splitlines()) == 1
    assert not list((churn / "models").rglob("*")) if (churn / "models").exists() else True


def test_an_added_version_that_is_not_live_says_how_to_make_it_live(run: Run, two_versions: Path) -> None:
    promote(two_versions, "1")
    added = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv")
    assert added.stdout.splitlines()[-1] == f"{SOON.strip()}; version 1 stays live until `forkserve promote churn 3`"
    unreached = run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv", "--reload", PORT="1")
    assert "added churn version 4" in unreached.stdout
    assert (unreached.returncode, unreached.stderr.startswith("forkserve: no service is reached (http://")) == (1, True)
    assert "Connection refused" in unreached.stderr


def test_remove_takes_versions_and_models_out_and_says_what_is_live(run: Run, two_versions: Path) -> None:
    refused = run("remove", "churn", "2")
    assert refused.stderr == ("forkserve: version 2 of churn is live: promote another version first, or use --force\n")
    forced = run("remove", "churn", "2", "--force")
    assert (forced.returncode, forced.stdout) == (0, f"removed churn version 2; version 1 is live\n{GONE}")
    assert [path.name for path in two_versions.iterdir()] == ["1"]
    last = run("remove", "churn")
    assert last.stdout.splitlines()[0] == "removed churn with 1 version"
    assert "no model is left: a running service goes on" in last.stdout
    assert list(two_versions.parent.iterdir()) == []


@pytest.mark.usefixtures("churn")
@pytest.mark.parametrize("artefact", ["nowhere.joblib", "churn.csv"])
def test_add_refuses_a_file_that_is_no_artefact_with_one_line(run: Run, artefact: str) -> None:
    refused = run("add", artefact, "--name", "churn", "--data", "churn.csv")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"forkserve: {artefact}: ")
    assert len(refused.stderr.splitlines()) == 1


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


def test_check_names_every_fault_on_a_line_of_its_own(run: Run, churn: Path) -> None:
    add_churn(churn, "churn", 2)
    add_churn(churn, "good", 1)
    with (churn / "models/churn/1/model.joblib").open("ab") as artefact:
        artefact.write(b"!")
    (churn / "models/churn/2/manifest.json").write_text("{}")
    checked = run("check")
    assert checked.returncode == 1
    first, second = checked.stderr.splitlines()
    assert "churn/1/model.joblib: has sha256" in first
    assert "churn/2/manifest.json: is not a manifest" in second


def test_check_names_what_schedules_and_redis_cannot_do(run: Run, churn: Path) -> None:
    add_churn(churn, "churn", 1)
    checked = run("check", SCHEDULES="a: every 1h: train nope; b: every 1h: train churn; c: every 1h: reload")
    assert checked.returncode == 1
    first, second = checked.stderr.splitlines()
    assert first.startswith("forkserve: SCHEDULES: 'a': there is no model 'nope'")
    assert second.startswith("forkserve: SCHEDULES: 'b': churn/1 has no training function")
    checked = run("check", REDIS_URL="redis://user:secret@there/zero")
    assert checked.returncode == 1
    assert checked.stderr.startswith("forkserve: REDIS_URL 'redis://there' is not valid")


@pytest.mark.parametrize("kind", [ForkShyRegressor, ExplainShyRegressor])
def test_check_finds_a_model_that_fails_only_after_the_fork(
    tmp_path: Path, run: Run, kind: type[ForkShyRegressor]
) -> None:
    sample = pd.DataFrame({"seconds": [0.0, 0.001, 0.002], "others": [0.0, 0.001, 0.0]})
    estimator = kind().fit(sample.to_numpy(), None)
    add_version(tmp_path / "models", "shy", estimator, sample)
    checked = run("check", PYTHONPATH=str(ROOT))
    assert checked.returncode == 1
    assert checked.stderr.splitlines()[-1].endswith("models/shy/1: RuntimeError: this is another process")


@pytest.mark.usefixtures("churn")
def test_a_wrong_setting_is_named(run: Run) -> None:
    refused = run("models", PORT="-1")
    assert (refused.returncode, refused.stderr) == (1, "forkserve: PORT must be at least 0\n")


@pytest.mark.usefixtures("two_versions")
def test_check_names_a_variable_that_is_almost_a_setting(run: Run) -> None:
    checked = run("check", MAX_REQEUSTS="7")
    assert checked.returncode == 1
    assert checked.stderr == "forkserve: MAX_REQEUSTS is not a setting; did you mean MAX_REQUESTS?\n"


def test_check_without_models_says_what_to_do(run: Run) -> None:
    assert "forkserve train" in run("check").stderr


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


def test_check_refuses_a_service_that_is_open_to_the_network(run: Run, churn: Path) -> None:
    run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv")
    for host, environ, status in (
        ("127.0.0.1", {}, 0),
        ("::1", {}, 0),
        ("0.0.0.0", {}, 1),
        ("0.0.0.0", {"ROLES": "worker"}, 0),
        ("0.0.0.0", {"API_KEY": "a-key-of-enough-characters"}, 0),
        ("0.0.0.0", {"API_KEYS_FILE": "nowhere"}, 1),
        ("127.0.0.1", {"REQUIRE_KEYS": "true"}, 1),
    ):
        assert run("check", HOST=host, **environ).returncode == status, (host, environ)


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

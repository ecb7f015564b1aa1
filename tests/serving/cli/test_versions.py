"""`forkserve promote`, `rollback`, `remove` and `retrain`: the versions that are there, and the one that is live."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from registry.store.manifest import read_manifest, write_manifest
from tests.conftest import Run

SOON = "a running service will serve it within a few seconds\n"
GONE = "a running service will follow within a few seconds\n"


def test_retrain_says_that_a_model_has_no_training_function(run: Run, churn: Path) -> None:
    run("add", "churn.joblib", "--name", "churn", "--data", "churn.csv")
    refused = run("retrain", "churn", DATA_DIR=str(churn / "data"))
    assert (refused.returncode, "churn/1 has no training function" in refused.stderr) == (1, True)


@pytest.mark.usefixtures("two_versions")
def test_promote_and_rollback_change_what_is_live(run: Run) -> None:
    promoted = run("promote", "churn", "1")
    assert (promoted.returncode, promoted.stdout) == (0, f"churn: version 1 is live, the previous one is 2\n{SOON}")
    assert [line.split()[1:3] for line in run("models").stdout.splitlines()] == [["1", "live"], ["2", "classification"]]
    assert run("rollback", "churn").stdout == f"churn: version 2 is live, the previous one is 1\n{SOON}"
    asked = run("promote", "churn", "1", WATCH_MODELS="false").stdout
    assert "WATCH_MODELS is false: a running service will serve it after a reload" in asked


def test_describe_records_what_is_usual_and_changes_nothing_else(run: Run, two_versions: Path) -> None:
    directory = two_versions / "1"
    added = read_manifest(directory)
    write_manifest(directory, msgspec.structs.replace(added, distributions=None))
    described = run("describe", "churn", "1", "churn.csv")
    assert (described.returncode, described.stderr) == (0, "")
    assert re.match(r"described churn version 1 by \d+ rows\na running service will compare", described.stdout)
    assert read_manifest(directory) == added
    newer = (two_versions / "2" / "manifest.json").read_bytes()
    Path(two_versions.parents[1] / "other.csv").write_text("a,b\n1,2\n")
    refused = run("describe", "churn", "other.csv")
    assert (refused.returncode, "the table has no column" in refused.stderr) == (1, True)
    assert (two_versions / "2" / "manifest.json").read_bytes() == newer
    assert sorted(path.name for path in directory.iterdir()) == ["manifest.json", "model.joblib"]


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


def test_remove_takes_versions_and_models_out_and_says_what_is_live(run: Run, two_versions: Path) -> None:
    refused = run("remove", "churn", "2")
    assert refused.stderr == ("forkserve: version 2 of churn is live: promote another version first, or use --force\n")
    forced = run("remove", "churn", "2", "--force")
    assert (forced.returncode, forced.stdout) == (0, f"removed churn version 2; version 1 is live\n{GONE}")
    assert [path.name for path in two_versions.iterdir() if path.is_dir()] == ["1"]
    last = run("remove", "churn")
    assert last.stdout.splitlines()[0] == "removed churn with 1 version"
    assert "no model is left: a running service goes on" in last.stdout
    assert list(two_versions.parent.iterdir()) == []


def test_the_card_of_a_version_is_written_as_markdown_or_as_json(run: Run, two_versions: Path) -> None:
    run("promote", "churn", "1")
    shown = run("card", "churn")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("# churn, version 1\n\n## What it is\n")
    assert "- **State**: live\n" in shown.stdout
    written = run("card", "churn", "2", "--output", "card.json")
    assert (written.returncode, written.stdout) == (0, "")
    card = json.loads((two_versions.parent.parent / "card.json").read_bytes())
    assert (card["version"], card["live"], card["history"]["previous"]) == ("2", False, "2")
    assert [(one["act"], one["version"]) for one in card["history"]["changes"]] == [("promoted", "1")]
    assert run("card", "churn", "-o", "card.md").returncode == 0
    assert (two_versions.parent.parent / "card.md").read_text() == shown.stdout
    refused = run("card", "churn", "-o", "nowhere/card.md")
    assert (refused.returncode, refused.stderr) == (1, "forkserve: nowhere/card.md: No such file or directory\n")

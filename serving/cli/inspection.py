"""`forkserve inspect`: says what a model file is, from a process apart, because loading it may run any code."""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from serving.cli.command import argument, command, fail, repeated, say
from serving.settings import Settings

TIMES = 10
"""Loading, compiling and explaining may take as many times RELOAD_TIMEOUT_SECONDS together."""

READING_ARGUMENTS = (
    repeated(
        "--code", "file or directory of own code that goes with the model; what lies beside it is found", type=Path
    ),
    repeated("--trust", "a type that a skops file may make, such as mypackage.Type", metavar="TYPE"),
    argument(
        "--force-version",
        action="store_true",
        help="take a model that another version of its library has fitted; every answer then says so",
    ),
)
"""Options for reading a model file."""


@command(
    argument("artefact", type=Path, help="model file, or directory of MLflow; loading a pickle runs its code"),
    argument("--data", type=Path, help="CSV of the model's input: says more about features, and tries them"),
    argument("--target", help="column of the CSV that the model predicts"),
    *READING_ARGUMENTS,
)
def inspect(arguments: argparse.Namespace, settings: Settings) -> int:
    """Say what a model file is, and what `add` would make of it, without adding anything."""
    from registry.errors import CannotAdd
    from serving.cli.report import Inspection, inspect_file
    from serving.process.apart import Apart, EndedBadly, told_fault
    from serving.process.trial import can_try

    inspection = Inspection(
        path=arguments.artefact,
        data=arguments.data,
        target=arguments.target,
        force_version=arguments.force_version,
        trusted=arguments.trust,
        code=arguments.code,
    )
    if not can_try():  # not on Linux
        try:
            inspect_file(inspection, say)
        except CannotAdd as error:
            return fail(error)
        return 0
    with tempfile.TemporaryDirectory(prefix="forkserve-") as scratch:
        report = Path(scratch) / "report"
        report.touch()
        work = partial(_inspect_apart, inspection, report)
        try:
            fault = told_fault(Apart(work, "inspect").wait(TIMES * settings.reload_timeout_seconds))
        except EndedBadly as error:
            fault = f"{arguments.artefact}: {error}"
        say(report.read_text(errors="replace"), end="")
    return 0 if fault is None else fail(fault)


def _inspect_apart(inspection: object, report: Path, writing: int) -> None:
    """Write the lines into a file, because what foreign code prints is dropped, and then the verdict."""
    from registry.errors import RegistryError
    from registry.memory import available_memory, limit_memory
    from serving.cli.report import Inspection, inspect_file
    from serving.process.apart import tell
    from serving.process.child import be_early_out_of_memory, mute

    assert isinstance(inspection, Inspection)
    be_early_out_of_memory()
    limit_memory(available_memory())
    mute()
    fault = None
    with report.open("w", errors="replace") as lines:
        try:
            inspect_file(inspection, partial(print, file=lines, flush=True))
        except RegistryError as error:
            fault = str(error)
        except MemoryError:
            fault = f"{inspection.path}: needs more memory than there is"
        except BaseException as error:  # noqa: BLE001 - the edge of the process: whatever it is, the parent is told
            fault = f"{inspection.path}: {type(error).__name__}: {error}"
    tell(writing, fault)

"""Errors about models and the rows that are sent to them.

RegistryError
├── ModelNotFound                                  nothing of that name is there
├── VersionNotFound ── NotYetLoaded                nothing of that name is there, or not before a reload
├── VersionRefused                                 a version on disk is not fit to serve; names the file
├── CannotRead                                     a file is not a model that can be read
├── NotLoaded                                      a version is on disk, but it could not be loaded
├── CannotAdd, CannotTrain, Superseded             there is no new version
├── CannotRemove, CannotTry                        a version stays where it is, or is not tried beside the live one
├── ModelFailed ── ResultNotFinite                 a model broke on rows that fit its features
├── NotExplained, InvalidSelection                 there is no explanation, or none like that
└── InvalidRows ── NestedTooDeep                   instances do not fit the model's features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class RegistryError(Exception):
    """The root of this tree."""


MAX_ERROR_CHARACTERS = 300


def one_line(error: object) -> str:
    """An error of foreign code as one short line that a terminal may print."""
    text = " ".join(str(error).split())
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable if len(printable) <= MAX_ERROR_CHARACTERS else f"{printable[:MAX_ERROR_CHARACTERS]}..."


def encodable(text: str) -> str:
    """A text that UTF-8 can hold: half characters (surrogates), as file names and errors may have them, are escaped."""
    return text.encode(errors="backslashreplace").decode()


class ModelNotFound(RegistryError):
    """There is no model of that name."""


class VersionNotFound(RegistryError):
    """The model has no such version."""


class NotYetLoaded(VersionNotFound):
    """A version that is asked for is on disk, but was not when the models were loaded; the message names it."""


class VersionRefused(RegistryError):
    """A version on disk is not fit to serve."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = encodable(reason)
        super().__init__(encodable(f"{path}: {reason}"))


class CannotRead(RegistryError):
    """A file is not a model that can be read; the message says what it is, and lacks its subject."""


class NotLoaded(RegistryError):
    """A version that is asked for is on disk, but it could not be loaded; the message names it."""


class CannotAdd(RegistryError):
    """An estimator and a table do not make a version; the message says why."""


class WrongOutputs(ValueError):
    """An estimator returned outputs that cannot be right, such as probabilities above 1; the message says which."""


class CannotRemove(RegistryError):
    """A version is live and others are there, or its files cannot be removed; the message says which."""


class CannotTry(RegistryError):
    """A version cannot be tried beside the live one; the message says why."""


class CannotTrain(RegistryError):
    """A model has no training function, or its result is unusable; the message says why."""


class Superseded(RegistryError):
    """The version that was to be replaced is no longer live."""


class ModelFailed(RegistryError):
    """A model broke on rows that fit its features, which is not the client's fault."""


class ResultNotFinite(ModelFailed):
    """A model has no finite result for some instances; `faults` names them, once they are known."""

    REASON = "returned a result that is not finite"
    """In the message of each such error, also when it comes from another process."""

    def __init__(self, model: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(f"{model} {self.REASON}")
        self.faults = tuple(faults[: InvalidRows.LIMIT])


class NotExplained(RegistryError):
    """No explainer fits the model."""


class InvalidSelection(RegistryError):
    """An explanation cannot show the selection: a class that the model does not have, or no feature at all."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One invalid value: `instance` counts from 0; `feature` is None when the whole instance is meant."""

    instance: int
    feature: str | None
    reason: str


class InvalidRows(RegistryError):
    """Instances do not fit the model's features; holds at most `LIMIT` faults and never the values themselves."""

    LIMIT = 20

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(f"{len(faults)} faults in the instances")
        self.faults = tuple(faults[: self.LIMIT])


class NestedTooDeep(InvalidRows):
    """A value nests arrays or objects deeper than any honest client would."""

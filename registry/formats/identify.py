"""Names the format of a file by its first bytes: one that can be read here, or another one that it says to be."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from registry.errors import CannotRead
from registry.formats.compression import head_of
from registry.formats.versions import Format

HEAD_BYTES = 1 << 16
"""Bytes from the start of a file that tell its format."""

READABLE = (
    "joblib, pickle, skops, XGBoost (.json, .ubj), LightGBM (.txt), CatBoost (.cbm), or an MLflow model directory"
)

OPCODES = 40
"""A text that begins with as many opcodes of a pickle without an error is one."""

FOREIGN_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer and not the model itself; fetch it with `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras wrote its models"),
    (b"PAR1", "a Parquet file: a table and not a model"),
    (b"ARROW1", "an Arrow file: a table and not a model"),
    (b"ORC", "an ORC file: a table and not a model"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array (.npy) and not a model"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program or shared library"),
    (b"MZ", "a Windows program"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "a PyTorch file"),
    (b"RDX", "an R data file"),
    (b"RDA", "an R data file"),
    (b"X\n\0\0\0", "an R object (.rds)"),
    (b"ZF0x", "a file that joblib before 0.10 wrote; load it with that release and write it again"),
    (b"binf", "a model in XGBoost's old binary format; load it with XGBoost before 3.1 and save it as .ubj"),
    (b"#!", "a script and not a model"),
)

ZIPPED: tuple[tuple[Callable[[set[str]], bool], str], ...] = (
    (lambda names: any(name.endswith("data.pkl") for name in names), "a PyTorch file"),
    (lambda names: "model.weights.h5" in names or {"config.json", "metadata.json"} <= names, "a Keras model (.keras)"),
    (lambda names: "[Content_Types].xml" in names, "an Office document, such as an Excel workbook"),
    (lambda names: "model.ini" in names, "an H2O MOJO"),
    (lambda names: "META-INF/MANIFEST.MF" in names, "a Java archive"),
    (lambda names: any(name.endswith("saved_model.pb") for name in names), "a zipped TensorFlow SavedModel"),
    (
        lambda names: any(name.endswith("MLmodel") for name in names),
        "a zipped MLflow model; unpack it",
    ),
    (lambda names: any(name.endswith(".dist-info/WHEEL") for name in names), "a Python wheel"),
    (lambda names: bool(names) and all(name.endswith(".npy") for name in names), "NumPy arrays (.npz) and not a model"),
)

TEXTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"<PMML"), "a PMML model"),
    (re.compile(r"\A\s*<(!doctype )?html", re.IGNORECASE), "an HTML page, such as a site answers instead of a file"),
    (re.compile(r"\A\s*<\?xml"), "an XML file"),
    (re.compile(r"\A-----BEGIN "), "a key or certificate"),
    (re.compile(r"^flavors:$", re.MULTILINE), "the MLmodel file of an MLflow model; give its directory"),
    (re.compile(r"^(import|from|def|class) \w+", re.MULTILINE), "a Python script and not a model"),
    (re.compile(r"\A[^\n]*[,;\t|][^\n]*\n[^\n]*[,;\t|]"), "a table of text, such as CSV, and not a model"),
)

DIRECTORIES = {
    "saved_model.pb": "is a TensorFlow SavedModel, which cannot be added",
    "keras_metadata.pb": "is a Keras model, which cannot be added",
    "pytorch_model.bin": "is a Hugging Face model, which cannot be added",
    "model.safetensors": "is a Hugging Face model, which cannot be added",
    "manifest.json": "looks like a version of forkserve's own: copy it into a model directory, or give the file in it",
}


def identify(content: bytes) -> Format:
    """The format of a file's content. Raises CannotRead, whose message says what it is instead."""
    if not content:
        raise CannotRead("is empty")
    head = head_of(content, HEAD_BYTES)
    if not head:
        raise CannotRead("is empty when it is decompressed")
    for magic, what in FOREIGN_MAGIC:
        if head.startswith(magic):
            raise _foreign(what)
    for magic, identify_further in MAGIC:
        if head.startswith(magic):
            return identify_further(content, head)
    return _other(head)


def identify_directory(path: Path) -> None:
    """Raise CannotRead that says what a directory is, if it is no MLflow model."""
    if (path / "MLmodel").exists():
        return
    for name, what in DIRECTORIES.items():
        if (path / name).exists():
            raise CannotRead(what)
    raise CannotRead("is a directory without a file MLmodel, so it is no MLflow model; give a file")


def _foreign(what: str) -> CannotRead:
    return CannotRead(f"is {what}. What can be added: {READABLE}")


def _zipped(content: bytes, _head: bytes) -> Format:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise CannotRead("is a damaged or truncated zip archive; copy it again") from error
    if "schema.json" in names:
        return "skops"
    raise _foreign(next((what for fits, what in ZIPPED if fits(names)), "a zip archive; unpack it"))


def _braced(content: bytes, head: bytes) -> Format:
    """The format of what begins with a brace: UBJSON, or JSON."""
    if re.match(rb"\{(L\0{7}.|i.|U.)?\"?\s*\"?learner", head) or b'"learner"' in head[:1000]:
        return "xgboost"
    if re.match(rb"\{L\0{7}", head):
        if b"learner" in content:
            return "xgboost"
        raise _foreign("a UBJSON file, but no XGBoost model")
    try:
        members = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _foreign("damaged or truncated JSON") from error
    for member, what in (
        ("oblivious_trees", "a CatBoost model as JSON; save it as .cbm"),
        ("tree_info", "a LightGBM model as JSON, which LightGBM itself cannot read; save it with save_model"),
        ("nbformat", "a Jupyter notebook"),
    ):
        if member in members:
            raise _foreign(what)
    if "learner" in members:
        return "xgboost"
    raise _foreign("a JSON file, but no model that is known here")


def _other(head: bytes) -> Format:
    """The format of what has no magic number."""
    if len(head) > 262 and head[257:262] == b"ustar":
        raise _foreign("a tar archive; unpack it")
    if head[4:8] == b"TFL3":
        raise _foreign("a TensorFlow Lite model")
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        raise _foreign("a safetensors file: weights without a model")
    if _is_pickle(head):
        return "pickle"
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", head):
        raise _foreign("an ONNX model")
    if b"saved_model" in head or re.match(rb"\x0a.{1,3}\x0a", head, re.DOTALL):
        raise _foreign("a protocol buffer, as TensorFlow and Core ML write their models")
    text = _text(head)
    if text is None:
        raise _foreign("in a format that is not known here")
    raise _foreign(next((what for pattern, what in TEXTS if pattern.search(text)), "text and not a model"))


def _is_pickle(head: bytes) -> bool:
    """Return whether the first bytes are a pickle of protocol 0 or 1, which have no magic number."""
    try:
        for count, (code, _, _) in enumerate(pickletools.genops(head)):
            if code.name == "STOP":
                return count > 0
            if count >= OPCODES:
                return True
    except ValueError as error:
        # cut off by us in the middle of it
        return len(head) == HEAD_BYTES and "exhausted" in str(error)
    except Exception:  # noqa: BLE001 - text taken for opcodes
        return False
    return False


def _pickle(_content: bytes, head: bytes) -> Format:
    if head[1:2] > bytes([pickle.HIGHEST_PROTOCOL]):
        raise CannotRead(f"is a pickle of protocol {head[1]}, which this Python does not know")
    return "joblib" if b"joblib.numpy_pickle" in head else "pickle"


MAGIC: tuple[tuple[bytes, Callable[[bytes, bytes], Format]], ...] = (
    (b"PK\x03\x04", _zipped),
    (b"CBM1", lambda *_: "catboost"),
    (b"tree\nversion=", lambda *_: "lightgbm"),
    (b"tree\r\nversion=", lambda *_: "lightgbm"),
    (b"{", _braced),
    (b"\x80", _pickle),
)
"""The beginnings of formats that can be read here, or nearly."""


def _text(head: bytes) -> str | None:
    for encoding in ("utf-8-sig", "utf-16") if head[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            text = head.decode(encoding)
        except UnicodeDecodeError as error:
            if error.start < len(head) - 4:
                continue
            text = head[: error.start].decode(encoding)
        if not any(ord(character) < 32 and character not in "\t\r\n\f" for character in text):
            return text
    return None

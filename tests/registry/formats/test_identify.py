"""Files that are no model are named for what they are; damaged and hostile ones are refused in one line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

from registry.errors import CannotAdd, CannotRead
from registry.formats import compression
from registry.formats.artefact import open_artefact
from registry.formats.identify import identify
from registry.formats.pickles import survey_pickle
from registry.store.reading import read_trained
from tests.registry.formats.files import TABLE, forest, write


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pkl"))
    return content.getvalue()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


SAFETENSORS = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
ONNX = b"\x08\x08\x12\x08skl2onnx\x1a\x051.18.\x22\x07ai.onnx(\x00:\x80\x02"

FOREIGN: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (gzip.compress(b""), "is empty when it is decompressed"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "a git-lfs pointer.*`git lfs pull`"),
    (ONNX, "an ONNX model"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, as Keras"),
    (zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras model"),
    (zipped("archive/data.pkl", "archive/version"), "a PyTorch file"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "a PyTorch file"),
    (len(SAFETENSORS).to_bytes(8, "little") + SAFETENSORS + bytes(4), "a safetensors file"),
    (b"\x1c\0\0\0TFL3" + bytes(100), "a TensorFlow Lite model"),
    (b'<?xml version="1.0"?>\n<PMML xmlns="http://www.dmg.org/PMML-4_4" version="4.4">', "a PMML model"),
    (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "an HTML page"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML file"),
    (b"PAR1" + bytes(100), "a Parquet file"),
    (b"ARROW1\0\0" + bytes(100), "an Arrow file"),
    (b"SQLite format 3\0" + bytes(100), "an SQLite database"),
    (TABLE.to_csv(index=False).encode(), "a table of text, such as CSV"),
    (b"\xef\xbb\xbfa;b\n1;2\n", "a table of text, such as CSV"),
    ("a,b\n1,2\n".encode("utf-16"), "a table of text, such as CSV"),
    (b"import joblib\nmodel = joblib.load('model.joblib')\n", "a Python script"),
    (b"artifact_path: model\nflavors:\n  sklearn:\n", "the MLmodel file"),
    (b"dear all, please find the model attached", "text and not a model"),
    ("größer als erwartet".encode(), "text and not a model"),
    (b"-----BEGIN PRIVATE KEY-----\n", "a key or certificate"),
    (zipped("model.pkl"), "a zip archive; unpack it"),
    (zipped("model/MLmodel", "model/model.pkl"), "a zipped MLflow model"),
    (zipped("[Content_Types].xml"), "an Office document"),
    (zipped("a.npy", "b.npy"), "NumPy arrays"),
    (zipped("model.pkl")[:50], "a damaged or truncated zip archive"),
    (tarred(), "a tar archive; unpack it"),
    (gzip.compress(tarred()), "a tar archive; unpack it"),
    (array(), "a NumPy array"),
    (b'{"cells": [], "nbformat": 4}', "a Jupyter notebook"),
    (b'{"oblivious_trees": []}', "a CatBoost model as JSON"),
    (b'{"name": "tree", "tree_info": []}', "a LightGBM model as JSON"),
    (b'{"a": 1}', "a JSON file"),
    (b'{"a": ', "damaged or truncated JSON"),
    (b"{" * 50_000, "damaged or truncated JSON"),
    (b'{"a":' * 50_000, "damaged or truncated JSON"),
    (b"binf" + bytes(100), "XGBoost's old binary format"),
    (b"RDX3\nX\n", "an R data file"),
    (gzip.compress(b"X\n\0\0\0\x03"), "an R object"),
    (b"\x80\x63abc", "a pickle of protocol 99"),
    (b"\x80", "in a format that is not known here|truncated"),
    (b"\x7fELF" + bytes(20), "a program"),
    (b"ZF0x1234", "joblib before 0.10"),
    (os.urandom(1) and b"\x00\x01\x02\x03" * 50, "in a format that is not known here"),
    (b"\x28\xb5\x2f\xfd" + bytes(20), "truncated"),
    (b"\x28\xb5\x2f\xfd" + b"\xff" * 20, "damaged"),
    (b"\x04\x22\x4d\x18" + bytes(20), "is compressed with lz4"),
]


@pytest.mark.parametrize(("content", "reason"), FOREIGN, ids=range(len(FOREIGN)))  # some contents hold the time
def test_file_that_is_no_model_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = write(tmp_path / "model.joblib", content)
    with pytest.raises(CannotAdd, match=reason) as refusal:
        read_trained(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "without a file MLmodel"),
        (("saved_model.pb", "fingerprint.pb"), "is a TensorFlow SavedModel"),
        (("config.json", "model.safetensors"), "is a Hugging Face model"),
        (("manifest.json", "model.joblib"), "looks like a version of forkserve's own"),
    ],
)
def test_directory_that_is_no_model_is_named(tmp_path: Path, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(CannotAdd, match=reason):
        read_trained(tmp_path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (("pipe", "is not a file"), ("loop", "symbolic links"), ("gone", "No such file")):
        with pytest.raises(CannotAdd, match=reason):
            read_trained(tmp_path / name)
    with pytest.raises(CannotAdd):
        read_trained(Path("a\0b"))


COMPRESSIONS: list[Callable[[bytes], bytes]] = [
    bytes,
    gzip.compress,
    bz2.compress,
    lzma.compress,
    lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    zlib.compress,
    lambda content: gzip.compress(zlib.compress(content)),
]


def joblib_bytes(value: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    joblib.dump(value, content, **options)
    return content.getvalue()


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize(
    "dump", [joblib_bytes, *(lambda value, n=n: pickle.dumps(value, protocol=n) for n in range(6))]
)
def test_pickle_of_any_protocol_and_compression_is_read(
    tmp_path: Path, dump: Callable[[Any], bytes], compress: Callable[[bytes], bytes]
) -> None:
    fitted = forest()
    content = compress(dump(fitted))
    estimator, artefact = read_trained(write(tmp_path / "model.pkl", content))
    assert estimator.predict(TABLE).tolist() == fitted.predict(TABLE).tolist()
    assert artefact.survey.root in ("sklearn.ensemble._forest:RandomForestClassifier", "copy_reg:_reconstructor")
    assert artefact.survey.complete
    with pytest.raises(CannotAdd):
        read_trained(write(tmp_path / "cut.pkl", content[: len(content) // 2]))


@pytest.mark.parametrize("compress", ["zlib", "gzip", "bz2", "xz", "lzma"])
def test_what_joblib_compresses_is_read(compress: str) -> None:
    content = joblib_bytes({"a": np.zeros(5000), "b": np.array([{}, "x"], object), "c": forest()}, compress=compress)
    assert identify(content) == "joblib"
    assert survey_pickle(content).complete


class Bomb:
    """Does what it was made with when it is unpickled."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return self.made


def test_nothing_is_executed_before_a_file_is_loaded(tmp_path: Path) -> None:
    content = pickle.dumps(Bomb((os.mkdir, (str(tmp_path / "executed"),))))
    artefact = open_artefact(write(tmp_path / "model.pkl", content))
    assert artefact.names == {"posix:mkdir"}
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ((exec, ("raise ValueError('first\\nsecond \\x1b[31m' + 'x' * 100_000)",)), "ValueError: first second \\?"),
        ((exec, ("import sys; sys.exit(0)",)), "SystemExit"),
        ((exec, ("import no_such_module",)), "needs a library that is not installed"),
        ((int, ("x" * 100_000,)), "ValueError"),
    ],
)
def test_code_in_a_pickle_that_raises_is_refused_in_a_line(tmp_path: Path, made: Any, reason: str) -> None:
    with pytest.raises(CannotAdd, match=reason) as refusal:
        read_trained(write(tmp_path / "model.pkl", pickle.dumps(Bomb(made))))
    assert len(str(refusal.value)) < 600
    assert str(refusal.value).isprintable()


def test_file_that_becomes_too_large_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "FLOOR_BYTES", 1 << 20)
    for compress in (gzip.compress, bz2.compress, lzma.compress, zlib.compress):
        content = compress(pickle.dumps(bytes(50 << 20)))
        with pytest.raises(CannotAdd, match="times as large when it is decompressed"):
            read_trained(write(tmp_path / "model.pkl", content))


def test_damaged_files_never_break_the_look_into_them(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    whole = [pickle.dumps(forest(), protocol=n) for n in (0, 2, 4)] + [joblib_bytes(forest()), zipped("schema.json")]
    for content in whole:
        for _ in range(60):
            damaged = bytearray(content[: random.integers(1, len(content))])
            for place in random.integers(0, len(damaged), 3):
                damaged[place] = random.integers(0, 256)
            try:
                open_artefact(write(tmp_path / "model.pkl", bytes(damaged)))
            except CannotRead as refusal:
                assert len(str(refusal)) < 500  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    "asked", [b"r\xff\xff\xff\x2f", b"r\xff\xff\xff\x7f", b"\x96" + (1 << 36).to_bytes(8, "little")]
)
def test_file_that_asks_for_more_memory_than_its_size_explains_is_refused(tmp_path: Path, asked: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CannotRead):
        open_artefact(write(tmp_path / "model.pkl", b"\x80\x05]" + asked + b"."))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (1 << 20), "a GB at most"


def test_table_with_a_model_inside_is_a_model(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_pickle(tmp_path / "table.pkl")
    assert open_artefact(tmp_path / "table.pkl").survey.root == "pandas:DataFrame"
    assert json.dumps(sorted(open_artefact(tmp_path / "table.pkl").names))

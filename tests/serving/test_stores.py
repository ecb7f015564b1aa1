"""The secrets that a box keeps for itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.errors import CannotServe
from serving.stores import kept_token


def test_a_secret_is_written_into_no_file_of_others(tmp_path: Path) -> None:
    """Whoever may write beside it knows which process makes it, and could have left a file that they read."""
    outside = tmp_path / "of-others"
    outside.touch()
    data = tmp_path / "data"
    data.mkdir()
    (data / f".admin-token-{os.getpid()}").symlink_to(outside)
    token = kept_token(data)
    assert outside.read_text() == ""
    assert (data / "admin-token").read_text() == token == kept_token(data)
    assert (data / "admin-token").stat().st_mode & 0o777 == 0o600


def test_a_link_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "chosen").write_text("a token that somebody else knows")
    (tmp_path / "admin-token").symlink_to(tmp_path / "chosen")
    with pytest.raises(CannotServe, match="set ADMIN_TOKEN instead"):
        kept_token(tmp_path)

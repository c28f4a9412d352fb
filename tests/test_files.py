"""Paths and whole files."""

import os
import pathlib
import subprocess
import sys

import pytest

from gsjax.errors import UserError
from gsjax.runtime import files


def test_buckets_stay_what_they_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert files.absolute("gs://bucket/run").as_posix() == "gs://bucket/run"
    assert files.absolute("run").as_posix() == str(tmp_path / "run")


def test_a_home_that_is_not_there_is_no_folder_of_that_name(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr("etils.epath.gpath.PosixGPath._PATH.expanduser", lambda path: path)
    with pytest.raises(UserError, match="~/run: there is no home folder"):
        files.absolute("~/run")
    assert files.absolute("a~/run").name == "run"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("runs/a b", "runs/a b"),
        ("caf\udce9", "caf\\xe9"),
        ("a\nb\x1b[1m", "a\\nb\\x1b[1m"),
        ("日本", "日本"),
        ("\ud800", "\\ud800"),
        (pathlib.Path("x"), "x"),
    ],
)
def test_a_path_is_shown_in_one_line_that_can_be_printed(path, shown):
    assert files.shown(path) == shown


def test_a_path_is_shown_in_any_locale():
    script = "from gsjax.runtime import files; print(files.shown('gs://b/\\xe9'), files.shown('x'))"
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "gs://b/\\xe9 x\n"


def test_a_current_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="run: the current folder no longer exists"):
        files.absolute("run")
    assert files.absolute("/run").as_posix() == "/run"

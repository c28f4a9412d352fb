"""Entries of environment.json: versions, the commit, and starts that count."""

import json
import platform
import re
import subprocess
from importlib import metadata

import jax
import pytest
from etils import epath

import gsjax
from gsjax.errors import UserError
from gsjax.runtime import environment


def test_versions_and_devices():
    found = environment.describe()
    assert found["gsjax"] == gsjax.__version__
    assert found["python"] == platform.python_version()
    assert found["packages"]["jax"] == jax.__version__
    assert found["packages"]["flax"] == metadata.version("flax")
    assert {name for name in found["packages"] if name.startswith("tensorflow")}
    assert found["devices"] == "4 x cpu (cpu)"
    assert found["processor"]
    assert found["cpus"] >= 1
    json.dumps(found, allow_nan=False)


def git(folder, *arguments):
    identity = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of one commit, in which the package seems to lie."""
    package = tmp_path / "gsjax"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(gsjax, "__file__", str(package / "__init__.py"))
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_commit_of_a_clone(clone):
    head = git(clone, "rev-parse", "HEAD")
    commit = environment.describe()["commit"]
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    assert head.startswith(commit)
    (clone / "runs").mkdir()
    (clone / "runs" / "x").write_text("what a run writes is no change of the code")
    assert environment.describe()["commit"] == commit


@pytest.mark.parametrize("change", ["edited", "new"])
def test_a_dirty_clone_has_a_plus(clone, change):
    head = git(clone, "rev-parse", "HEAD")
    (clone / "gsjax" / ("__init__.py" if change == "edited" else "new.py")).write_text("x = 1\n")
    commit = environment.describe()["commit"]
    assert commit[-1] == "+"
    assert head.startswith(commit[:-1])


def test_no_commit_outside_a_clone_and_without_git(clone, tmp_path_factory, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert environment.describe()["commit"] is None
    elsewhere = tmp_path_factory.mktemp("site-packages") / "gsjax" / "__init__.py"
    monkeypatch.setattr(gsjax, "__file__", str(elsewhere))
    assert environment.describe()["commit"] is None


def steps(workdir):
    return [start["step"] for start in environment.read(workdir)]


def test_starts_are_kept_unless_their_steps_are_done_anew(tmp_path):
    workdir = epath.Path(tmp_path)
    assert environment.read(workdir) == []
    for step, expected in ((0, [0]), (0, [0]), (4, [0, 4]), (8, [0, 4, 8]), (8, [0, 4, 8]),
                           (4, [0, 4]), (12, [0, 4, 12]), (0, [0])):  # fmt: skip
        environment.record_start(workdir, step)
        assert steps(workdir) == expected
    (start,) = environment.read(workdir)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", start["time"])
    assert {name: start[name] for name in environment.describe()} == environment.describe()
    assert [file.name for file in tmp_path.iterdir()] == ["environment.json"]


def test_only_the_first_host_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    environment.record_start(epath.Path(tmp_path), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_not_overwritten(tmp_path):
    (tmp_path / "environment.json").write_text("[{")
    with pytest.raises(UserError, match="environment.json is damaged: move it away"):
        environment.record_start(epath.Path(tmp_path), 0)
    assert (tmp_path / "environment.json").read_text() == "[{"

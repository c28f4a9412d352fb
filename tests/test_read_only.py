"""Another user's packages and home, as in a container that is run with `-u`."""

import os
import shutil
import subprocess
import sys

import pytest
from trainings import flags

# May read everything and write nothing that belongs to another user; has no entry in passwd.
_CAPABILITIES = "-all,+dac_read_search"
STRANGER = [
    "setpriv", "--reuid=12345", "--regid=12345", "--clear-groups",
    f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}",
    f"--bounding-set={_CAPABILITIES}",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can become another user"
)


@pytest.fixture
def folder(tmp_path):
    """A folder of the stranger's."""
    for parent in (tmp_path.parent.parent, tmp_path.parent):
        parent.chmod(0o711)
    tmp_path.chmod(0o777)
    return tmp_path


def run(folder, *arguments, home=None):
    """Runs Python as the stranger; returns the lines of both outputs."""
    kept = {"PATH", "JAX_PLATFORMS", "XLA_FLAGS"}
    environment = {name: os.environ[name] for name in kept & os.environ.keys()}
    done = subprocess.run(
        [*STRANGER, sys.executable, *arguments],
        env=environment | ({"HOME": home} if home else {}) | {"TMPDIR": str(folder)},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


# umap-learn without its half a minute of compilation: what numba asks for on import is the same.
SMALL_UMAP = """
import numba

@numba.njit(cache=True)
def embed():
    return 3
"""
IMPORT = """
import sys
sys.path.insert(0, "packages")
from gsjax.evaluate import diagnostics
print(diagnostics._import_umap().embed())
"""
MAP = """
import numpy as np
from gsjax.evaluate import diagnostics
places = diagnostics.embed_in_plane(np.random.default_rng(0).normal(size=(40, 5)), 0)
print(places.shape)
"""


def test_what_draws_the_map_can_be_imported_without_a_cache(folder):
    (folder / "packages").mkdir()
    (folder / "packages" / "umap.py").write_text(SMALL_UMAP)
    output, errors = run(folder, "-c", IMPORT, home="/root")
    assert output == ["3"] and not errors
    assert [path.name for path in folder.iterdir()] == ["packages"]  # the temporary one is gone


@pytest.mark.slow
@pytest.mark.parametrize("home", ["/root", None])
def test_the_map_is_drawn_without_a_cache(home, folder):
    output, errors = run(folder, "-c", MAP, home=home)
    assert output[-1] == "(40, 2)"
    assert "numba" not in "".join(errors)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_training_its_diagnostics_and_report(folder):
    program = ("-m", "gsjax.main", "--config.platform=cpu", "--workdir")
    run_folder = str(folder / "runs" / "run")
    for arguments in (
        (run_folder, *flags(num_steps="4", encoder__name="resnet18")),
        (run_folder, "--job=diagnostics"),
        (str(folder / "runs"), "--job=report"),
    ):
        _, errors = run(folder, *program, *arguments)
        assert len(errors) == 1 and "compiled programs are not cached" in errors[0]
    assert (folder / "runs" / "run" / "diagnostics" / "map.json").exists()
    assert (folder / "runs" / "report" / "index.html").exists()

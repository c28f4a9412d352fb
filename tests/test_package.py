"""The package as users meet it: version, imports, wheel."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest
from conftest import copy_parts

import gsjax


def _run(*command, **options):
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, **options
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_version_is_written_once(repo_root):
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", gsjax.__version__)
    text = (repo_root / "pyproject.toml").read_text()
    assert "version" not in tomllib.loads(text)["project"]
    assert gsjax.__version__ not in text
    try:
        installed = importlib.metadata.version("gsjax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("gsjax is not installed here")
    assert installed == gsjax.__version__


@pytest.mark.parametrize(
    "module", ["gsjax", "gsjax.config.defaults", "gsjax.errors", "gsjax.config.settings"]
)
def test_import_is_light(module, repo_root):
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = _run(sys.executable, "-c", code, cwd=repo_root).split()
    assert module in loaded
    heavy = {"clu", "flax", "jax", "orbax", "tensorflow", "tensorflow_datasets"}
    assert not heavy.intersection(loaded)


IMPORTS = """
import importlib, pathlib, sys

files = (path.with_suffix("").as_posix() for path in pathlib.Path("gsjax").rglob("*.py"))
names = [file.removesuffix("/__init__").replace("/", ".") for file in files]
pipeline = (
    "gsjax.api", "gsjax.data", "gsjax.evaluate", "gsjax.train.finetune", "gsjax.train.pretrain",
    "gsjax.runtime.scalar_writer", "gsjax.runtime.writers", "gsjax.runtime.tensorflow_setup",
    "gsjax.trackers.tracker",
)
for name in sorted(names, key=lambda name: name.startswith(pipeline)):
    importlib.import_module(name)
    assert name.startswith(pipeline) or "tensorflow" not in sys.modules, name
assert "tensorflow" in sys.modules and len(names) > 50
assert "keras" not in sys.modules  # it takes as long as TensorFlow itself
assert sys.modules["tensorflow"].keras.layers.Dense  # and loads where it is used
"""


def test_imports_print_nothing_and_only_the_pipeline_loads_tensorflow(repo_root):
    libraries = ("TF_", "JAX_", "XLA_")  # their variables would hide what a user sees
    environment = {k: v for k, v in os.environ.items() if not k.startswith(libraries)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        cwd=repo_root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tensorflow_is_imported_where_its_notices_are_silenced(repo_root):
    """In one module, from which others take it; TFDS and CLU, which import it, come after that."""
    package = repo_root / "gsjax"

    def importing(libraries):
        pattern = re.compile(rf"^\s*(import|from) ({libraries})\b", re.MULTILINE)
        files = package.rglob("*.py")
        return {f.relative_to(package).as_posix() for f in files if pattern.search(f.read_text())}

    assert importing("tensorflow") == {"runtime/tensorflow_setup.py"}
    after = {"runtime/writers.py", "data/prepared.py", "data/columns.py"}
    typed = {"runtime/checkpoints.py", "train/fit.py"}  # for the type checker alone
    assert importing("tensorflow_datasets|clu") == {
        "runtime/tensorflow_setup.py", *after, *typed
    }  # fmt: skip
    for name in after:
        lines = (package / name).read_text().split("\n")
        first = next(line for line in lines if line.startswith(("import ", "from ")))
        assert first.startswith("from gsjax.runtime") and "tensorflow_setup" in first, name


def test_submodules_load_when_named(repo_root):
    code = (
        "import gsjax, sys\n"
        "assert 'gsjax.losses' not in sys.modules\n"
        "print(gsjax.losses.nt_xent.__module__, 'losses' in dir(gsjax))"
    )
    assert _run(sys.executable, "-c", code, cwd=repo_root).split() == ["gsjax.losses", "True"]


def test_unknown_submodule_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'loses'"):
        _ = gsjax.loses


def test_missing_dependency_of_a_submodule_is_named(tmp_path, monkeypatch):
    (tmp_path / "gsjax_probe.py").write_text("import a_library_nobody_has\n")
    monkeypatch.setattr(gsjax, "__path__", [*gsjax.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_library_nobody_has"):
        _ = gsjax.gsjax_probe


@pytest.mark.slow
def test_wheel_works_without_the_clone(tmp_path):
    texts = ("pyproject.toml", "README.md", "LICENSE")
    source = copy_parts(tmp_path / "source", *texts, "gsjax", "configs", "tests")
    pip = (sys.executable, "-m", "pip")
    options = ("--quiet", "--no-deps", "--disable-pip-version-check")
    _run(*pip, "wheel", *options, "--no-build-isolation", "-w", tmp_path / "dist", source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == f"gsjax-{gsjax.__version__}-py3-none-any.whl"

    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = [path for path in (source / "gsjax").rglob("*") if path.is_file()]
    configs = [path for path in (source / "configs").rglob("*.py")]
    assert files == {path.relative_to(source).as_posix() for path in expected} | {
        f"gsjax/{path.relative_to(source).as_posix()}" for path in configs
    }

    # A new environment with the wheel, which sees the dependencies but not the clone.
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    _run(*pip, "--python", python, "install", *options, wheel)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    away = tmp_path / "away"
    away.mkdir()
    where = _run(python, "-c", "import gsjax; print(gsjax.__file__)", cwd=away, env=clean)
    assert where.startswith(str(packages))
    assert "--config" in _run(environment / "bin" / "gsjax", cwd=away, env=clean)
    command = "from gsjax.config import settings; print(settings.load('simclr_gs_imagenet').method)"
    assert _run(python, "-c", command, cwd=away, env=clean) == "simclr\n"

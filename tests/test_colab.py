"""The notebooks: what a script writes into them, and that they run from top to bottom."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import nbclient
import nbformat
import pytest
from conftest import copy_parts
from ipykernel import kernelspec

from gsjax.config import defaults
from gsjax.jobs import JOBS

NOTEBOOKS = ("evaluate", "graded_similarity", "pretrain_own_folder", "python_interface")
OWN = "https://example.org/somebody/fork"


@pytest.fixture
def tree(tmp_path):
    """A copy of what the notebooks and colab/update.py need of the clone."""
    texts = ("pyproject.toml", "README.md", "CONTRIBUTING.md")
    return copy_parts(tmp_path / "clone", *texts, "colab", "configs", "gsjax")


def read(root, name):
    return json.loads((root / "colab" / f"{name}.ipynb").read_text())


def source(notebook, cell_id):
    (cell,) = (cell for cell in notebook["cells"] if cell["id"] == cell_id)
    return "".join(cell["source"])


def others(notebook):
    """The cells that colab/update.py leaves alone."""
    return [cell for cell in notebook["cells"] if cell["id"] not in ("title", "install")]


def update(root, *arguments):
    command = [sys.executable, str(root / "colab" / "update.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def test_all_notebooks_are_tested(repo_root):
    found = sorted(path.stem for path in (repo_root / "colab").glob("*.ipynb"))
    assert tuple(found) == NOTEBOOKS


def test_addresses_are_up_to_date(repo_root):
    done = update(repo_root, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_address_reaches_every_place(tree):
    before = {name: read(tree, name) for name in NOTEBOOKS}
    project = tree / "pyproject.toml"
    changed = re.sub(r'(?m)^Repository = ".*"$', f'Repository = "{OWN}"', project.read_text())
    project.write_text(changed)
    done = update(tree, "--check")
    assert done.returncode == 1
    files = ["README.md", "CONTRIBUTING.md", *(f"colab/{name}.ipynb" for name in NOTEBOOKS)]
    assert [line.split()[0] for line in done.stdout.splitlines()] == files
    assert {name: read(tree, name) for name in NOTEBOOKS} == before

    assert update(tree).returncode == 0
    assert update(tree, "--check").returncode == 0
    assert f"git clone {OWN} &&" in (tree / "CONTRIBUTING.md").read_text()
    for name, old in before.items():
        new = read(tree, name)
        link = f"({OWN}/blob/main/colab/{name}.ipynb)"
        assert link in source(new, "title") and link in (tree / "README.md").read_text()
        assert f'REPOSITORY = "{OWN}"' in source(new, "install")
        assert others(new) == others(old)


def test_badges_on_github_open_colab(tree):
    project = tree / "pyproject.toml"
    address = 'Repository = "https://github.com/somebody/fork/"'
    project.write_text(re.sub(r'(?m)^Repository = ".*"$', address, project.read_text()))
    update(tree)
    folder = "https://colab.research.google.com/github/somebody/fork/blob/main/colab"
    opened = f"({folder}/evaluate.ipynb)"
    assert opened in source(read(tree, "evaluate"), "title")
    assert opened in (tree / "README.md").read_text()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_clean(repo_root, name):
    notebook = read(repo_root, name)
    nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert [(cell["cell_type"], cell["id"]) for cell in cells[:2]] == [
        ("markdown", "title"),
        ("code", "install"),
    ]
    assert "SMALL = True  # @param" in source(notebook, "settings")
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_commands_name_settings_jobs_and_files_that_exist(repo_root, name):
    cells = read(repo_root, name)["cells"]
    code = "".join(line for cell in cells if cell["cell_type"] == "code" for line in cell["source"])
    assert set(re.findall(r"--config\.([\w.]+)=", code)) <= defaults.SETTINGS.keys()
    assert set(re.findall(r"--job (\w+)", code)) <= JOBS.keys()
    for path in re.findall(r"--config (\w\S+)", code):
        assert (repo_root / path).is_file()


class Commands:
    """Stands in for subprocess.run: keeps the commands, and `git clone` makes a clone."""

    def __init__(self, installed):
        self.installed, self.seen = installed, []

    def __call__(self, command, **options):
        self.seen.append(command)
        if command[:2] == ["git", "clone"]:
            make_clone(pathlib.Path(command[-1]))
        is_probe = "-c" in command
        return subprocess.CompletedProcess(command, int(is_probe and not self.installed))

    def named(self, *words):
        return [command for command in self.seen if all(word in command for word in words)]


def make_clone(folder):
    (folder / "colab").mkdir(parents=True)
    (folder / "colab" / "update.py").touch()


@pytest.fixture
def install(repo_root, tmp_path, monkeypatch):
    """Runs the install cell in tmp_path or a folder in it, without git, pip and accelerators."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # the cell sets them

    def execute(folder=".", installed=False):
        monkeypatch.chdir(tmp_path / folder)
        commands = Commands(installed)
        monkeypatch.setattr(subprocess, "run", commands)
        namespace = {}
        exec(source(read(repo_root, "evaluate"), "install"), namespace)
        return commands, namespace

    return execute


def test_install_cell_on_colab_clones_and_installs(install, tmp_path):
    commands, _ = install()
    (clone,) = commands.named("git", "clone")
    assert clone[-2].startswith("https://github.com/")
    (pip,) = commands.named("pip", "install")
    assert pip[0] == sys.executable and pip[-1] == ".[report]"
    assert pathlib.Path.cwd() == tmp_path / "gsjax" and sys.path[0] == str(tmp_path / "gsjax")


def test_install_cell_after_a_restart_finds_what_it_installed(install, tmp_path):
    make_clone(tmp_path / "gsjax")
    commands, _ = install(installed=True)
    assert not commands.named("git") and not commands.named("pip")
    assert pathlib.Path.cwd() == tmp_path / "gsjax"


@pytest.mark.parametrize("folder", ["clone", "clone/colab"])
def test_install_cell_takes_the_clone_it_stands_in(install, tmp_path, folder):
    make_clone(tmp_path / "clone")
    commands, _ = install(folder, installed=True)
    assert not commands.named("git") and not commands.named("pip")
    assert pathlib.Path.cwd() == tmp_path / "clone"


def test_install_cell_installs_jax_for_the_gpu(install, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    commands, _ = install()
    assert commands.named("pip", ".[report,cuda12]")


def test_install_cell_asks_for_a_restart_if_numpy_was_replaced(install, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", types.SimpleNamespace(__version__="1.0"))
    with pytest.raises(RuntimeError, match="restart the runtime"):
        install()


def test_a_failing_command_stops_the_notebook(install, capsys):
    _, namespace = install(installed=True)
    namespace["run"]("python -c 'import sys; print(sys.executable)'")
    assert capsys.readouterr().out == f"{sys.executable}\n"
    with pytest.raises(subprocess.CalledProcessError):
        namespace["run"]("python -c 'import sys; print(\"no\", file=sys.stderr); sys.exit(3)'")
    assert capsys.readouterr().out == "no\n"


def execute(tree, name, monkeypatch, without=()):
    """Runs a notebook as Jupyter opens it, in its folder; returns what its cells put out.

    `without` names cells to leave out.
    """
    jupyter = tree.parent / "jupyter"
    for variable in ("DATA", "CONFIG", "RUNTIME"):  # not the user's
        monkeypatch.setenv(f"JUPYTER_{variable}_DIR", str(jupyter / variable.lower()))
    monkeypatch.setenv("IPYTHONDIR", str(jupyter))
    monkeypatch.setenv("PYTHONPATH", str(tree))
    # As users have it. LLVM's optimization pays here: much runs, little is compiled.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    kernelspec.write_kernel_spec(jupyter / "data" / "kernels" / "python3")
    notebook = nbformat.read(tree / "colab" / f"{name}.ipynb", as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id not in without]
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tree / "colab")}},
    )
    client.execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def printed(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream")


def shown(outputs, mime="image/png"):
    return [o.data[mime] for o in outputs if o.output_type != "stream" and mime in o.data]


@pytest.mark.parametrize("trains", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_graded_similarity(tree, monkeypatch, trains):
    without = () if trains else ("pretrain", "examples", "report")
    outputs = execute(tree, "graded_similarity", monkeypatch, without)
    assert not shown(outputs["install"]) and not printed(outputs["install"])
    header, *rows = printed(outputs["psi"]).splitlines()
    thresholds = [float(text) for text in re.findall(r"λ = (\S+)", header)]
    assert len(thresholds) == 5 and len(rows) == 8
    for row in rows:
        overlap, *psi = (float(text) for text in row.split()[4:])
        for value, threshold in zip(psi, thresholds, strict=True):
            expected = min(overlap / threshold, 1) if threshold else 1
            assert value == pytest.approx(expected, abs=0.005 / (threshold or 1) + 0.005)
    for cell in ("overlap", "gradient"):
        assert len(shown(outputs[cell])) == 1
    lengths = re.findall(r"length (\S+),", printed(outputs["difference"]))
    assert float(lengths[-1]) == 0  # no difference at psi = 1
    if not trains:
        return
    assert len(shown(outputs["examples"])) == 1
    assert "trained encoder" in printed(outputs["pretrain"])
    (page,) = shown(outputs["report"], "text/html")
    assert "srcdoc=" in page and (tree / "runs/demo_small/report/index.html").is_file()


@pytest.mark.slow
def test_evaluate(tree, monkeypatch):
    outputs = execute(tree, "evaluate", monkeypatch)
    results = tree / "runs" / "demo_small" / "results"
    read_results = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    assert set(read_results) == {"knn", "transfer", "retrieval"}
    assert [entry["step"] for entry in read_results["knn"]] == [None, 10]
    (transfer,), (retrieval,) = read_results["transfer"], read_results["retrieval"]
    assert transfer["scores"]["transfer/tiles_top1"] > 20  # of ten classes
    assert set(retrieval["details"]["queries_with_positives"]) == {"easy", "medium", "hard"}
    assert retrieval["protocol"]["num_database"] == 100
    assert len(shown(outputs["retrieved"])) == 3 and len(shown(outputs["similar"])) == 1
    assert float(re.search(r"top-1 (\S+) %", printed(outputs["own-knn"]))[1]) > 20


@pytest.mark.slow
def test_pretrain_own_folder(tree, monkeypatch):
    outputs = execute(tree, "pretrain_own_folder", monkeypatch)
    stopped_at = int(re.search(r"step (\d+)", printed(outputs["interrupt"]))[1])
    assert stopped_at in (5, 10, 15)
    assert f"steps    20 of 32 images, from step {stopped_at}\n" in printed(outputs["resume"])
    lines = map(json.loads, (tree / "runs/own/metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 21))
    for cell in ("loss", "examples", "similar"):
        assert len(shown(outputs[cell])) == 1


@pytest.mark.slow
def test_python_interface(tree, monkeypatch):
    outputs = execute(tree, "python_interface", monkeypatch)
    assert "simclr 20/20" in printed(outputs["pretrain"])
    assert "representations: (200, 128)" in printed(outputs["encode"])
    assert len(shown(outputs["similar"])) == 1
    assert "| method | SimCLR, graded similarity (ioa, " in printed(outputs["export"])
    for cell in ("program", "others"):
        assert float(re.search(r"difference: (\S+)", printed(outputs[cell]))[1]) < 1e-4

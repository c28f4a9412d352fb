"""What comes from elsewhere (work directories, ground truth, pictures) is data and never runs.

tests/test_ground_truth.py has the pickles of a ground truth.
"""

import ast
import gc
import importlib
import json
import os
import pickle
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_tfds
from clu.metric_writers import MultiWriter
from report_runs import diagnosed, result, write_run

from gsjax.config import settings
from gsjax.data import prepared
from gsjax.errors import UserError
from gsjax.evaluate import features, results, store
from gsjax.report import page
from gsjax.runtime import checkpoints, environment, files, saved_state
from gsjax.sweep import runs

SCRIPT = "<script>alert(1)</script>"
YAML = "!!python/object/apply:os.system ['touch {}']"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture
def marker(tmp_path):
    """A file that a payload makes; a pickle that was loaded as such would have made it."""
    path = tmp_path / "marker"
    pickle.loads(pickle.dumps(Touch(path)))
    path.unlink()
    return path


def object_array(marker):
    return np.array([Touch(marker), 1], dtype=object)


@pytest.mark.parametrize("member", ["key", "feature"])
def test_kept_features_with_objects(tmp_path, marker, member):
    key = store.key_of(encoder="a")
    rows = features.Features(np.ones((2, 3)), np.zeros(2), np.arange(2), np.ones(2, bool))
    store.save(tmp_path, key, rows)
    (file,) = tmp_path.glob("*.npz")
    arrays = {"key": np.array(key), **rows._asdict()}
    np.savez(file, allow_pickle=True, **(arrays | {member: object_array(marker)}))
    assert store.load(tmp_path, key) is None
    file.write_bytes(pickle.dumps(Touch(marker)))
    assert store.load(tmp_path, key) is None
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["pickle", "yaml"])
def test_json_files_of_a_work_directory(tmp_path, marker, kind):
    payload = {"pickle": pickle.dumps(Touch(marker)), "yaml": YAML.format(marker).encode()}[kind]
    workdir = files.absolute(str(write_run(tmp_path / "run", knn=30.0)))

    def read_all():
        settings.of_evaluation(str(workdir), None, {})
        environment.read(workdir)
        results.read(workdir / "results" / "knn.json")
        runs.read(workdir)

    read_all()
    (workdir / "results").mkdir()
    for name in ("config.json", "environment.json", "results/knn.json", "metrics.jsonl"):
        file = workdir / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(payload + b"}\n")
        with pytest.raises(UserError) as caught:
            read_all()
        assert "\n" not in str(caught.value)
        file.unlink() if before is None else file.write_bytes(before)
    summary = tmp_path / "member.json"
    summary.write_bytes(payload)
    with pytest.raises(UserError, match="not a run summary"):
        runs.read_summary(summary)
    assert not runs.is_summary(summary)
    assert not marker.exists()


def test_settings_of_a_work_directory_stay_text(tmp_path, marker):
    workdir = write_run(tmp_path / "run")
    content = json.loads((workdir / "config.json").read_text())
    code = f"__import__('os').system('touch {marker}')"
    content["config"]["data"]["source"] = code
    (workdir / "config.json").write_text(json.dumps(content))
    assert settings.of_evaluation(str(workdir), None, {}).data.source == code
    assert not marker.exists()


# Orbax forgets reads that it has begun when a file is damaged.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_with_pickles(tmp_path, marker):
    """Every file of it, and those that other programs would look for, replaced by a pickle."""
    state = {"a": jax.numpy.arange(4.0), "b": {"c": jax.numpy.ones((2, 2))}}
    workdir = files.absolute(str(tmp_path / "run"))
    checkpoints.Checkpoints(workdir, 1, 0).save(1, state, MultiWriter([]))
    path = tmp_path / "run" / "checkpoints" / "1"
    whole = [file for file in path.rglob("*") if file.is_file()]
    assert {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"} <= {file.name for file in whole}
    payload = pickle.dumps(Touch(marker))
    added = [path / "default" / name for name in ("checkpoint", "aux.pkl", "__init__.py")]
    refused = 0
    for file in (*whole, *added):
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(payload)
        try:
            saved_state.read(files.absolute(str(path)), jax.eval_shape(lambda: state))
        except UserError:
            refused += 1
        file.unlink() if before is None else file.write_bytes(before)
    gc.collect()  # those reads, before the next test
    assert refused >= 2
    assert not marker.exists()


def test_types_named_in_a_checkpoint_are_not_imported(tmp_path, marker):
    """Orbax's metadata names Python types; here it names a module that leaves a mark."""
    state = {"a": jax.numpy.arange(4.0), "empty": ()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", state)
    (tmp_path / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\n")
    file = tmp_path / "saved" / "_METADATA"
    text = file.read_text()
    for word in ("jax.Array", "None", "NamedTuple", "Dict", "Tuple", "np.ndarray"):
        text = text.replace(f'"{word}"', '"hostile.Thing"')
    assert "hostile.Thing" in text
    file.write_text(text)
    code = (
        "import sys, orbax.checkpoint as ocp\n"
        "with ocp.StandardCheckpointer() as c:\n"
        "    for use in (c.metadata, c.restore):\n"
        "        try: use(sys.argv[1])\n"
        "        except Exception as error: print(type(error).__name__)\n"
        "assert 'hostile' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "saved")]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run(command, check=True, env=environment)
    subprocess.run([sys.executable, "-c", "import hostile"], check=True, env=environment)
    assert marker.exists()  # had it been imported


def test_a_picture_that_is_a_program(tmp_path, marker, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file's name."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    file = files.absolute(str(tmp_path / "examples.png"))
    file.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UserError, match="damaged"):
        page.picture("pairs", file)
    assert not marker.exists()


@pytest.mark.parametrize("source", ["huggingface:mnist", "someone:pictures", "someone:a/b:1.0.0"])
def test_data_sets_whose_code_would_be_fetched(source):
    data = ml_collections.ConfigDict({"source": source, "data_dir": ""})
    with pytest.raises(UserError, match="is a community data set"):
        prepared.prepared_builder(data)


@pytest.mark.parametrize("form", ["pythonClassName", "python_class_name", "type"])
def test_a_data_set_whose_features_name_a_module(tmp_path, marker, monkeypatch, form):
    """TFDS would import it; a work directory names the folder, and the folder the module."""
    tiny_tfds.write(tmp_path)
    data = ml_collections.ConfigDict({"source": "tiny", "data_dir": str(tmp_path)})
    assert prepared.prepared_builder(data).is_prepared()
    (tmp_path / f"of_{form}.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    hostile = {form: f"of_{form}.Thing"} | ({"content": {}} if form == "type" else {})
    (tmp_path / "tiny/1.0.0/features.json").write_text(json.dumps(hostile))
    with pytest.raises(UserError, match=rf"use of_{form}\.Thing, which is not part of TFDS"):
        prepared.prepared_builder(data)
    assert not marker.exists()
    importlib.import_module(f"of_{form}")
    assert marker.exists()  # had it been imported


def test_no_text_of_a_run_is_markup(tmp_path):
    """Every text of a work directory that the page shows."""
    results = {
        "diagnostics": [diagnosed(psi=SCRIPT)],
        "linear": [result("linear", SCRIPT, {"top1": 50.0, SCRIPT: 1.0})],
    }
    config = {"data.source": SCRIPT, "data.split": SCRIPT, "encoder.name": SCRIPT}
    name = SCRIPT.replace("/", "\u2215")
    workdir = write_run(tmp_path / "runs" / name, knn=30.0, results=results, config=config)
    start = {
        "step": 0, "time": SCRIPT, "gsjax": SCRIPT, "commit": SCRIPT, "python": SCRIPT,
        "packages": {"jax": SCRIPT}, "devices": SCRIPT, "processor": SCRIPT,
    }  # fmt: skip
    (workdir / "environment.json").write_text(json.dumps([start]))
    (workdir / "examples.png").write_text(SCRIPT)
    (workdir / "diagnostics").mkdir()
    labels = {"x": [0.0, 1.0], "y": [0.0, 1.0], "label": [0, 1], "class_names": [SCRIPT, SCRIPT]}
    (workdir / "diagnostics" / "map.json").write_text(json.dumps(labels))
    broken = write_run(tmp_path / "runs" / f"broken {name}")
    (broken / "metrics.jsonl").write_text('{"step": "<b>"}\n')
    command = [sys.executable, "-m", "gsjax.main", "--job", "report", "--workdir"]
    command += [str(tmp_path / "runs"), "--config.report.diagnostics=false"]
    subprocess.run(command, check=True)
    text = (tmp_path / "runs" / "report" / "index.html").read_text()
    assert text.count("<script>") == 1  # the page's own
    assert "alert(1)</" not in text
    assert text.count("alert(1)") > 10


# Where data could become code. `config_file` runs what the user names, and says so.
CODE = {
    "eval", "exec", "compile", "__import__", "pickle", "marshal", "shelve", "dill", "cloudpickle",
    "joblib", "yaml", "torch", "runpy", "code",
}  # fmt: skip
ALLOWED = {
    ("config_file.py", "exec_module"): "runs --config",
    ("export.py", "pickle"): "writes Detectron2's format",
    ("schema.py", "import_module"): "names of the tables",
    ("__init__.py", "import_module"): "names of gsjax's own modules",
}


def suspicious(path):
    """Names of calls and imports in a module that could run data as code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names if a.name.split(".")[0] in CODE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in CODE:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Name) and node.id in CODE - {"code", "torch", "yaml"}:
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in ("exec_module", "import_module"):
            yield node.attr
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("os.system", "os.popen") or name.startswith(("os.exec", "os.spawn")):
                yield name
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg == "allow_pickle" and value is not False:
                    yield "allow_pickle"
                if keyword.arg == "shell" and value is not False:
                    yield "shell"
                if keyword.arg == "autoescape" and value is not True:
                    yield "autoescape"
            refuses = any(keyword.arg == "allow_pickle" for keyword in node.keywords)
            if name.endswith("np.load") and not refuses:
                yield "np.load"


def test_no_module_runs_data(repo_root):
    found = {
        (path.name, name)
        for path in (repo_root / "gsjax").rglob("*.py")
        for name in suspicious(path)
    }
    assert found == set(ALLOWED)
    export = (repo_root / "gsjax" / "evaluate" / "export.py").read_text()
    used = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(export))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle.")
    ]
    assert used == ["pickle.dumps"]


@pytest.mark.parametrize(
    "line",
    ["eval('1')", "import pickle", "from torch import load", "import yaml", "np.load('a')",
     "np.load('a', allow_pickle=True)", "os.system('a')", "subprocess.run('a', shell=True)",
     "jinja2.Environment(autoescape=False)", "importlib.import_module(name)"],
)  # fmt: skip
def test_the_search_finds_each(tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    assert list(suspicious(tmp_path / "module.py"))

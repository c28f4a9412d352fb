"""Evaluations of one run that finish together."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import REPO_ROOT
from etils import epath
from trainings import TOY, events

from gsjax.evaluate import results, store
from gsjax.evaluate.features import Features
from gsjax.runtime import lock, metrics

PROCESSES, EACH = 2, 20

# Opens an evaluation, waits for the others, and records results as fast as it can.
RECORD = """
import json, pathlib, sys, time
import toy_main
from gsjax.config import settings
from gsjax.evaluate import evaluation

toy_main.add_row()
workdir, changes, process, processes, each = sys.argv[1:]
config = settings.load(None)
settings.override(config, json.loads(changes))
with evaluation.open_evaluation(config, workdir, "knn") as job:
    job.encoder.digest
    pathlib.Path(workdir, f"ready{process}").touch()
    while len(list(pathlib.Path(workdir).glob("ready*"))) < int(processes):
        time.sleep(0.001)
    for number in range(int(each)):
        k = int(process) * int(each) + number
        job.record(evaluation.Result("photos", {f"knn/top{k}": float(k)}, {"k": k}))
"""


def test_no_result_is_lost(tmp_path):
    changes = json.dumps(TOY | {"checkpoint.load": "none", "platform": "cpu"})
    command = [sys.executable, "-c", RECORD, str(tmp_path), changes]
    processes = [
        subprocess.Popen(
            [*command, str(i), str(PROCESSES), str(EACH)],
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(REPO_ROOT)},
            cwd=REPO_ROOT / "tests",
        )
        for i in range(PROCESSES)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    found = results.read(epath.Path(tmp_path) / "results" / "knn.json")
    scores = {name: value for entry in found for name, value in entry["scores"].items()}
    assert scores == {f"knn/top{k}": float(k) for k in range(PROCESSES * EACH)}
    folder = tmp_path / "knn_untrained"
    rows = metrics.read_records(epath.Path(folder))
    assert {name for row in rows for name in row} - {"step"} == set(scores)
    assert events(folder) == sorted((0, name) for name in scores)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["knn.json"]


def test_features_that_another_process_keeps_are_written_by_one(tmp_path):
    rows = Features(np.ones((3, 2)), np.zeros(3, np.int32), np.arange(3), np.ones(3, bool))
    folder = epath.Path(tmp_path)
    path = store._path(folder, "key")
    with lock.exclusive(path):
        with pytest.raises(lock.InUse), lock.exclusive(path, patience=0.1):
            pytest.fail("two hold it")
        assert store.load(folder, "key") is None
    store.save(folder, "key", rows)
    np.testing.assert_array_equal(store.load(folder, "key").feature, rows.feature)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_dead_process_does_not_hold_the_file(tmp_path):
    file = epath.Path(tmp_path) / "knn.json"
    script = (
        "import os, signal, sys\nfrom etils import epath\nfrom gsjax.runtime import lock\n"
        "with lock.exclusive(epath.Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(file)], check=False)
    assert (tmp_path / "knn.json.lock").exists()
    with lock.exclusive(file, patience=0.0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_on_shared_storage_one_waits_for_the_other(tmp_path, monkeypatch):
    """A lock of beats, as on NFS, which each process takes by rewriting the file."""
    monkeypatch.setattr(lock, "is_shared", lambda folder: True)
    monkeypatch.setattr(lock, "_FAST_PERIOD", 0.2)
    monkeypatch.setattr(lock, "_FAST_STALE", 2.0)
    file = epath.Path(tmp_path) / "count"
    file.write_text("0")

    def add():
        for _ in range(3):
            with lock.exclusive(file):
                file.write_text(str(int(file.read_text()) + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() == "12"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]

"""Experiment trackers: W&B offline and MLflow in a folder, read back by `tracker_files.py`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPO_ROOT
from etils import epath
from test_kills import wait
from tracker_files import READERS, Mlflow, of_metrics
from trainings import command, finish, flags, of_pictures, small_config, write_pictures

from gsjax.config import settings
from gsjax.errors import UserError
from gsjax.runtime import parallel, writers
from gsjax.trackers import TRACKERS, tracker
from gsjax.train.pretrain import pretrain

# No test reaches a server of W&B or MLflow.
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def run_script(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(REPO_ROOT)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def create_run(folder):
    folder.mkdir()
    config = small_config().to_dict()
    (folder / "config.json").write_text(json.dumps({"config": config}))
    return folder, settings.flatten(config)


# Lives of a run that get killed at any moment. Their values differ, as measured times do.
LIVES = """
import os, random, signal, sys, time
import numpy as np
from etils import epath
from PIL import Image
from gsjax.runtime import files, metrics, writers
from gsjax.trackers import TRACKERS, tracker

name, folder, kills = sys.argv[1], epath.Path(sys.argv[2]), int(sys.argv[3])
TRACKERS[name].load()
saved, started = folder / "saved", folder / "started"


def live(value, connected):
    first = int(saved.read_text()) if saved.exists() else 0
    records = metrics.read_records(folder) if first else []
    measured = any(r["step"] == first and "knn/top1" in r for r in records)
    jsonl = writers.JsonLines(folder, first)
    tracking = tracker.Tracker(name, folder, first)
    run = writers.RunWriter(folder, [jsonl], tracking)
    while connected and not tracking._tasks.empty():
        time.sleep(0.01)
    started.write_text("")

    def write(step, scalars):
        run.write_scalars(step, scalars)
        run.flush()

    if first == 0:
        picture = np.zeros((8, 8, 3), np.uint8)
        Image.fromarray(picture).save(folder / "examples.png")
        run.write_images(0, {"examples": picture[None]})
        write(0, {"knn/top1": value, "knn/pixels_top1": value})
    elif first % 10 == 0 and not measured:
        write(first, {"knn/top1": value})
    for step in range(first + 1, 61):
        write(step, {"train/loss": value + step, "train/nan": float("nan")})
        time.sleep(0.01)
        if step % 5 == 0:
            files.write_text(saved, str(step))
            run.saved(step)
        if step % 10 == 0:
            time.sleep(0.02)
            write(step, {"knn/top1": value})
    run.mark_complete()
    run.close()


generator = random.Random(1)
done = 0
while done < kills:
    started.unlink(missing_ok=True)
    value, connected = generator.random(), done % 2 == 1
    child = os.fork()
    if child == 0:
        live(value, connected)
        os._exit(0)
    while not started.exists():
        time.sleep(0.005)
    time.sleep(generator.uniform(0.1, 0.5))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done += 1
    if saved.exists() and saved.read_text() == "60":
        break
live(generator.random(), False)
print(done)
"""


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_all_once_whenever_a_run_is_killed(name, tmp_path):
    workdir, config = create_run(tmp_path / "my run [1]")
    kills = int(run_script(LIVES, name, workdir, 5).splitlines()[-1])
    assert kills >= 2
    tracked = READERS[name](workdir)
    expected = of_metrics(workdir)
    assert len(expected) == 2 + 2 * 60 + 6
    assert tracked.scalars == expected
    assert tracked.pictures == ["examples"]
    assert tracked.name == "my run [1]"
    if name == "mlflow":
        assert tracked.config == {key: str(value) for key, value in config.items()}
        assert tracked.status == "FINISHED"
    else:
        assert settings.flatten(tracked.config) == config
        assert tracked.id == json.loads((workdir / "tracker.json").read_text())["id"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_has_all_once_after_two_kills_of_a_training(name, tmp_path):
    pictures, workdir = write_pictures(tmp_path / "pictures"), tmp_path / "run"
    arguments = flags(
        **of_pictures(pictures, num_steps=40, checkpoint__every_steps="5", log__tracker=name)
        | {"log__example_pairs": "2", "knn__baselines": "true"}
    )
    for step in (10, 25):
        process = command(workdir, *arguments)
        manifest = workdir / "checkpoints" / str(step) / "manifest.sha256"
        assert wait(process, manifest.exists)
        process.kill()
        process.communicate()
        identity = json.loads((workdir / "tracker.json").read_text())["id"]
    output = finish(command(workdir, *arguments))
    assert output.count("tracker  ") == 1 and "warning: log.tracker" not in output
    tracked = READERS[name](workdir)
    assert tracked.scalars == of_metrics(workdir)
    assert {step for step, *_ in tracked.scalars} == set(range(41))
    assert tracked.pictures == ["examples"]
    content = json.loads((workdir / "tracker.json").read_text())
    assert content["id"] == identity == (tracked.tag if name == "mlflow" else tracked.id)
    assert "tracker  " not in finish(command(workdir, *arguments))  # everything is there


def write(workdir, first, last, name="mlflow", saved=None, value=0.5):
    """One start, from step `first` on; returns what it wrote."""
    writer = writers.create_writer(epath.Path(workdir), first, name)
    for step in range(first + 1, last + 1):
        writer.write_scalars(step, {"train/loss": value + step})
    writer.saved(last if saved is None else saved)
    writer.close()


def test_what_no_checkpoint_covers_is_not_sent(tmp_path):
    """A start with other values follows; only those of the steps that it repeats are tracked."""
    workdir, _ = create_run(tmp_path / "run")
    write(workdir, 0, 6, saved=4)
    assert [step for step, *_ in Mlflow(workdir).scalars] == [1, 2, 3, 4]
    assert Mlflow(workdir).status == "KILLED"
    write(workdir, 4, 8, value=0.25)
    assert Mlflow(workdir).scalars == of_metrics(workdir)
    assert [value % 1 for *_, value in Mlflow(workdir).scalars] == [0.5] * 4 + [0.25] * 4


def test_what_a_kill_in_the_creation_of_a_run_leaves_is_no_obstacle(tmp_path):
    """As MLflow creates it: a folder, an empty meta.yaml, its contents, more folders, our tag."""
    workdir, _ = create_run(tmp_path / "my run [1]")
    write(workdir, 0, 2)
    (experiment,) = [p for p in (workdir / "mlruns").iterdir() if len(p.name) == 18]
    (complete,) = [p for p in experiment.iterdir() if len(p.name) == 32]
    for i in range(4):
        torn = experiment / f"{i:032x}"
        torn.mkdir()
        if i > 0:
            content = (complete / "meta.yaml").read_text().replace(complete.name, torn.name)
            (torn / "meta.yaml").write_text(content if i > 1 else "")
        if i > 2:
            (torn / "tags").mkdir()
            (torn / "tags" / "gsjax.id").touch()
    mine = experiment / f"{9:032x}"  # of somebody else
    shutil.copytree(complete, mine)
    (mine / "tags" / "gsjax.id").unlink()
    meta = (mine / "meta.yaml").read_text()
    (mine / "meta.yaml").write_text(meta.replace(complete.name, mine.name))
    write(workdir, 2, 4)
    assert {p.name for p in experiment.iterdir() if len(p.name) == 32} == {
        complete.name, mine.name
    }  # fmt: skip
    shutil.rmtree(mine)
    assert Mlflow(workdir).scalars == of_metrics(workdir)


def test_a_run_goes_on_with_another_tracker_or_none(tmp_path):
    workdir, _ = create_run(tmp_path / "run")
    write(workdir, 0, 4)
    former = Mlflow(workdir)
    write(workdir, 4, 8, "none")
    assert Mlflow(workdir).scalars == former.scalars
    assert not tracker.is_behind("none", epath.Path(workdir))
    assert tracker.is_behind("mlflow", epath.Path(workdir))
    write(workdir, 8, 12)
    assert Mlflow(workdir).scalars == of_metrics(workdir)
    assert Mlflow(workdir).id == former.id
    assert not tracker.is_behind("mlflow", epath.Path(workdir))
    assert tracker.is_behind("wandb", epath.Path(workdir))


def test_a_finished_run_is_sent_afterwards(tmp_path, capsys):
    parallel.start("float32")
    pretrain(small_config(), str(tmp_path / "run"))
    config = small_config(log__tracker="mlflow")
    pretrain(config, str(tmp_path / "run"))
    assert "nothing to do\ntracker  mlflow: " in capsys.readouterr().out
    tracked = Mlflow(tmp_path / "run")
    assert tracked.scalars == of_metrics(tmp_path / "run")
    assert tracked.pictures == ["examples"]
    assert tracked.config["log.tracker"] == "mlflow"
    pretrain(config, str(tmp_path / "run"))
    assert "tracker  " not in capsys.readouterr().out


def test_an_error_in_the_middle_turns_tracking_off_until_the_next_start(tmp_path, capsys):
    workdir, _ = create_run(tmp_path / "run")
    writer = writers.create_writer(epath.Path(workdir), 0, "mlflow")
    for step in range(1, 9):
        writer.write_scalars(step, {"train/loss": step / 7})
        if step % 2 == 0:
            writer.saved(step)
        if step == 4:
            deadline = time.monotonic() + 60
            while len(list(workdir.glob("mlruns/*/*/metrics/train/loss"))) == 0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            shutil.move(workdir / "mlruns", workdir / "away")
            (workdir / "mlruns").write_text("")
    writer.close()
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert "log.tracker=mlflow is off until the next start" in warning
    assert len(of_metrics(workdir)) == 8
    (workdir / "mlruns").unlink()
    shutil.move(workdir / "away", workdir / "mlruns")
    write(workdir, 8, 9)
    assert Mlflow(workdir).scalars == of_metrics(workdir)


# The process behind W&B dies in the middle.
DEATH = """
import os, pathlib, signal, sys, time
from etils import epath
from gsjax.runtime import writers

writer = writers.create_writer(epath.Path(sys.argv[1]), 0, "wandb")
for step in range(1, 9):
    writer.write_scalars(step, {"train/loss": step / 7})
    writer.saved(step)
    if step == 4:
        children = pathlib.Path("/proc/self/task")
        while not (found := [pid for task in children.iterdir()
                             for pid in (task / "children").read_text().split()]):
            time.sleep(0.01)
        time.sleep(1)
        for pid in found:
            os.kill(int(pid), signal.SIGKILL)
        time.sleep(1)
writer.mark_complete()
writer.close()
"""

UNREACHABLE = """
import sys, time
from etils import epath
from gsjax.runtime import writers

began = time.monotonic()
writer = writers.create_writer(epath.Path(sys.argv[1]), 0, "wandb")
for step in range(1, 9):
    writer.write_scalars(step, {"train/loss": step / 7})
    writer.saved(step)
assert time.monotonic() - began < 1
writer.mark_complete()
writer.close()
"""
ONLINE = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9"}


def assert_off(output, name, reason):
    (warning,) = [line for line in output.splitlines() if not line.startswith("tracker  ")]
    assert warning.startswith(f"warning: log.tracker={name} is off until the next start")
    assert reason in warning


@pytest.mark.parametrize(
    ("script", "environment", "reason"),
    [
        pytest.param(DEATH, {}, "Connection", marks=pytest.mark.slow),
        pytest.param(
            UNREACHABLE,
            ONLINE | {"WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "2"},
            "http://127.0.0.1:9",
            marks=pytest.mark.slow,
        ),
        (UNREACHABLE, ONLINE | {"HOME": "/nowhere"}, "no API key: run `wandb login`, or set"),
    ],
    ids=["death", "unreachable", "no_key"],
)
def test_wandb_that_fails_costs_one_line(script, environment, reason, tmp_path):
    workdir, _ = create_run(tmp_path / "run")
    assert_off(run_script(script, workdir, **environment), "wandb", reason)
    assert len(of_metrics(workdir)) == 8


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "/dev/null/mlruns"])
def test_mlflow_that_fails_costs_one_line(address, tmp_path, capsys, monkeypatch):
    workdir, _ = create_run(tmp_path / "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write(workdir, 0, 8)
    assert_off(capsys.readouterr().out, "mlflow", address.removesuffix("/mlruns"))
    assert len(of_metrics(workdir)) == 8


def test_a_tracker_that_hangs_is_not_waited_for(tmp_path, capsys, monkeypatch):
    """A server that accepts connections and never answers."""
    workdir, _ = create_run(tmp_path / "run")
    monkeypatch.setattr(tracker, "_WAIT_STOPPED", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        began = time.monotonic()
        write(workdir, 0, 4)
        assert time.monotonic() - began < 4
        assert (
            "mlflow is still sending after 1 s: rerun the same command" in capsys.readouterr().out
        )
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "tracker"]
        thread.join(60)
    assert capsys.readouterr().out == ""
    assert tracker.is_behind("mlflow", epath.Path(workdir))


def test_a_damaged_file_of_the_tracker_is_named(tmp_path, capsys):
    workdir, _ = create_run(tmp_path / "run")
    (workdir / "tracker.json").write_text('{"sent"')
    write(workdir, 0, 4)
    assert f"{workdir}/tracker.json is damaged: delete it" in capsys.readouterr().out
    assert tracker.is_behind("mlflow", epath.Path(workdir))
    assert len(of_metrics(workdir)) == 4


MISSING = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "{name}" else found(name, *rest)
sys.argv[1:] = ["--config.log.tracker={name}"]
from gsjax import main
try:
    main.main()
finally:
    assert "jax" not in sys.modules
"""


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_one_line(name):
    done = subprocess.run(
        [sys.executable, "-c", MISSING.format(name=name)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"gsjax: error: log.tracker={name} needs more packages: pip install 'gsjax[{name}]', or "
        "set it to none\n"
    )


def test_a_folder_of_the_trackers_name_is_not_its_package(tmp_path, monkeypatch):
    """W&B writes to a folder `wandb`, which Python could import as an empty package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="log.tracker=wandb needs more packages"):
        small_config(log__tracker="wandb")


def test_an_evaluation_needs_no_tracker(tmp_path):
    workdir, _ = create_run(tmp_path / "run")
    config = small_config(log__tracker="wandb").to_dict()
    (workdir / "config.json").write_text(json.dumps({"config": config}))
    assert settings.of_evaluation(str(workdir), None, {}).log.tracker == "none"

"""A sweep in real processes: in sequence, by index, stopped, and from its summaries alone."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import FAST_COMPILATION, REPO_ROOT
from etils import epath
from PIL import Image
from trainings import TIMES, TOY, finish, host_flags, wait_for

from gsjax import jobs
from gsjax.errors import UserError
from gsjax.runtime import parallel
from gsjax.sweep import plans, runner, runs

BASE = """
import sys

from gsjax.config import defaults, settings

sys.path.append("TESTS")
import toy_main

toy_main.add_row()

def get_config():
    config = defaults.get_config()
    settings.override(config, TOY)
    config.num_steps = 20
    config.batch_size = 8
    config.data.source = "folder"
    config.data.data_dir = "PICTURES"
    config.knn.k = 5
    config.log.example_pairs = 0
    config.checkpoint.every_steps = 20
    config.diagnostics.num_images = 10  # too few for a map
    config.diagnostics.neighbors = 0
    return config
"""
SWEEP = """
from gsjax.sweep.plans import Arm, Sweep

def get_sweep():
    return Sweep(
        "With and without graded similarity",
        arms=(Arm("SimCLR", "base", {"similarity.measure": "none"}), Arm("SimCLR-GS", "base")),
    )
"""
NAMES = ["simclr-seed5", "simclr_gs-seed5"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A sweep of two members with its base config and pictures."""
    return write(tmp_path_factory.mktemp("files"), SWEEP)


def write(folder, text):
    """Writes a sweep, its base config and 84 pictures; returns the sweep's file."""
    (folder / "configs" / "sweeps").mkdir(parents=True)
    pictures = folder / "pictures"
    base = BASE.replace("TOY", repr(TOY)).replace("PICTURES", str(pictures))
    base = base.replace("TESTS", str(REPO_ROOT / "tests"))
    (folder / "configs" / "base.py").write_text(base)
    generator = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 20)):
        for i in range(count):
            path = pictures / split / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    file = folder / "configs" / "sweeps" / "pair.py"
    file.write_text(text)
    return file


def start(file, workdir, *arguments, devices=1):
    """The command, in a session of its own as from a terminal of its own."""
    xla_flags = f"--xla_force_host_platform_device_count={devices} {FAST_COMPILATION}"
    return subprocess.Popen(
        [sys.executable, "-m", "gsjax.main", "--job=sweep", f"--config={file.name}",
         f"--workdir={os.path.relpath(workdir, file.parent)}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=file.parent,  # with the config's path without a folder, and a relative --workdir
        env=os.environ | {"XLA_FLAGS": xla_flags},
        start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sequential(file, tmp_path_factory):
    """The work directory of the whole sweep, and what it printed."""
    workdir = tmp_path_factory.mktemp("sequential")
    return workdir, finish(start(file, workdir))


@pytest.fixture
def processes(monkeypatch):
    """The arguments of members' processes, which are not started; all of them succeed."""
    calls = []

    def run_process(arguments):
        calls.append(arguments)
        return 0

    monkeypatch.setattr(runner, "_run_process", run_process)
    return calls


def summary(workdir, name=NAMES[0]):
    """What a member left behind, without times and speeds."""
    content = json.loads((workdir / f"{name}.json").read_text())
    for entry in (*content["starts"], *(e for part in content["results"].values() for e in part)):
        del entry["time"]
    for metric in TIMES:
        del content["curves"][metric]
    return content


def trained(content):
    """What does not depend on how often the training was interrupted."""
    return {name: part for name, part in content.items() if name != "starts"}


def plan_of(file, **overrides):
    changes = {key.replace("__", "."): text for key, text in overrides.items()}
    return plans.load(str(file), changes)


def test_every_member_leaves_its_directory_and_its_summary(sequential):
    workdir, output = sequential
    assert sorted(path.name for path in workdir.iterdir()) == sorted(
        ["sweep.json", *NAMES, *(f"{name}.json" for name in NAMES)]
    )
    assert "all 2 members are finished" in output
    order = [output.index(part) for part in ("member 0 of 2: simclr", "member 1 of 2: simclr_gs")]
    assert order == sorted(order)
    plan = json.loads((workdir / runner.PLAN_FILE).read_text())
    assert [member["name"] for member in plan["members"]] == NAMES
    for name, label in zip(NAMES, ("SimCLR", "SimCLR-GS"), strict=True):
        run = runs.read_summary(epath.Path(workdir / f"{name}.json"))
        assert (run.step, run.num_steps, run.name) == (20, 20, name)
        assert run.member == {"label": label, "seed": 5, "value": None, "reference": ""}
        assert set(run.results) == {"diagnostics"}
        assert [entry["step"] for entry in run.starts] == [0]
        assert run.curves["train/loss"] == [
            (step, pytest.approx(value, rel=1e-5))
            for step, value in runs.read(epath.Path(workdir / name)).curves["train/loss"]
        ]


def test_members_of_a_seed_see_the_same_first_batch_with_the_same_weights(sequential):
    """The loss differs; the spread of the embeddings before the first update does not."""
    one, two = (summary(sequential[0], name)["curves"] for name in NAMES)
    assert one["train/loss"][0] != two["train/loss"][0]
    assert one["train/embedding_std"][0] == pytest.approx(two["train/embedding_std"][0], rel=1e-5)
    assert one["train/embedding_std"][-1] != pytest.approx(two["train/embedding_std"][-1], rel=1e-5)


@pytest.mark.slow  # the sweep itself starts its members by index
def test_members_by_index_at_a_time_are_those_of_the_sequence(file, sequential, tmp_path):
    processes = [start(file, tmp_path, f"--sweep_index={i}") for i in range(2)]
    for process in processes:
        finish(process)
    for name in NAMES:
        assert summary(tmp_path, name) == summary(sequential[0], name)
    assert (tmp_path / "sweep.json").read_text() == (sequential[0] / "sweep.json").read_text()


PARENT = """
import sys
from jax._src import xla_bridge
from gsjax import main
sys.argv = ["main", *sys.argv[1:]]
try:
    main.main()
finally:
    print("device touched:", xla_bridge.backends_are_initialized())
"""


def test_second_start_skips_finished_members_and_touches_no_device(file, sequential, tmp_path):
    """The summaries alone are finished work."""
    for name in NAMES:
        shutil.copy(sequential[0] / f"{name}.json", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PARENT, "--job=sweep", f"--config={file}", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("already finished")] == [
        f"already finished: {tmp_path / name}.json exists" for name in NAMES
    ]
    assert "device touched: False" in done.stdout
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    for name in NAMES:
        assert summary(tmp_path, name) == summary(sequential[0], name)


def test_only_what_has_no_summary_is_run(file, sequential, tmp_path, processes):
    shutil.copy(sequential[0] / f"{NAMES[0]}.json", tmp_path)
    runner.run_all(plan_of(file), str(tmp_path), ["--job=sweep"])
    assert processes == [["--job=sweep", "--sweep_index=1"]]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"knn__every_epochs": "3", "data__data_dir": "elsewhere", "log__every_steps": "7"}, []),
        ({"linear__num_epochs": "3", "diagnostics__neighbors": "6"}, []),
        ({"diagnostics__num_images": "11"}, [0, 1]),
        ({"data__test_split": "train"}, [0, 1]),
    ],
)
def test_settings_that_change_no_result_leave_a_member_finished(
    file, sequential, tmp_path, processes, overrides, expected
):
    for name in NAMES:
        shutil.copy(sequential[0] / f"{name}.json", tmp_path)
    runner.run_all(plan_of(file, **overrides), str(tmp_path), [])
    assert processes == [[f"--sweep_index={i}"] for i in expected]


def test_a_summary_without_a_younger_setting_counts_with_its_default(file, sequential, tmp_path):
    content = json.loads((sequential[0] / f"{NAMES[0]}.json").read_text())
    del content["config"]["retrieval"], content["config"]["augment"]["hue"]
    content["config"]["diagnostics"]["gone"] = 3
    (tmp_path / f"{NAMES[0]}.json").write_text(json.dumps(content))
    plan = plan_of(file)
    assert runner.finished(plan, plan.members[0], epath.Path(tmp_path))


def test_a_summary_of_an_unfinished_training_or_an_older_encoder_does_not_count(
    file, sequential, tmp_path
):
    plan, target = plan_of(file), tmp_path / f"{NAMES[0]}.json"
    content = json.loads((sequential[0] / f"{NAMES[0]}.json").read_text())
    target.write_text(json.dumps(content | {"step": 19}))
    assert not runner.finished(plan, plan.members[0], epath.Path(tmp_path))
    content["results"]["diagnostics"][0]["step"] = 10
    target.write_text(json.dumps(content))
    assert not runner.finished(plan, plan.members[0], epath.Path(tmp_path))


def test_summaries_of_other_settings_are_refused_before_anything_runs(
    file, sequential, tmp_path, processes
):
    shutil.copy(sequential[0] / f"{NAMES[1]}.json", tmp_path)
    plan = plan_of(file, similarity__threshold="0.4", batch_size="64")
    refused = rf"{NAMES[1]}.json has different settings \(batch_size: 8 -> 64; similarity.thr"
    with pytest.raises(UserError, match=refused):
        runner.run_all(plan, str(tmp_path), [])
    with pytest.raises(UserError, match=refused):
        runner.run_member(plan, plan.members[1], str(tmp_path))
    assert processes == []
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAMES[1]}.json"]


def test_an_added_evaluation_is_made_up_for_without_training(sequential, tmp_path):
    added = write(tmp_path, SWEEP.replace("arms=", 'jobs=("knn",), arms='))
    plan, member = plan_of(added), plan_of(added).members[0]
    before = sequential[0] / NAMES[0]
    shutil.copytree(before, tmp_path / NAMES[0])
    shutil.copy(sequential[0] / f"{NAMES[0]}.json", tmp_path)
    runner.run_member(plan, member, str(tmp_path))
    run = runs.read_summary(epath.Path(tmp_path / f"{NAMES[0]}.json"))
    assert set(run.results) == {"knn", "diagnostics"}
    assert runner.finished(plan, member, epath.Path(tmp_path))
    after = tmp_path / NAMES[0]
    for name in ("metrics.jsonl", "environment.json"):
        assert (after / name).read_bytes() == (before / name).read_bytes()
    # The monitor measured the same encoder on the same pictures.
    assert run.results["knn"][0]["scores"]["knn/top1"] == pytest.approx(
        run.curves["knn/top1"][-1][1]
    )

    shutil.rmtree(after)
    run = json.loads((sequential[0] / f"{NAMES[0]}.json").read_text())
    (tmp_path / f"{NAMES[0]}.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match=r"lacks results .*\(knn\), and .* has no checkpoint"):
        runner.run_member(plan, member, str(tmp_path))


def test_failed_members_are_named_and_keep_no_other_from_running(
    file, tmp_path, monkeypatch, capsys
):
    statuses = {"--sweep_index=0": 2, "--sweep_index=1": 0}
    calls = []

    def run_process(arguments):
        calls.append(arguments[-1])
        return statuses[arguments[-1]]

    monkeypatch.setattr(runner, "_run_process", run_process)
    with pytest.raises(UserError, match=r"1 of 2 members failed: 0 \(simclr-seed5, status 2\)"):
        runner.run_all(plan_of(file), str(tmp_path), [])
    assert calls == list(statuses)
    assert "are finished" not in capsys.readouterr().out


def test_only_the_first_host_writes_plan_and_summary(file, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(jobs.Job, "load", lambda job, *_: lambda *_: ran.append(job.module))
    monkeypatch.setattr(parallel, "is_primary", lambda: False)
    plan = plan_of(file)
    runner.run_member(plan, plan.members[0], str(tmp_path))
    assert ran == ["gsjax.train.pretrain", "gsjax.evaluate.diagnostics"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "everyone"),
    [
        (signal.SIGTERM, True),  # as a cluster does at the end of a job's time
        (signal.SIGTERM, False),
        (signal.SIGINT, False),
    ],
)
def test_a_stopped_sweep_saves_its_step_and_goes_on(file, sequential, tmp_path, number, everyone):
    parent = start(file, tmp_path)
    wait_for(parent, lambda: children(parent))
    (child,) = children(parent)
    metrics = tmp_path / NAMES[0] / "metrics.jsonl"
    wait_for(parent, lambda: metrics.exists() and metrics.read_text())
    if everyone:
        os.kill(child, number)
    parent.send_signal(number)
    output = finish(parent, status=128 + number)
    step = max(int(path.name) for path in (tmp_path / NAMES[0] / "checkpoints").iterdir())
    assert step < 20
    assert f"stopped and saved at step {step}" in output
    assert "member 1" not in output
    assert not list(tmp_path.glob("simclr*.json"))
    assert f"from step {step}" in finish(start(file, tmp_path, "--sweep_index=0"))
    resumed = summary(tmp_path)
    assert [entry["step"] for entry in resumed["starts"]] == [0, step]
    assert trained(resumed) == trained(summary(sequential[0]))


def children(process):
    return [
        int(number)
        for path in pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
        for number in path.read_text().split()
    ]


@pytest.mark.slow
def test_a_failing_member_in_a_real_sweep_and_one_in_64_bits(tmp_path):
    arms = """arms=(
        Arm("Broken", "base", {"batch_size": 6000}),
        Arm("Precise", "base", {"encoder.dtype": "float64", "num_steps": 4}),
    ),"""
    begin, end = SWEEP.index("arms="), SWEEP.index("    )\n")
    file = write(tmp_path, SWEEP[:begin] + arms + SWEEP[end:])
    parent = start(file, tmp_path / "run")
    _, errors = parent.communicate()
    assert parent.returncode == 2
    lines = [line for line in errors.splitlines() if line.startswith("gsjax: error")]
    assert "use at most 64" in lines[0]
    assert "1 of 2 members failed: 0 (broken-seed5, status 2)" in lines[1]
    saved = tmp_path / "run" / "precise-seed5" / "checkpoints" / "4" / "default"
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(saved).item_metadata.tree
    assert {str(leaf.dtype) for leaf in _leaves(tree["params"])} == {"float64"}
    assert (tmp_path / "run" / "precise-seed5.json").exists()


def _leaves(tree):
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in _leaves(part)]
    return [tree]


@pytest.mark.slow
def test_a_sweep_on_two_hosts_is_the_sweep_on_one(file, sequential, tmp_path):
    for process in [start(file, tmp_path, *host) for host in host_flags(2)]:
        finish(process)
    for name in NAMES:
        one, two = (summary(folder, name)["curves"] for folder in (sequential[0], tmp_path))
        assert one["train/loss"][0] == pytest.approx(two["train/loss"][0], rel=1e-5)
        assert len(two["train/loss"]) == 20

"""Trainings that are killed without a word go on as if nothing had been."""

import json
import random
import shutil
import subprocess
import sys
import time

import jax
import pytest
from etils import epath
from trainings import (
    assert_same_end,
    command,
    finish,
    flags,
    of_pictures,
    small_config,
    write_pictures,
)

from gsjax.data import input_pipeline
from gsjax.runtime import parallel, writers
from gsjax.train.pretrain import pretrain

EVERY = 2  # steps between two saves


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def complete(workdir):
    """Steps of the checkpoints that have a manifest."""
    return {int(path.parent.name) for path in workdir.glob("checkpoints/*/manifest.sha256")}


def wait(process, condition):
    """Whether the condition came before the end of the process."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def kill_in_save(process, workdir, generator):
    """Kills in a save, one or more after the first of this start; says whether it broke off."""
    before = max(complete(workdir), default=0)
    step = before + EVERY * generator.randint(2, 3)
    if wait(process, (workdir / "checkpoints" / str(step)).exists):
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
    process.communicate()
    return (workdir / "checkpoints" / str(step)).exists() and step not in complete(workdir)


def kill_in_steps(process, workdir, generator):
    """Kills up to two seconds after the first line of metrics of this start."""
    file = workdir / "metrics.jsonl"
    size = file.stat().st_size if file.exists() else 0
    if wait(process, lambda: file.exists() and file.stat().st_size != size):
        time.sleep(generator.uniform(0, 2))
        process.kill()
    process.communicate()
    return False


def kill_and_resume(pictures, tmp_path, steps, kills, in_saves, **changes):
    """Kills again and again; a run that ends in spite of it is checked, and another begins."""
    settings = of_pictures(pictures, num_steps=steps, checkpoint__every_steps=str(EVERY), **changes)
    arguments = flags(**settings)
    oracle = tmp_path / "uninterrupted"
    began = time.monotonic()
    finish(command(oracle, *arguments))
    seconds = time.monotonic() - began
    generator = random.Random(kills)
    done = broken_off = runs = 0
    workdir = tmp_path / "0"
    while done < kills or broken_off < in_saves:
        process = command(workdir, *arguments)
        kind = done % 3
        if kind == 0 or done >= kills:
            broken_off += kill_in_save(process, workdir, generator)
        elif kind == 1:
            kill_in_steps(process, workdir, generator)
        else:
            time.sleep(generator.uniform(0, seconds))
            process.kill()
        process.communicate()
        if process.returncode == 0:
            assert_same_end(workdir, oracle, steps)
            runs += 1
            workdir = tmp_path / str(runs)
            continue
        assert process.returncode == -9
        done += 1
    finish(command(workdir, *arguments))
    assert_same_end(workdir, oracle, steps)
    print(f"{done} kills, {broken_off} of them in a save, {runs + 1} runs")


def test_a_killed_training_ends_as_if_it_had_not_been(pictures, tmp_path):
    kill_and_resume(pictures, tmp_path, steps=20, kills=2, in_saves=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills, changes",
    [
        (30, {}),
        (30, {"method": "mocov2", "queue__size": "48"}),
        (10, {"method": "byol", "crops__local_views": "3", "crops__local_size": "8"}),
        (
            10,
            {
                "method": "dino",
                "similarity__measure": "none",
                "prototypes__number": "24",
                "prototypes__frozen_epochs": "0.5",
                "encoder__name": "vit_tiny",
                "encoder__depth": "2",
                "encoder__patch_size": "8",
                "encoder__drop_path": "0.5",
                "crops__local_views": "3",
                "crops__local_size": "8",
            },
        ),
    ],
    ids=["simclr", "mocov2", "multi_crop", "dino"],
)
def test_many_kills_change_nothing(pictures, tmp_path, kills, changes):
    kill_and_resume(pictures, tmp_path, steps=60, kills=kills, in_saves=kills // 3, **changes)


@pytest.fixture(scope="module")
def every_step(pictures, tmp_path_factory):
    """A run of two epochs with all its checkpoints, and the digests of its batches."""
    overrides = of_pictures(pictures, num_steps=20, checkpoint__every_steps=1, checkpoint__keep=20)
    config = small_config(**{key: str(value) for key, value in overrides.items()})
    workdir = tmp_path_factory.mktemp("every") / "run"
    with pytest.MonkeyPatch.context() as patch:
        seen = record_batches(patch)
        parallel.start("float32")
        pretrain(config, str(workdir))
    assert len(seen) == len(set(seen)) == 20
    return config, workdir, seen


def record_batches(patch):
    """Notes the digest of every batch that a training takes."""
    seen = []
    original = input_pipeline.train_batches

    def train_batches(*arguments, **settings):
        for batch in original(*arguments, **settings):
            seen.append(hash(tuple(array.tobytes() for array in jax.tree.leaves(batch))))
            yield batch

    patch.setattr(input_pipeline, "train_batches", train_batches)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 20))
def test_a_resume_takes_the_same_batches_to_the_same_end(every_step, step, tmp_path, monkeypatch):
    config, oracle, batches = every_step
    workdir = tmp_path / "run"
    shutil.copytree(oracle, workdir)
    for k in range(step + 1, 21):
        shutil.rmtree(workdir / "checkpoints" / str(k))
    seen = record_batches(monkeypatch)
    pretrain(config, str(workdir))
    assert seen == batches[step:]
    assert_same_end(workdir, oracle, 20)


CUT = """
import os, pathlib, random, signal, sys, time
from etils import epath
from gsjax.runtime import writers

folder = pathlib.Path(sys.argv[1])
lines = [f'{{"step": {i}, "train/loss": {i / 7}}}\\n' for i in range(1, 60001)]
generator = random.Random(0)
began = time.monotonic()
seconds = 0
for trial in range(25):
    (folder / "metrics.jsonl").write_text("".join(lines))
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        writers.JsonLines(epath.Path(folder), 40000)
        os._exit(0)
    if trial:
        time.sleep(generator.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seconds = seconds or time.monotonic() - began
    found = (folder / "metrics.jsonl").read_text()
    print(len(found.splitlines()), found == "".join(lines[:len(found.splitlines())]))
"""


def test_a_kill_in_the_cut_of_the_metrics_loses_none(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CUT, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    outcomes = [line.split() for line in done.stdout.splitlines()]
    assert len(outcomes) == 25
    assert {tuple(outcome) for outcome in outcomes} == {("40000", "True"), ("60000", "True")}


def test_a_torn_line_is_cut(tmp_path):
    """What a full disk left of a line does not swallow the next one."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    writer = writers.JsonLines(epath.Path(tmp_path), 1)
    writer.write_scalars(2, {"a": 2.0})
    writer.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]

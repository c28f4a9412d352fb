"""Small trainings in processes of their own, as the command line starts them."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from conftest import FAST_COMPILATION, REPO_ROOT
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from gsjax.config import settings

PLAIN = {"augment.jitter": "0", "augment.gray": "0"}  # color jitter compiles for long
SMALL = PLAIN | {
    "num_steps": "12",
    "batch_size": "32",
    "encoder.width": "4",
    "data.image_size": "16",
    "projector.hidden_dim": "16",
    "projector.out_dim": "8",
    "knn.baselines": "false",
    "checkpoint.every_steps": "4",
    "log.every_steps": "1",
    "log.example_pairs": "2",
}
TOY = SMALL | {"encoder.name": "toy"}
PROGRAM = (str(REPO_ROOT / "tests/toy_main.py"),)
TIMES = ("train/images_per_second", "train/data_wait")


def small_config(**overrides):
    config = settings.load(None)
    changes = {key.replace("__", "."): text for key, text in overrides.items()}
    settings.override(config, TOY | changes)
    return settings.check(config)


def flags(**overrides):
    changes = TOY | {key.replace("__", "."): text for key, text in overrides.items()}
    if changes["encoder.name"].startswith("vit"):
        del changes["encoder.width"]  # which a command line may not set for it
    return [f"--config.{key}={text}" for key, text in changes.items()]


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES}
        for line in lines
    ]


def events(workdir):
    """(step, metric) of every scalar in the event files, as TensorBoard reads them."""
    read = event_accumulator.EventAccumulator(
        str(workdir), size_guidance={event_accumulator.TENSORS: 0}, purge_orphaned_data=False
    ).Reload()
    tags = [tag for tag in read.Tags()["tensors"] if "/" in tag]  # the others are images
    return sorted((event.step, tag) for tag in tags for event in read.Tensors(tag))


def trained(workdir):
    """The records after step 0, where only the finished run has the baselines."""
    return [row for row in records(workdir) if row["step"] > 0]


def wait_for(process, condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command(
    workdir,
    *arguments,
    devices=1,
    fast=True,
    environment=None,
    output=subprocess.PIPE,
    program=PROGRAM,
):
    xla_flags = f"--xla_force_host_platform_device_count={devices} {FAST_COMPILATION * fast}"
    environment = (environment or os.environ) | {"XLA_FLAGS": xla_flags}
    return subprocess.Popen(
        [sys.executable, *program, "--workdir", str(workdir), *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def host_flags(count):
    """The flags that make processes the hosts of one run, for each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    one_run = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
    return [[*one_run, f"--process_id={i}"] for i in range(count)]


def together(workdir, count, *arguments, own=(), **options):
    """Starts the processes of one run; `own` are further arguments of each."""
    return [
        command(workdir, *host, *arguments, *own[i : i + 1], **options)
        for i, host in enumerate(host_flags(count))
    ]


def quiet(output):
    """What a host that is not the first prints, apart from the collectives' library."""
    return [line for line in output.splitlines() if "Gloo" not in line]


def finish(process, status=0):
    """Waits, and returns what the process printed."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == status, errors
    return output


def final_state(workdir, step=12):
    """All arrays of a checkpoint, by name."""
    path = pathlib.Path(workdir) / "checkpoints" / str(step) / "default"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        # Also what several processes have written.
        args = ocp.args.PyTreeRestore(restore_args=as_numpy)
        return jax.tree.leaves(checkpointer.restore(path, args=args))


def write_pictures(folder):
    """Two classes in a train split of 80 pictures and a test split of 8."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 80), ("test", 8)):
        for i in range(count):
            path = folder / split / ("dark", "bright")[i % 2] / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 128, (20, 24, 3), dtype=np.uint8) + 127 * (i % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def of_pictures(folder, **overrides):
    """Overrides for a training on them: 10 steps an epoch, the monitor after each."""
    return {
        "data__source": "folder",
        "data__data_dir": str(folder),
        "batch_size": "8",
        "knn__k": "3",
        "knn__every_epochs": "1",
        "log__example_pairs": "0",
    } | overrides


def assert_same_end(workdir, oracle, step):
    """Final state and metrics are those of the oracle to the bit, and no metric stands twice."""
    for a, b in zip(final_state(oracle, step), final_state(workdir, step), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = records(workdir)
    assert rows == records(oracle)
    logged = [(row["step"], name) for row in rows for name in row if name != "step"]
    assert len(logged) == len(set(logged)) > step
    assert [row for row in events(workdir) if row[1] not in TIMES] == sorted(logged)

"""Several processes on one machine, as hosts of one training: together from start to end."""

import hashlib
import json
import signal
import time

import jax
import numpy as np
import pytest
import tiny_tfds
from PIL import Image
from test_not_finite import DIVERGING
from trainings import (
    command,
    final_state,
    finish,
    flags,
    of_pictures,
    quiet,
    records,
    small_config,
    together,
    trained,
    wait_for,
    write_pictures,
)

from gsjax.data import input_pipeline, sources
from gsjax.methods import METHODS

PEER_LIMIT = 30.0  # seconds from a process' death to the end of the others


def assert_peer_is_missed(process):
    """It ends in time and says so: in one line, or where JAX's heartbeat is first, as JAX does."""
    begin = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert time.monotonic() - begin < PEER_LIMIT
    assert process.returncode in (75, -signal.SIGABRT), errors
    if process.returncode == 75:
        assert "gsjax: error: another process of this run has exited" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("hosts", [2, 4])
def test_batches_of_several_hosts_are_those_of_one(hosts):
    config = small_config()
    source = sources.open_source(config.data, config.data.split)

    def digests(batches):
        return [
            [hashlib.sha256(column.tobytes()).hexdigest() for column in jax.tree.leaves(batch)]
            for batch in batches
        ]

    def joined(parts):
        for one_step in zip(*parts, strict=True):
            yield jax.tree.map(lambda *columns: np.concatenate(columns), *one_step)

    one = digests(input_pipeline.train_batches(source, config, 0, 3))
    parts = [input_pipeline.train_batches(source, config, 0, 3, i, hosts) for i in range(hosts)]
    assert digests(joined(parts)) == one


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    finish(command(workdir, *flags()))
    return workdir


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_at_the_same_step(alone, tmp_path):
    processes = together(tmp_path, 2, *flags())
    wait_for(processes[1], lambda: (tmp_path / "metrics.jsonl").exists() and records(tmp_path))
    processes[1].send_signal(signal.SIGTERM)
    begin = time.monotonic()
    outputs = [finish(process, status=143) for process in processes]
    assert time.monotonic() - begin < 20
    stopped = records(tmp_path)[-1]["step"]
    assert stopped < 12
    assert f"stopped and saved at step {stopped}" in outputs[0]
    assert quiet(outputs[1]) == []
    outputs = [finish(process) for process in together(tmp_path, 2, *flags())]
    assert f"from step {stopped}" in outputs[0]
    rows = trained(tmp_path)
    assert [row["step"] for row in rows] == [*range(1, 13), 12]
    first, whole = rows[0]["train/loss"], trained(alone)[0]["train/loss"]
    np.testing.assert_allclose(first, whole, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_peer_ends_the_others_and_a_restart_goes_on_exactly(victim, tmp_path):
    long = flags(num_steps="12", checkpoint__every_steps="2")
    for process in together(tmp_path / "whole", 2, *long):
        finish(process)
    processes = together(tmp_path / "killed", 2, *long)
    wait_for(processes[1], (tmp_path / "killed/checkpoints/4/manifest.sha256").exists)
    processes[victim].kill()
    assert_peer_is_missed(processes[1 - victim])
    processes[victim].communicate()
    for process in together(tmp_path / "killed", 2, *long):
        finish(process)
    assert trained(tmp_path / "killed") == trained(tmp_path / "whole")
    one, other = final_state(tmp_path / "whole"), final_state(tmp_path / "killed")
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


SHARED = """
import functools
from gsjax.runtime import lock; from gsjax import main
lock.is_shared = lambda folder: True
lock.beating = functools.partial(lock.beating, stale=40.0)
main.main()
"""


@pytest.mark.slow
def test_hosts_wait_while_the_first_watches_a_dead_ones_lock(tmp_path):
    """On shared storage, for longer than the 30 s that a first exchange of Gloo waits."""
    (tmp_path / "pretrain.lock").write_text("{}")
    began = time.monotonic()
    one_step = flags(num_steps="1", encoder__name="resnet18")
    for process in together(tmp_path, 2, *one_step, program=("-c", SHARED)):
        finish(process)
    assert time.monotonic() - began > 40
    assert (tmp_path / "checkpoints/1/manifest.sha256").exists()


@pytest.mark.slow
def test_hosts_do_not_prepare_a_data_set_at_once(tmp_path):
    own = flags(data__source="cifar10", data__data_dir=str(tmp_path))
    for process in together(tmp_path / "run", 2, *own):
        _, told = process.communicate(timeout=300)
        assert process.returncode == 2
        assert f"run tfds build cifar10 --data_dir={tmp_path} first" in told
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_what_stops_one_host_ends_the_other_and_is_told_once(tmp_path):
    """A damaged picture that only the second host meets, by their shares of each batch."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(32):
        pixels = generator.integers(0, 256, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02}.png")
    own = flags(
        data__source="folder", data__data_dir=str(tmp_path / "pictures"), data__split="",
        data__labeled_split="", data__test_split="", log__example_pairs="0",
    )  # fmt: skip
    config = small_config(
        data__source="folder", data__data_dir=str(tmp_path / "pictures"), data__split=""
    )
    source = sources.open_source(config.data, config.data.split)
    second = next(input_pipeline.train_batches(source, config, 0, 1, 1, 2))["index"]
    (tmp_path / "pictures" / f"{second[0]:02}.png").write_bytes(b"")
    processes = together(tmp_path / "run", 2, *own)
    _, told = processes[1].communicate(timeout=300)
    assert processes[1].returncode == 2
    (line,) = [line for line in told.splitlines() if line.startswith("gsjax:")]
    assert line.startswith("gsjax: error: 1 of the 32 images") and "Traceback" not in told
    assert_peer_is_missed(processes[0])


@pytest.mark.slow
def test_a_nan_on_two_hosts_saves_the_last_good_state(tmp_path):
    outputs = together(tmp_path, 2, *flags(**DIVERGING, checkpoint__every_steps="1000"))
    errors = [process.communicate(timeout=300)[1] for process in outputs]
    assert [process.returncode for process in outputs] == [2, 2]
    found = json.loads((tmp_path / "not_finite.json").read_text())
    assert f"gsjax: error: step {found['step']}: " in errors[0]
    assert len(found["images"]) == 32
    assert (tmp_path / f"checkpoints/{found['step'] - 1}/manifest.sha256").exists()


def assert_second_is_refused(processes, differences):
    """The second of two hosts says what is other than the first's; the first does not go on."""
    first, other = processes
    _, told = other.communicate(timeout=300)
    assert other.returncode == 2
    assert "process 1 has different settings or data than process 0 (" in told
    assert differences in told
    assert_peer_is_missed(first)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seed", (5, 6)),
        pytest.param("knn.k", (20, 21), marks=pytest.mark.slow),  # free, and measured together
    ],
)
def test_hosts_of_other_settings_are_told(key, values, tmp_path):
    own = [f"--config.{key}={value}" for value in values]
    processes = together(tmp_path, 2, *flags(), own=own)
    assert_second_is_refused(processes, f"({key}: {values[0]} -> {values[1]})")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "values"), [("knn.k", (20, 21)), ("checkpoint.load", ("latest", "none"))]
)
def test_hosts_of_an_evaluation_with_other_settings_are_told(key, values, alone):
    own = [f"--config.{key}={value}" for value in values]
    processes = together(alone, 2, "--job=knn", own=own)
    # Without a checkpoint, other settings are not the run's either.
    assert_second_is_refused(processes, f"{key}: {values[0]} -> {values[1]}")


@pytest.mark.slow
def test_hosts_of_other_pictures_are_told(tmp_path):
    folders = [write_pictures(tmp_path / name) for name in ("one", "two")]
    (folders[1] / "train/dark/00.png").unlink()
    own = [f"--config.data.data_dir={folder}" for folder in folders]
    processes = together(tmp_path / "run", 2, *flags(**of_pictures(folders[0])), own=own)
    assert_second_is_refused(processes, "(num_images: 80 -> 79; file_names: ")


@pytest.mark.slow
def test_hosts_of_other_test_pictures_are_told(tmp_path):
    folders = [write_pictures(tmp_path / name) for name in ("one", "two")]
    (folders[1] / "test/dark/00.png").unlink()
    own = [f"--config.data.data_dir={folder}" for folder in folders]
    processes = together(tmp_path / "run", 2, *flags(**of_pictures(folders[0])), own=own)
    told = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "differs between hosts: give all hosts the same files" in told[0]


def measured(workdir, name):
    return [(row["step"], row[name]) for row in records(workdir) if name in row]


@pytest.fixture(scope="module")
def in_float64(tmp_path_factory):
    """The flags of a run of ten epochs, and the work directory of one process that ran it."""
    overrides = of_pictures(
        write_pictures(tmp_path_factory.mktemp("pictures")), encoder__dtype="float64",
        batch_size="16", num_steps="50", knn__every_epochs="5", checkpoint__every_steps="20",
    )  # fmt: skip
    workdir = tmp_path_factory.mktemp("float64")
    finish(command(workdir, *flags(**overrides)))
    return flags(**overrides), workdir


@pytest.mark.slow
@pytest.mark.parametrize("hosts,devices", [(2, 1), (2, 2), (4, 1), (4, 2)])
def test_fifty_steps_are_those_of_one_process_in_float64(in_float64, hosts, devices, tmp_path):
    """Train, monitor, save, evaluate; only the first host writes and prints."""
    arguments, alone = in_float64

    def run(*arguments):
        first, *others = [
            finish(process) for process in together(tmp_path, hosts, *arguments, devices=devices)
        ]
        assert f"{hosts} hosts" in first
        assert [quiet(output) for output in others] == [[]] * (hosts - 1)

    run(*arguments)
    losses, expected = (measured(path, "train/loss") for path in (tmp_path, alone))
    assert [step for step, _ in losses] == list(range(1, 51))
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    knn = measured(tmp_path, "knn/top1")
    assert knn == measured(alone, "knn/top1")
    assert [step for step, _ in knn] == [25, 50]
    run("--job=knn")
    (result,) = json.loads((tmp_path / "results/knn.json").read_text())
    assert result["scores"]["knn/top1"] == pytest.approx(knn[-1][1])


LOCAL = {"crops__local_views": "4", "crops__local_size": "8"}


DROP_PATH = LOCAL | {
    "encoder__name": "vit_tiny", "encoder__depth": "2", "encoder__patch_size": "8",
    "encoder__drop_path": "0.5", "loss__chunks": "2",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("crops", [{}, LOCAL, DROP_PATH], ids=["2", "2 + 4", "drop path"])
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_every_method_as_one_does(method, crops, tmp_path):
    """To the last leaf of the state: target networks and queues, too."""
    changes = {"similarity__measure": "ioa"} if METHODS[method].graded else {}
    if method == "dino":  # whose loss has no distance to grade
        changes |= {"similarity__form": "weight", "prototypes__number": "24"}
    if "queue.size" in METHODS[method].settings:
        changes["queue__size"] = "96"  # which is full after three of the twelve steps
    overrides = {
        "method": method, "encoder__dtype": "float64", "batch_size": "16",
        "projector__last_bn": str(method == "simsiam"), **crops,
    }  # fmt: skip
    arguments = flags(**overrides, **changes)
    finish(command(tmp_path / "one", *arguments))
    for process in together(tmp_path / "two", 2, *arguments):
        finish(process)
    losses = [measured(tmp_path / workdir, "train/loss") for workdir in ("two", "one")]
    np.testing.assert_allclose(*losses, rtol=1e-9)
    leaves, expected = (final_state(tmp_path / workdir) for workdir in ("two", "one"))
    for leaf, other in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_hosts_with_uneven_shards_end_together(tmp_path):
    """23 records in three files: one host reads 11, the other 12, both end three epochs."""
    tiny_tfds.write(tmp_path / "data")
    uneven = flags(
        data__source="tiny", data__data_dir=str(tmp_path / "data"), data__memory_gb="0",
        data__labeled_split="", data__test_split="", batch_size="4", num_steps="15",
    )  # fmt: skip
    for process in together(tmp_path / "run", 2, *uneven):
        finish(process)
    assert [row["step"] for row in records(tmp_path / "run")] == list(range(1, 16))

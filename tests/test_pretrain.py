"""The job from images to checkpoint: what it writes, stopping, resuming, refusing."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import FAST_COMPILATION, REPO_ROOT
from PIL import Image
from trainings import (
    command,
    final_state,
    finish,
    flags,
    quiet,
    records,
    small_config,
    together,
    trained,
    wait_for,
)

from gsjax.config import defaults, settings
from gsjax.errors import UserError
from gsjax.jobs import JOBS
from gsjax.train.pretrain import pretrain


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the command, its work directory and what it printed."""
    workdir = tmp_path_factory.mktemp("run")
    process = command(workdir, *flags(knn__baselines="true", profile__num_steps="2",
                                      profile__first_step="3"))  # fmt: skip
    return workdir, finish(process)


def test_files_and_metrics_of_a_run(finished):
    workdir, output = finished
    config = json.loads((workdir / "config.json").read_text())["config"]
    assert settings.flatten(config)["similarity.threshold"] == 0.5
    rows = records(workdir)
    assert [row["step"] for row in rows] == [0, *range(1, 13), 12]
    assert set(rows[1]) == {"step"} | {
        f"train/{name}"
        for name in (
            "loss", "learning_rate", "grad_norm", "psi_mean", "psi_one", "positive_distance",
            "embedding_std", "alignment", "uniformity", "rankme",
        )
    }  # fmt: skip
    assert set(rows[0]) == {"step", "knn/top1", "knn/pixels_top1"}
    assert set(rows[-1]) == {"step", "knn/top1"}
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {"8", "12"}
    assert list(workdir.glob("events.out.tfevents.*"))
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    for part in ("devices", "5000 images", "12 of 32", str(workdir), "raw pixels", "trained"):
        assert part in output


def test_examples_show_the_crops(finished):
    picture = np.asarray(Image.open(finished[0] / "examples.png"))
    assert picture.shape[0] > 2 * 160
    assert picture.std() > 20


def test_finished_run_says_so_and_does_nothing(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    assert "finished" in finish(command(workdir, *flags()))
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_refused_with_the_differences(finished):
    with pytest.raises(UserError, match=r"seed: 5 -> 6; similarity.threshold: 0.5 -> 0.4"):
        pretrain(small_config(seed="6", similarity__threshold="0.4"), str(finished[0]))


def test_fresh_start_over_checkpoints_is_refused(finished):
    process = command(finished[0], *flags(checkpoint__load="none"))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "checkpoint.load is none" in errors


def test_ctrl_c_and_resume_are_bit_identical_to_an_uninterrupted_run(finished, tmp_path):
    # Saving after each step takes the time that the signal needs to come before the end.
    process = command(tmp_path, *flags(checkpoint__every_steps="1", features__batch_size="1"))
    wait_for(process, lambda: (tmp_path / "metrics.jsonl").exists() and records(tmp_path))
    process.send_signal(signal.SIGINT)
    output = finish(process, status=128 + signal.SIGINT)
    stopped = records(tmp_path)[-1]["step"]
    assert f"stopped and saved at step {stopped}" in output
    assert stopped < 12
    programs = compiled_programs()
    assert f"from step {stopped}" in finish(command(tmp_path, *flags()))
    assert compiled_programs() == programs  # a second start compiles nothing
    assert trained(tmp_path) == trained(finished[0])
    for a, b in zip(final_state(finished[0]), final_state(tmp_path), strict=True):
        np.testing.assert_array_equal(a, b)


def compiled_programs():
    cache = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "gsjax" / "xla"
    return {file.name for file in cache.iterdir() if file.name.endswith("-cache")}


@pytest.mark.slow
def test_resume_cuts_metrics_to_the_restored_step(finished, tmp_path):
    """A process that dies without a word leaves lines after its last checkpoint."""
    process = command(tmp_path, *flags())
    wait_for(process, (tmp_path / "checkpoints/4/manifest.sha256").exists)
    process.kill()
    process.communicate()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "train/loss": 0.0}\n')
    finish(command(tmp_path, *flags()))
    assert trained(tmp_path) == trained(finished[0])


def test_folder_without_labels_has_no_monitor(finished, tmp_path):
    generator = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "pictures" / f"deep{i % 3}" / "er"
        folder.mkdir(parents=True, exist_ok=True)
        mode = ("L", "CMYK", "RGB")[i % 3]
        shape = (30 + i, 50, *(() if mode == "L" else (len(mode),)))
        picture = Image.fromarray(generator.integers(0, 256, shape).astype(np.uint8), mode)
        picture.save(folder / f"{i}.{'webp' if i % 3 == 2 else 'jpg'}")
    files = sorted(path for path in (tmp_path / "pictures").rglob("*.*"))
    first = files[np.random.default_rng([5, 0]).permutation(40)[0]]  # the first example picture
    first.write_bytes(first.read_bytes()[:100])
    output = finish(
        command(
            tmp_path / "run",
            *flags(
                data__max_damaged="0.03",
                data__source="folder",
                data__data_dir=str(tmp_path / "pictures"),
                data__split="",
                data__labeled_split="",
                data__test_split="",
            ),
        )
    )
    assert "40 images" in output
    assert (tmp_path / "run/examples.png").exists()
    assert len([line for line in output.splitlines() if "monitor  none: " in line]) == 1
    rows = records(tmp_path / "run")
    assert rows[-1]["step"] == 12
    assert not [row for row in rows if "knn/top1" in row]


def test_damaged_test_pictures_do_not_cost_the_training(tmp_path):
    """The last steps are on disk when the monitor finds nothing to measure."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 2)):
        (tmp_path / split / "cat").mkdir(parents=True)
        for i in range(count):
            path = tmp_path / split / "cat" / f"{i}.png"
            Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
            if split == "test":
                path.write_bytes(path.read_bytes()[:60])
    config = small_config(
        data__source="folder", data__data_dir=str(tmp_path), num_steps="2", knn__k="1",
        log__example_pairs="0",
    )  # fmt: skip
    with pytest.raises(UserError, match="none of the images can be decoded"):
        pretrain(config, str(tmp_path / "run"))
    assert (tmp_path / "run/checkpoints/2").is_dir()


@pytest.mark.slow
def test_two_processes_train_as_one(finished, tmp_path):
    outputs = [finish(process) for process in together(tmp_path, 2, *flags())]
    assert "2 hosts" in outputs[0]
    assert quiet(outputs[1]) == []
    one, two = records(finished[0])[1], records(tmp_path)[0]
    assert (one["step"], two["step"]) == (1, 1)
    np.testing.assert_allclose(two["train/loss"], one["train/loss"], rtol=1e-5)
    assert len(records(tmp_path)) == 13


READS = """
import sys
import jax
import ml_collections
import toy_main
from gsjax import methods
from gsjax.config import settings
from gsjax.crops import Crops
from gsjax.runtime import parallel
from gsjax.train import optimizers, pretrain, step

def recorded(config, use):
    groups = {id(config): ""} | {
        id(value): f"{name}." for name, value in config.items() if hasattr(value, "items")
    }
    original = ml_collections.ConfigDict.__getitem__
    whole = ml_collections.ConfigDict.to_dict
    def read(self, name):
        if id(self) in groups:
            keys.add(groups[id(self)] + name)
        return original(self, name)
    def written(self, *arguments):  # to write every setting into config.json is not to read it
        before = set(keys)
        content = whole(self, *arguments)
        keys.intersection_update(before)
        return content
    ml_collections.ConfigDict.__getitem__ = read
    ml_collections.ConfigDict.to_dict = written
    use(config)
    ml_collections.ConfigDict.__getitem__ = original
    ml_collections.ConfigDict.to_dict = whole

def trace(config):
    method = methods.create_method(config)
    optimizer = optimizers.create_optimizer(
        config, lambda count: 0.1, method.param_groups, late_steps=int(method.late_epochs)
    )
    mesh = parallel.create_mesh(config.batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = step.create_state_fn(config, method, optimizer, mesh).eval_shape(key)
    size = config.data.image_size
    crops = Crops(
        jax.ShapeDtypeStruct((config.batch_size, 2, size, size, 3), "uint8"),
        jax.ShapeDtypeStruct((config.batch_size, 2, 4), "float32"),
    )
    train_step = step.create_train_step(config, method, optimizer, mesh, 10, 10)
    jax.eval_shape(train_step, state, {"global": crops}, key)

toy_main.add_row()
keys = set()
_, overrides = settings.split_overrides(sys.argv[2:])
config = settings.load(None)
settings.override(config, overrides)
parallel.start(config.encoder.dtype)
recorded(settings.check(config), lambda config: parallel.choose_platform(config.platform))
recorded(settings.check(config), lambda config: pretrain.pretrain(config, sys.argv[1]))
settings.override(config, {"encoder.name": "resnet18", "method": "simsiam",
                           "projector.last_bn": "true", "similarity.measure": "none",
                           "augment.blur": "0.5"})
recorded(settings.check(config), trace)
settings.override(config, {"method": "mocov2", "optimizer.name": "adamw",
                           "encoder.name": "toy"})
recorded(settings.check(config), trace)
settings.override(config, {"method": "mocov3", "encoder.name": "vit_tiny", "encoder.depth": "1",
                           "encoder.patch_size": "8", "crops.local_size": "8"})
recorded(settings.check(config), trace)
settings.override(config, {"method": "dino", "projector.last_bn": "false"})
recorded(settings.check(config), trace)
open(sys.argv[1] + "/keys", "w").write(" ".join(sorted(keys)))
"""


def test_every_setting_is_read(finished, tmp_path):
    """A run of SimCLR and the programs of other methods and encoders read each setting."""
    crops = {"crops__local_views": "1", "crops__min_overlap": "0.1"}
    environment = os.environ | {"XLA_FLAGS": FAST_COMPILATION, "PYTHONPATH": str(REPO_ROOT)}
    subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path), *flags(**crops)],
        check=True, env=environment, cwd=pathlib.Path(__file__).parent,
    )  # fmt: skip
    read = set((tmp_path / "keys").read_text().split())
    unread = set(settings.flatten(defaults.get_config())) - read
    # tests/test_configs.py looks after those of the evaluation jobs.
    jobs = tuple(f"{job}." for job in ("features", "report", *JOBS))
    # Read where num_steps is 0, by folders and TFDS data sets (tests/test_sources.py), and with
    # weights of other programs (tests/test_weights.py).
    elsewhere = {"num_epochs", "data.data_dir", "data.memory_gb", "encoder.network"}
    assert sorted(key for key in unread - elsewhere if not key.startswith(jobs)) == []

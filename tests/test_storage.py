"""Damaged checkpoints, full disks and directories that cannot be written."""

import contextlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from clu.metric_writers import MultiWriter
from etils import epath
from trainings import (
    assert_same_end,
    command,
    finish,
    flags,
    of_pictures,
    records,
    small_config,
    write_pictures,
)

from gsjax.errors import UserError
from gsjax.evaluate import evaluation
from gsjax.runtime import checkpoints, files, manifest, parallel, writers
from gsjax.train.pretrain import pretrain


def state(value):
    weights = jax.random.normal(jax.random.key(value), (40, 30))
    return {"step": jnp.asarray(value), "weights": weights}


def save(folder, *steps, keep=9, keep_every=0):
    saved = checkpoints.Checkpoints(epath.Path(folder), keep, keep_every)
    for step in steps:
        saved.save(step, state(step), MultiWriter([]))


def restored(folder, load="latest"):
    opened = checkpoints.Checkpoints(epath.Path(folder), 9, 0)
    return jax.device_get(opened.restore(load, jax.eval_shape(lambda: state(0))))


def content(folder):
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def saved(tmp_path):
    save(tmp_path, 4, 6)
    return tmp_path / "checkpoints"


def test_the_manifest_is_what_sha256sum_says(saved):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "manifest.sha256"],
        cwd=saved / "6", capture_output=True, text=True, check=True,
    )  # fmt: skip
    listed = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    there = {path.relative_to(saved / "6").as_posix() for path in content(saved / "6")}
    assert listed == there - {"manifest.sha256"}
    paths = [line[66:] for line in (saved / "6" / "manifest.sha256").read_text().splitlines()]
    assert paths == sorted(paths)


def test_every_one_of_100_flipped_bits_is_found(saved, capsys):
    """Each time the one before is taken, and no file is deleted or changed."""
    newest = sorted(content(saved / "6"))
    sizes = [path.stat().st_size for path in newest]
    generator = random.Random(0)
    chosen = [*newest, *generator.choices(newest, sizes, k=100 - len(newest))]  # each at least once
    for path in chosen:
        good = path.read_bytes()
        bit = generator.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        before = content(saved)
        assert restored(saved.parent)["step"] == 4
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"warning: checkpoint {saved}/6 is damaged (")
        assert line.endswith("): using step 4 instead")
        if path.name != "manifest.sha256":
            assert f"({path.relative_to(saved / '6')} differs from its manifest)" in line
        assert checkpoints.find(epath.Path(saved.parent), "latest").name == "4"
        assert "using step 4 instead" in capsys.readouterr().out
        assert content(saved) == before
        path.write_bytes(good)
    assert restored(saved.parent)["step"] == 6
    assert len(chosen) == 100


def largest(folder):
    return max(content(folder), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:100])


def cut_manifest(folder):
    """At the end of a line, which leaves it well-formed."""
    text = (folder / "manifest.sha256").read_text()
    (folder / "manifest.sha256").write_text("".join(text.splitlines(keepends=True)[:-2]))


DAMAGE = {
    "truncated": (truncate, r"differs from its manifest"),
    "a file missing": (lambda folder: largest(folder).unlink(), r"is missing"),
    "nothing left": (lambda folder: shutil.rmtree(folder / "default"), r"is missing"),
    "manifest cut": (cut_manifest, "manifest.sha256 does not match the files"),
    "manifest empty": (lambda f: (f / "manifest.sha256").write_text(""), "not match the files"),
    "a file more": (lambda f: (f / "default" / "x").write_text("x"), "does not match the files"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_one_before_is_taken(saved, kind, capsys):
    damage, named = DAMAGE[kind]
    damage(saved / "6")
    before = content(saved)
    assert restored(saved.parent)["step"] == 4
    output = capsys.readouterr().out
    assert re.search(
        rf"checkpoint {saved}/6 is damaged \(.*{named}\): using step 4 instead", output
    )
    with pytest.raises(UserError, match=rf"{saved}/6 is damaged \(.*{named}\): choose another"):
        checkpoints.find(epath.Path(saved.parent), "6")
    with pytest.raises(UserError, match=rf"{saved}/6 is damaged \(.*{named}\): choose another"):
        restored(saved.parent / "new", str(saved / "6"))
    assert content(saved) == before


def test_a_missing_folder_is_passed_over(saved):
    shutil.rmtree(saved / "6")
    assert restored(saved.parent)["step"] == 4


def test_no_good_checkpoint_is_never_a_fresh_start(saved):
    truncate(saved / "4")
    truncate(saved / "6")
    for load in ("latest", str(saved / "4")):
        with pytest.raises(UserError, match=r"6 is damaged .*4 is damaged .*there is no other"):
            restored(saved.parent, load)


def test_an_incomplete_checkpoint_is_named_and_passed_over(tmp_path, capsys):
    save(tmp_path, 4)
    folder = tmp_path / "checkpoints"
    (folder / "4" / "manifest.sha256").unlink()
    warning = f"{folder}/4 is incomplete (killed while saving): "
    with pytest.raises(UserError, match="4 is not a complete checkpoint"):
        restored(tmp_path / "new", str(folder / "4"))
    with pytest.raises(UserError, match="no checkpoint in "):
        checkpoints.find(epath.Path(tmp_path), "latest")
    assert restored(tmp_path) is None
    assert f"{warning}starting from scratch" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["4.incomplete"]
    save(tmp_path, 2, 4)
    (folder / "4" / "manifest.sha256").unlink()
    assert restored(tmp_path)["step"] == 2
    assert f"{warning}resuming from step 2" in capsys.readouterr().out
    save(tmp_path / "other", 6)
    save(tmp_path / "new", 4)
    (tmp_path / "new/checkpoints/4/manifest.sha256").unlink()
    other = tmp_path / "other/checkpoints/6"
    assert restored(tmp_path / "new", str(other))["step"] == 6
    assert f"(killed while saving): starting from {other}\n" in capsys.readouterr().out
    save(tmp_path, 4)
    assert restored(tmp_path)["step"] == 4
    assert capsys.readouterr().out == ""


def test_a_lost_manifest_of_a_training_that_went_on_is_no_killed_save(tmp_path):
    save(tmp_path, 4)
    mark = tmp_path / "checkpoints" / "4" / "manifest.sha256"
    mark.rename(tmp_path / "elsewhere")
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.write('{"step": 6, "train/loss": 1.0}\n')
    with pytest.raises(UserError, match=r"has its manifest\.sha256: restore these files"):
        restored(tmp_path)
    (tmp_path / "elsewhere").rename(mark)
    assert restored(tmp_path)["step"] == 4


def test_a_step_that_was_not_finite_before_a_killed_save_is_not_beyond_it(tmp_path):
    """Its values are written, then the state before it is saved; here that save was killed."""
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "train/loss": null}\n')
    assert restored(tmp_path) is None
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4.incomplete"]


@pytest.mark.parametrize("name", ["default/.nfs0001", ".DS_Store", "desktop.ini"])
def test_what_desktops_leave_is_no_damage(name, tmp_path):
    save(tmp_path, 2, 4)
    (tmp_path / "checkpoints" / "4" / name).write_text("")
    assert restored(tmp_path)["step"] == 4


def test_a_file_more_is_damage(tmp_path, capsys):
    save(tmp_path, 2, 4)
    (tmp_path / "checkpoints" / "4" / "default" / "more").write_text("")
    assert restored(tmp_path)["step"] == 2


def test_kills_in_first_saves_at_several_steps_are_no_lost_manifests(tmp_path):
    for step in (3, 2, 3):
        save(tmp_path, step)
        (tmp_path / "checkpoints" / str(step) / "manifest.sha256").unlink()
        assert restored(tmp_path) is None


def test_what_is_older_goes_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    save(tmp_path, 1, 2, 3, 4)
    complete = []
    original = manifest.remove

    def remove(folder):
        if folder.exists():
            complete.append((int(folder.name), manifest.exists(folder.parent / "5")))
        original(folder)

    monkeypatch.setattr(manifest, "remove", remove)
    save(tmp_path, 5, keep=1, keep_every=2)
    assert complete == [(1, True), (3, True)]
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"2", "4", "5"}


def test_a_damaged_one_does_not_push_out_good_ones(tmp_path):
    """Of the newest that are kept it is none; before its step is reached it stays."""
    save(tmp_path, 4, 8)
    truncate(tmp_path / "checkpoints" / "8")
    saved = checkpoints.Checkpoints(epath.Path(tmp_path), 2, 0)
    target = jax.eval_shape(lambda: state(0))
    assert saved.restore("latest", target)["step"] == 4
    saved.save(6, state(6), MultiWriter([]))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "6", "8"}
    saved.save(9, state(9), MultiWriter([]))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"6", "9"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.slow
def test_a_training_goes_on_from_the_one_before_to_the_same_end(pictures, tmp_path, capsys):
    overrides = of_pictures(pictures, num_steps="6", checkpoint__every_steps="2")
    parallel.start("float32")
    pretrain(small_config(**overrides), str(tmp_path / "oracle"))
    shutil.copytree(tmp_path / "oracle", tmp_path / "run")
    truncate(tmp_path / "run" / "checkpoints" / "6")
    capsys.readouterr()
    pretrain(small_config(**overrides), str(tmp_path / "run"))
    output = capsys.readouterr().out
    assert "is damaged" in output and "of 8 images, from step 4" in output
    assert_same_end(tmp_path / "run", tmp_path / "oracle", 6)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "6"}


@contextlib.contextmanager
def mounted(folder, *options):
    """A disk of its own in memory, for those who may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"no small disk can be mounted here: {done.stderr.strip()}"
        if os.environ.get("CI") and os.getuid() == 0:
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, left):
    """Leaves this many bytes free."""
    statistics = os.statvfs(folder)
    free = statistics.f_bavail * statistics.f_frsize
    with (folder / "filler").open("wb", buffering=0) as file:
        file.write(bytes(max(0, free - left)))


def one_line(errors):
    lines = [line for line in errors.splitlines() if line]
    assert [line for line in lines if line.startswith("gsjax: error: ")] == lines[-1:]
    assert "Traceback" not in errors
    return lines[-1]


def test_a_disk_that_is_full_in_a_save_stops_it_there(tmp_path):
    with mounted(tmp_path / "disk", "size=2m") as disk:
        save(disk, 4)
        fill(disk, 16384)
        before = content(disk / "checkpoints" / "4")
        with pytest.raises(
            UserError, match=rf"{disk}/checkpoints/6 cannot be written: No space left on device"
        ):
            save(disk, 6)
        assert content(disk / "checkpoints" / "4") == before
        assert restored(disk)["step"] == 4
        (disk / "filler").unlink()
        save(disk, 6)
        assert restored(disk)["step"] == 6


@pytest.mark.slow
def test_a_training_on_a_full_disk_ends_in_one_line_and_goes_on_later(pictures, tmp_path):
    arguments = flags(
        **of_pictures(pictures, num_steps="20", checkpoint__every_steps="4", checkpoint__keep="99"),
    )
    finish(command(tmp_path / "oracle", *arguments))
    size = sum(len(data) for data in content(tmp_path / "oracle" / "checkpoints" / "4").values())
    with mounted(tmp_path / "disk", "size=20m") as disk:
        fill(disk, int(2.6 * size) + 40000)
        process = command(disk / "run", *arguments)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 2, errors
        line = one_line(errors)
        steps = checkpoints.saved_steps(epath.Path(disk / "run"))
        failed = next(step for step in (4, 8, 10, 12, 16, 20) if step > steps[-1])  # 10: before kNN
        assert f"{disk}/run/checkpoints/{failed} cannot be written: No space left" in line
        assert steps[-1] < 20
        (disk / "filler").unlink()
        output = finish(command(disk / "run", *arguments))
        assert f"from step {steps[-1]}" in output
        assert_same_end(disk / "run", tmp_path / "oracle", 20)


def test_metrics_on_a_full_disk_end_in_one_line(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        writer = writers.create_writer(epath.Path(disk), 0)
        writer.write_scalars(1, {"a": 1.0})
        writer.flush()
        fill(disk, 0)
        with pytest.raises(UserError, match=f"{disk} cannot be written: .*[Nn]o space left"):
            for step in range(2, 2000):
                writer.write_scalars(step, {"a": 1.0})
                writer.flush()
        with contextlib.suppress(UserError):
            writer.close()
        (disk / "filler").unlink()
        writer = writers.create_writer(epath.Path(disk), 1)
        writer.write_scalars(2, {"a": 2.0})
        writer.close()
        assert records(disk) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}]


def test_a_full_disk_leaves_a_file_as_it_was(tmp_path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        file = epath.Path(disk) / "config.json"
        files.write_text(file, "before")
        fill(disk, 8192)
        with pytest.raises(UserError, match="config.json cannot be written: No space left"):
            with files.write_errors(file):
                files.write_text(file, "x" * 100000)
        assert file.read_text() == "before"
        assert {path.name for path in disk.iterdir()} == {"config.json", "filler"}


def test_a_read_only_disk_is_named_before_data_are_read(tmp_path):
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        with pytest.raises(UserError, match=f"{disk}/run cannot be written: Read-only file system"):
            pretrain(small_config(data__source="folder", data__data_dir="nowhere"), f"{disk}/run")


def test_an_evaluation_on_a_read_only_disk_says_so_before_it_begins(tmp_path):
    config = small_config(checkpoint__load="none")
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "results").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        told = pytest.raises(UserError, match=f"{disk}/results cannot be written: Read-only")
        with told, evaluation.open_evaluation(config, str(disk), "knn"):
            pytest.fail("it has begun")


SAYS = "from gsjax.runtime import metrics\nmetrics.log('one')\nmetrics.log('two')\nopen('end', 'w')"


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_work_goes_on_where_nothing_can_be_printed(kind, tmp_path):
    with no_output(kind) as output:
        done = subprocess.run(
            [sys.executable, "-c", SAYS],
            stdout=output, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("gsjax:")]
    assert (tmp_path / "end").exists()


@contextlib.contextmanager
def no_output(kind):
    """A log on a full disk, or a pipe whose reader has gone."""
    if kind == "full":
        with open("/dev/full", "w") as output:
            yield output
    else:
        reading, writing = os.pipe()
        os.close(reading)
        yield writing
        os.close(writing)


@pytest.mark.slow
def test_a_training_whose_log_is_on_a_full_disk_goes_on(tmp_path):
    with no_output("full") as output:
        process = command(tmp_path, *flags(), output=output)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert checkpoints.saved_steps(epath.Path(tmp_path)) == [8, 12]

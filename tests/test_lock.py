"""One training in a work directory at a time."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from trainings import command, flags, of_pictures, together, wait_for, write_pictures

from gsjax.errors import UserError
from gsjax.runtime import lock

# Holds a lock until it is killed.
HOLD = """
import contextlib, sys, time
from etils import epath
from gsjax.runtime import lock
kind, folder = sys.argv[1:]
file = epath.Path(folder) / "pretrain.lock"
held = lock.flocked(file) if kind == "flock" else lock.beating(file, 0.2, 2.0)
with held:
    print("held", flush=True)
    time.sleep(600)
"""


def hold(kind, folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, kind, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while (line := process.stdout.readline()) != "held\n":
        assert line, process.communicate()
    return process


def take(kind, folder):
    file = epath.Path(folder) / "pretrain.lock"
    return lock.flocked(file) if kind == "flock" else lock.beating(file, 0.2, 2.0)


@pytest.mark.parametrize("kind", ["flock", "beat"])
def test_the_second_is_refused_by_name_and_the_dead_do_not_block(kind, tmp_path):
    first = hold(kind, tmp_path)
    try:
        time.sleep(2.5 if kind == "beat" else 0)  # longer than the stale age
        named = rf"{tmp_path} is in use .*process {first.pid} on {socket.gethostname()} since 20"
        with pytest.raises(UserError, match=named), take(kind, tmp_path):
            pytest.fail("two hold it")
    finally:
        first.kill()
        first.communicate()
    assert (tmp_path / "pretrain.lock").exists()
    began = time.monotonic()
    with take(kind, tmp_path):
        waited = time.monotonic() - began
        assert waited < 0.5 if kind == "flock" else waited >= 2.0
        about = json.loads((tmp_path / "pretrain.lock").read_text())
        assert about["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_who_comes_back_too_late_ends_at_once(tmp_path):
    first = hold("beat", tmp_path)
    first.send_signal(signal.SIGSTOP)
    with take("beat", tmp_path):
        first.send_signal(signal.SIGCONT)
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 2
        assert f"process {os.getpid()}" in errors
        assert errors.count("gsjax: error: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_who_comes_back_after_another_has_ended_ends_too(tmp_path):
    first = hold("beat", tmp_path)
    first.send_signal(signal.SIGSTOP)
    with take("beat", tmp_path):
        pass
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 2
    assert f"{tmp_path} is in use by another process" in errors
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_come_at_once_one_holds(tmp_path, monkeypatch):
    """All have seen that nobody holds it; the last to write has it."""
    together = threading.Barrier(4)
    watch = lock._watch
    monkeypatch.setattr(lock, "_watch", lambda *a: (watch(*a), time.sleep(0.1 * together.wait())))
    everyone_tried = threading.Barrier(4)

    def come(_):
        try:
            with lock.beating(epath.Path(tmp_path) / "pretrain.lock", 5.0, 10.0):
                everyone_tried.wait()
            return "held"
        except UserError:
            everyone_tried.wait()
            return "refused"

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(come, range(4))) == ["held", *3 * ["refused"]]
    assert list(tmp_path.iterdir()) == []


def test_buckets_and_network_mounts_are_shared(tmp_path, monkeypatch):
    assert lock.is_shared(epath.Path("gs://bucket/run"))
    table = tmp_path / "mounts"
    table.write_text(
        "/dev/vda / ext4 rw 0 0\n"
        f"server:/x {tmp_path}/with\\040space nfs4 rw 0 0\n"
        f"tmpfs {tmp_path}/with\\040space/local tmpfs rw 0 0\n"
        f"drive {tmp_path}/drive fuse.drive rw 0 0\n"
    )
    monkeypatch.setattr(lock, "_MOUNTS", table)
    for name, shared in (
        ("with space", True),
        ("with space/run", True),
        ("with space/local/run", False),
        ("with", False),
        ("drive", True),
    ):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        assert lock.is_shared(epath.Path(tmp_path / name)) == shared


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    pictures = write_pictures(tmp_path_factory.mktemp("pictures"))
    return flags(
        **of_pictures(pictures, num_steps="5000", data__labeled_split="", data__test_split="")
    )


@pytest.mark.slow
def test_a_second_training_is_refused_and_one_after_a_kill_goes_on(arguments, tmp_path):
    first = command(tmp_path, *arguments)
    wait_for(first, (tmp_path / "checkpoints" / "4" / "manifest.sha256").exists)
    second = command(tmp_path, *arguments)
    _, errors = second.communicate()
    assert second.returncode == 2
    (line,) = errors.splitlines()
    assert f"gsjax: error: {tmp_path} is in use by another process (process {first.pid}" in line
    assert "tests/toy_main.py" in line
    first.kill()
    first.communicate()
    third = command(tmp_path, *arguments)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    wait_for(third, lambda: (tmp_path / "metrics.jsonl").stat().st_size > size + 200)
    third.send_signal(signal.SIGINT)
    output, _ = third.communicate()
    assert "steps    5000 of 8 images, from step" in output and "from step 0" not in output


@pytest.mark.slow
def test_several_processes_are_refused_with_one_message(arguments, tmp_path):
    first = hold("flock", tmp_path)
    both = together(tmp_path, 2, *arguments)
    outputs = [process.communicate(timeout=300) for process in both]
    first.kill()
    first.communicate()
    assert [process.returncode for process in both] == [2, 2]
    assert f"is in use by another process (process {first.pid}" in outputs[0][1]
    assert "gsjax: error" not in outputs[1][1] + outputs[1][0]


def test_a_directory_that_cannot_be_written_is_named_before_data_are_read(tmp_path):
    (tmp_path / "file").write_text("")
    process = command(tmp_path / "file" / "run", *flags(data__source="folder", data__data_dir="no"))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors == f"gsjax: error: {tmp_path}/file/run cannot be written: Not a directory\n"

"""A process ends although batches are on their way: the end of tf.data waits for Python calls."""

import concurrent.futures
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from trainings import small_config

from gsjax.data import input_pipeline, sources, transforms

LIMIT = 10.0  # seconds from the last line to the end

# Every picture is decoded by Pillow: there are always Python calls in flight.
ABANDON = """
import os, sys, threading, time
from gsjax.config import settings
from gsjax.data import input_pipeline, sources, transforms

folder, kind, way, delay = sys.argv[1:]
config = settings.load(None)
changes = {"data.source": "folder", "data.data_dir": folder, "batch_size": "8"}
settings.override(config, changes | {"data.image_size": "32"})
source = sources.open_source(config.data, "")
if kind == "train":
    batches = input_pipeline.train_batches(source, config, 0, 10**6)
else:
    batches = input_pipeline.test_batches(source, transforms.central(32), 8)
if way in ("pipeline", "kept"):  # an error of the pipeline itself, with others in flight
    try:
        for batch in input_pipeline.train_batches(source, config, 0, 10**6):
            pass
    except Exception as error:
        kept = error
        print("end", flush=True)
        if way == "pipeline":
            raise
        sys.exit(0)
next(batches)

def pull():
    for _ in batches:
        pass

if way == "thread":
    threading.Thread(target=pull, daemon=True).start()
time.sleep(float(delay))
if way == "cycle":
    held = [batches]
    held.append(held)
    del batches
if way == "error":
    print("end", flush=True)
    raise ValueError("of the caller")
if way == "interrupt":
    print("end", flush=True)
    raise KeyboardInterrupt
print("end", flush=True)
if way == "exit":
    sys.exit(3)
"""
STATUS = {
    "end": 0, "cycle": 0, "thread": 0, "exit": 3, "error": 1, "interrupt": -2, "pipeline": 1,
    "kept": 0,
}  # fmt: skip
TOLD = {
    "error": "ValueError: of the caller",
    "interrupt": "KeyboardInterrupt",
    "pipeline": "gsjax.errors.UserError: 1 of the 40 images",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(64):
        pixels = generator.integers(0, 256, (300, 300, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.bmp")
    return folder


def abandon(folder, kind, way, delay):
    """Abandons batches; returns what is wrong with the end of the process, None for nothing."""
    process = subprocess.Popen(
        [sys.executable, "-c", ABANDON, str(folder), kind, way, str(delay)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "it never ended"
    last = (errors.splitlines() or [""])[-1]
    told = last.startswith(TOLD[way]) if way in TOLD else not last
    if (line, process.returncode, told, "ignored" in errors) != ("end\n", STATUS[way], True, False):
        return line, process.returncode, errors
    seconds = time.monotonic() - began
    return None if seconds < LIMIT else f"it took {seconds:.1f} s"


@pytest.fixture(scope="module")
def slow_pictures(tmp_path_factory):
    """Pictures that take Pillow so long that others are in flight when the damaged one is met."""
    folder = tmp_path_factory.mktemp("slow")
    pixels = np.random.default_rng(0).integers(0, 65536, (2500, 2500), np.uint16)
    Image.fromarray(pixels).save(folder / "00.png")
    for i in range(1, 40):
        (folder / f"{i:02}.png").hardlink_to(folder / "00.png")
    for i in range(3, 40, 4):
        (folder / f"{i:02}.png").unlink()
        (folder / f"{i:02}.png").write_bytes(b"damaged")
    return folder


@pytest.mark.parametrize("way", [pytest.param("pipeline", marks=pytest.mark.slow), "kept"])
def test_a_process_ends_after_an_error_of_the_pipeline(way, slow_pictures):
    assert abandon(slow_pictures, "train", way, 0) is None


@pytest.mark.parametrize(
    ("kind", "way"), [("train", "end"), ("test", "thread"), ("train", "error")]
)
def test_a_process_ends_with_batches_in_flight(kind, way, pictures):
    assert abandon(pictures, kind, way, 0.02) is None


@pytest.mark.slow
def test_a_hundred_exits_at_random_moments(pictures):
    generator = random.Random(0)
    trials = [
        (kind, way, round(generator.uniform(0, 0.2), 3))
        for kind in ("train", "test")
        for way in STATUS.keys() - {"pipeline", "kept"}
        for _ in range(9)
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda trial: abandon(pictures, *trial), trials))
    assert [(t, fault) for t, fault in zip(trials, found, strict=True) if fault] == []
    assert len(trials) > 100


@pytest.mark.parametrize("kind", ["train", "test"])
def test_closed_batches_end_and_leave_no_thread_waiting(kind, pictures):
    config = small_config(data__source="folder", data__data_dir=str(pictures), batch_size="8")
    source = sources.open_source(config.data, "")
    if kind == "train":
        batches = input_pipeline.train_batches(source, config, 0, 10**6)
    else:
        batches = input_pipeline.test_batches(source, transforms.central(16), 8)
    taken = []
    thread = threading.Thread(target=lambda: taken.extend(batches))
    thread.start()
    while not taken:
        time.sleep(0.01)
    batches.close()
    thread.join(10)
    assert not thread.is_alive()
    assert list(batches) == []
    batches.close()

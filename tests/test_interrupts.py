"""Signals at every stage: what is saved, what is said, how long it takes."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from trainings import command, final_state, finish, flags, records, trained, wait_for

LIMIT = 20.0  # seconds from the signal to the end, on a busy machine
STATUS = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
    signal.SIGUSR1: 138,
    signal.SIGUSR2: 140,
    signal.SIGXCPU: 152,
}

BUSY = """
import contextlib, hashlib
from gsjax.runtime import interrupts
with interrupts.exit_on_signal():
    with {block}:
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # many minutes in C, as a compilation
"""


def busy(block):
    """A process whose main thread cannot run Python's signal handlers."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(block=block)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    return process


def ended(process, number, begin):
    """Waits for the end; returns standard output and the error lines."""
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()  # it may not have heard
    assert time.monotonic() - begin < LIMIT
    assert process.returncode == STATUS[number], errors
    return output, errors.splitlines()


def test_a_second_ctrl_c_leaves_at_once_also_from_c():
    process = busy("interrupts.deferred(interrupts.Request())")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)  # of the same request
    time.sleep(1.2)
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = ended(process, signal.SIGINT, begin)
    assert time.monotonic() - begin < 1
    assert errors == ["gsjax: stopped immediately by SIGINT"]


@pytest.mark.parametrize("number", STATUS)
def test_where_nothing_is_to_be_saved_one_signal_ends_also_c(number):
    process = busy("contextlib.nullcontext()")
    begin = time.monotonic()
    process.send_signal(number)
    _, errors = ended(process, number, begin)
    assert time.monotonic() - begin < 1
    assert errors == [f"gsjax: stopped by {number.name}; rerun the same command"]


NOTES = """
import sys, time
from gsjax.runtime import interrupts
request = interrupts.Request()
with interrupts.exit_on_signal(), interrupts.deferred(request):
    print("ready", flush=True)
    while not request.signal:
        time.sleep(0.01)
    time.sleep(float(sys.argv[1]))  # a save that takes its time
    print("saved", flush=True)
    request.check()
"""
TEARDOWN = """
import atexit, time
from gsjax.runtime import interrupts
atexit.register(lambda: (print("ending", flush=True), time.sleep(1)))
request = interrupts.Request()
with interrupts.exit_on_signal():
    with interrupts.deferred(request):
        print("ready", flush=True)
        while not request.signal:
            time.sleep(0.01)
    request.check()
"""


def test_a_signal_that_comes_again_does_not_change_the_status():
    """Neither a scheduler that repeats itself, nor SIGXCPU, in the last second of the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", TEARDOWN],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGXCPU)
    assert process.stdout.readline() == "ending\n"
    for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    ended(process, signal.SIGXCPU, time.monotonic())


@pytest.mark.parametrize(
    ("numbers", "saved"),
    [
        ([signal.SIGINT], True),
        ([signal.SIGHUP], True),
        ([signal.SIGUSR2], True),
        ([signal.SIGTERM, signal.SIGCONT], True),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGCONT], True),  # SLURM before and at the limit
        ([signal.SIGHUP, signal.SIGTERM, signal.SIGHUP], True),  # the end of a session
        ([signal.SIGXCPU, signal.SIGXCPU, signal.SIGXCPU], True),  # the kernel, every second
        ([signal.SIGTERM, signal.SIGTERM], False),
        ([signal.SIGUSR1, signal.SIGINT], False),
    ],
)
def test_only_an_impatient_user_interrupts_a_save(numbers, saved):
    process = subprocess.Popen(
        [sys.executable, "-c", NOTES, str(1.5 * len(numbers))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(1.2 * (len(numbers) > 1))
    output, _ = ended(process, numbers[0] if saved else numbers[-1], time.monotonic())
    assert output == "saved\n" * saved


def test_a_suspended_process_goes_on():
    process = subprocess.Popen(
        [sys.executable, "-c", NOTES, "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTSTP)
    until(lambda: state(process.pid) == "T")
    process.send_signal(signal.SIGCONT)
    until(lambda: state(process.pid) != "T")
    process.send_signal(signal.SIGUSR1)
    assert ended(process, signal.SIGUSR1, time.monotonic())[0] == "saved\n"


def state(pid):
    """R, S, D, T (stopped) or Z, as the kernel shows it."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nohup_keeps_sighup_ignored():
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", NOTES, "0"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert ended(process, signal.SIGUSR1, time.monotonic())[0] == "saved\n"


def test_handlers_of_the_calling_program_are_left_alone():
    """As submitit's for SIGUSR2, which sends the job into the queue again."""
    script = (
        "import os, signal; heard = []\n"
        "signal.signal(signal.SIGUSR2, lambda *_: heard.append(1))\n"
        "from gsjax.runtime import interrupts\n"
        "request = interrupts.Request()\n"
        "with interrupts.exit_on_signal(), interrupts.deferred(request):\n"
        "    os.kill(os.getpid(), signal.SIGUSR2)\n"
        "    assert heard and not request.signal\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_ignored_signal_stays_ignored():
    script = (
        "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from gsjax.runtime import interrupts\n"
        "request = interrupts.Request()\n"
        "with interrupts.exit_on_signal(), interrupts.deferred(request):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert not request.signal\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with kNN after steps 4, 8 and 12."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(command(workdir, *flags(**KNN)))
    return workdir


# A monitor every 4 of 156 steps, with an encoder slow enough to be interrupted in it.
KNN = {"knn__every_epochs": "0.0256", "encoder__name": "resnet18"}
SLOW_KNN = KNN | {"features__batch_size": "1"}  # 7,000 batches


def rows(workdir):
    return len(records(workdir)) if (workdir / "metrics.jsonl").exists() else 0


def same_as(whole, workdir):
    assert trained(workdir) == trained(whole)
    for a, b in zip(final_state(whole), final_state(workdir), strict=True):
        assert (a == b).all()


@pytest.mark.slow
def test_sigterm_in_compilation(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # it does compile
    process = command(tmp_path / "run", *flags(), environment=environment, fast=False)
    while not process.stdout.readline().startswith("compiling"):
        assert process.poll() is None
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, errors = ended(process, signal.SIGTERM, begin)
    assert "1/12" not in output
    assert len(errors) == 1 and "by SIGTERM" in errors[0]


@pytest.mark.slow
def test_sigterm_in_the_knn_of_a_training(whole, tmp_path):
    """The step is saved; the measurement that was cut short is made by the next start."""
    process = command(tmp_path, *flags(**SLOW_KNN))
    wait_for(process, lambda: rows(tmp_path) >= 4)
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = ended(process, signal.SIGTERM, begin)
    assert "stopped and saved at step 4" in output
    assert "kNN accuracy" not in output
    assert "from step 4" in finish(command(tmp_path, *flags(**KNN)))
    same_as(whole, tmp_path)


@pytest.mark.slow
def test_ctrl_c_in_the_last_knn_of_a_training(whole, tmp_path):
    arguments = flags(encoder__name="resnet18")
    process = command(tmp_path, *arguments, "--config.features.batch_size=1")
    wait_for(
        process, lambda: (tmp_path / "metrics.jsonl").exists() and len(records(tmp_path)) == 12
    )
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = ended(process, signal.SIGINT, begin)
    assert "stopped and saved at step 12" in output
    assert "trained encoder" in finish(command(tmp_path, *arguments))
    assert records(tmp_path)[-1] == records(whole)[-1]


@pytest.mark.slow
def test_sigterm_in_the_linear_evaluation(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    settings = {"linear.batch_size": 16, "linear.num_epochs": 1, "log.every_steps": 1}
    linear = ["--job=linear", *(f"--config.{key}={value}" for key, value in settings.items())]
    process = command(run, *linear)
    wait_for(process, lambda: rows(run / "linear") > 2)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = ended(process, signal.SIGTERM, begin)
    steps = [row["step"] for row in records(run / "linear")]
    assert f"stopped and saved at step {steps[-1]}" in output
    assert not (run / "results" / "linear.json").exists()
    assert f"from step {steps[-1]}" in finish(command(run, *linear))
    steps = [row["step"] for row in records(run / "linear")]
    assert steps == [*range(1, steps[-1] + 1), steps[-1]]


@pytest.mark.slow
def test_sigterm_in_an_evaluation(whole):
    evaluate = ["--job=knn", "--config.features.keep=false"]
    process = command(whole, *evaluate, "--config.features.batch_size=1")
    while not process.stdout.readline().startswith("workdir"):
        assert process.poll() is None
    time.sleep(1)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = ended(process, signal.SIGTERM, begin)
    assert errors == ["gsjax: stopped by SIGTERM; rerun the same command"]
    assert not list((whole / "results").iterdir())
    assert "top1" in finish(command(whole, *evaluate))

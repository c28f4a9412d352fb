"""What each signal does to a real training, on one host and two, and to a sweep."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import FAST_COMPILATION as FAST
from test_interrupts import KNN, SLOW_KNN, ended, rows, same_as, state, until
from test_sweep import NAMES, SWEEP, children, start, write
from trainings import PROGRAM, command, finish, flags, records, together, wait_for


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with kNN after steps 4, 8 and 12."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(command(workdir, *flags(**KNN)))
    return workdir


def stopped(whole, run, process, number, *more):
    """Sends the signals in the first steps of a training; it saves its step and goes on later."""
    wait_for(process, lambda: rows(run) >= 2)
    begin = time.monotonic()
    for each in (number, *more):
        process.send_signal(each)
    output, _ = ended(process, number, begin)
    step = records(run)[-1]["step"]
    assert step < 12
    assert f"stopped and saved at step {step}" in output
    assert f"from step {step}" in finish(command(run, *flags(**KNN)))
    same_as(whole, run)


# The monitor after step 4 takes longer than the signal.
AT_STEP_4 = flags(**SLOW_KNN)


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGHUP],
        [signal.SIGUSR1, signal.SIGTERM, signal.SIGCONT],
        [signal.SIGUSR2],
        [signal.SIGXCPU, signal.SIGXCPU],
    ],
)
def test_every_signal_saves_the_step_of_a_training(whole, tmp_path, numbers):
    stopped(whole, tmp_path, command(tmp_path, *AT_STEP_4), *numbers)


TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.slow
def test_a_training_whose_terminal_is_closed_saves_its_step(whole, tmp_path):
    """The kernel sends SIGHUP, and from then on every write is an I/O error."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *PROGRAM, "--workdir", str(tmp_path), *AT_STEP_4],
        stdin=slave, stdout=slave, stderr=slave,
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {FAST}"},
    )  # fmt: skip
    os.close(slave)
    drain = threading.Thread(target=read_until_closed, args=[master], daemon=True)
    drain.start()
    wait_for(process, lambda: rows(tmp_path) >= 2)
    os.close(master)
    assert process.wait(60) == 129
    step = records(tmp_path)[-1]["step"]
    assert step < 12
    assert f"from step {step}" in finish(command(tmp_path, *flags(**KNN)))
    same_as(whole, tmp_path)


def read_until_closed(master):
    with contextlib.suppress(OSError):
        while select.select([master], [], [], 0.1) and os.read(master, 4096):
            pass


@pytest.mark.slow
def test_a_limit_of_cpu_time_saves_the_step(tmp_path):
    """The kernel's own SIGXCPU, which comes again every second."""
    long = flags(num_steps="100000", checkpoint__every_steps="100000", encoder__name="resnet18")
    process = command(
        tmp_path, *long, program=("-c", "import resource; from gsjax import main\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (30, 300)); main.main()"),
    )  # fmt: skip
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 152, errors
    assert f"stopped and saved at step {records(tmp_path)[-1]['step']}" in output


@pytest.mark.slow
def test_sigusr1_to_one_of_two_hosts_saves_the_same_step_on_both(tmp_path):
    processes = together(tmp_path, 2, *flags(num_steps="2000", checkpoint__every_steps="2000"))
    wait_for(processes[1], lambda: rows(tmp_path) >= 2)
    processes[1].send_signal(signal.SIGUSR1)
    outputs = [finish(process, status=138) for process in processes]
    step = records(tmp_path)[-1]["step"]
    assert f"stopped and saved at step {step}" in outputs[0]
    assert (tmp_path / f"checkpoints/{step}/manifest.sha256").exists()


@pytest.mark.slow
def test_a_sweep_hands_signals_on_and_is_suspended_with_its_member(tmp_path):
    file = write(tmp_path, SWEEP)
    parent = start(file, tmp_path / "sweep")
    wait_for(parent, lambda: children(parent))
    (member,) = children(parent)
    run = tmp_path / "sweep" / NAMES[0]
    wait_for(parent, lambda: rows(run) >= 1)
    parent.send_signal(signal.SIGTSTP)
    until(lambda: state(parent.pid) == state(member) == "T")
    parent.send_signal(signal.SIGCONT)
    until(lambda: state(parent.pid) != "T" and state(member) != "T")
    parent.send_signal(signal.SIGUSR1)
    output = finish(parent, status=138)
    assert f"stopped and saved at step {records(run)[-1]['step']}" in output
    assert "member 1" not in output

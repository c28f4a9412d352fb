"""How a run starts, in real processes: several that meet or miss each other, and no home folder."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import FAST_COMPILATION

from gsjax.errors import UserError
from gsjax.runtime import cluster, parallel

START = """
import functools, gc, sys
from gsjax import jobs, main; from gsjax.runtime import rendezvous
seconds = float(sys.argv.pop(1))
rendezvous._FIRST_LINE = 0.5
rendezvous.meet = functools.partial(rendezvous.meet, seconds=seconds)

def started(*_):
    import jax
    assert gc.isenabled() and gc.get_freeze_count() > 100_000
    print(f"\\nstarted {jax.process_index()} of {jax.process_count()}\\n", end="")

jobs.Job.load = lambda *_: started
main.main()
"""


def launch(*arguments, seconds=60.0, **variables):
    """A process that only starts up, as the command line does; waits so long for the others."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TPU_"))}
    # One device each: with several on the CPU, a process that ends right after it has started may
    # wait forever for those that have not connected yet.
    inherited["XLA_FLAGS"] = FAST_COMPILATION
    return subprocess.Popen(
        [sys.executable, "-c", START, str(seconds), "--config.platform=cpu", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=inherited | variables,
    )


def result(process, timeout=60):
    """Exit status, what was started, and gsjax's own lines on standard error."""
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert "Check failure" not in errors and "Traceback" not in errors, errors
    lines = [line for line in errors.splitlines() if line.startswith("gsjax:")]
    return process.returncode, [x for x in output.splitlines() if x.startswith("started")], lines


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def of_several(port, process_id, count, host="localhost"):
    return [
        f"--coordinator={host}:{port}", f"--num_processes={count}", f"--process_id={process_id}",
    ]  # fmt: skip


def slurm(process_id, count, **changes):
    """The environment of an srun task; None takes a variable out."""
    variables = {
        "SLURM_JOB_ID": str(4096 + os.getpid() % 4096), "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_TASKS": str(count), "SLURM_PROCID": str(process_id), "SLURM_LOCALID": "0",
    }  # fmt: skip
    return {k: v for k, v in (variables | changes).items() if v is not None}


def test_tasks_of_an_srun_find_each_other():
    processes = [launch(**slurm(i, 3)) for i in range(3)]
    for i, process in enumerate(processes):
        status, started, _ = result(process)
        assert (status, started) == (0, [f"started {i} of 3"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lone_task_of_an_srun_says_whom_it_waits_for_and_can_be_stopped(number):
    process = launch(**slurm(0, 4))
    line = process.stderr.readline()
    assert line.startswith("gsjax: waiting for processes 1, 2 and 3 of 4 at localhost:")
    assert "(from SLURM)" in line and "add --num_processes=1" in line
    process.send_signal(number)
    begin = time.monotonic()
    assert result(process)[0] == 128 + number
    assert time.monotonic() - begin < 5


def test_one_process_is_one_whatever_the_environment_says():
    status, started, lines = result(launch("--num_processes=1", **slurm(2, 4)))
    assert (status, started, lines) == (0, ["started 0 of 1"], [])


def test_who_does_not_come_is_named_in_one_line(port):
    """Also to those who came."""
    processes = [launch(*of_several(port, i, 4), seconds=6) for i in (0, 2)]
    for process in processes:
        status, _, lines = result(process)
        assert status == 2
        assert f"processes 1 and 3 of 4 did not connect to localhost:{port} within 6 s" in lines[-1]


def test_a_first_process_that_does_not_come_is_named(port):
    status, _, lines = result(launch(*of_several(port, 1, 2), seconds=3))
    assert status == 2
    assert f"process 1 of 2 cannot reach process 0 at localhost:{port}" in lines[-1]
    assert "connection refused" in lines[-1]


def test_a_first_process_that_dies_ends_the_others(port):
    first, other = (launch(*of_several(port, i, 3)) for i in (0, 1))
    while "process 2 of 3" not in (line := first.stderr.readline()):
        assert line
    first.kill()
    status, _, lines = result(other)
    first.communicate()
    assert status == 75
    assert f"process 0 at localhost:{port} exited before all had connected" in lines[-1]


@pytest.mark.slow
def test_a_process_that_dies_is_waited_for_again(port):
    first = launch(*of_several(port, 0, 3))
    second = launch(*of_several(port, 1, 3))
    while "process 2 of 3" not in (line := first.stderr.readline()):
        assert line
    second.kill()
    second.communicate()
    others = [launch(*of_several(port, i, 3)) for i in (1, 2)]
    for i, process in enumerate((first, *others)):
        status, started, _ = result(process)
        assert (status, started) == (0, [f"started {i} of 3"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "count", "expected"),
    [
        (1, 3, "there is already a process 1 at localhost:PORT: each needs its own --process_id"),
        (2, 4, "process 2 was started as one of 4 processes, but process 0 at localhost:PORT as"),
    ],
)
def test_a_process_that_does_not_belong_there_is_refused(port, number, count, expected):
    first, second = (launch(*of_several(port, i, 3)) for i in (0, 1))
    while "process 2 of 3" not in (line := first.stderr.readline()):
        assert line
    status, _, lines = result(launch(*of_several(port, number, count)))
    assert status == 2
    assert expected.replace("PORT", str(port)) in lines[-1]
    third = launch(*of_several(port, 2, 3))  # the others do not mind
    assert [result(process)[0] for process in (first, second, third)] == [0, 0, 0]


@pytest.mark.slow
def test_a_second_process_0_on_this_machine(port):
    first = launch(*of_several(port, 0, 2))
    assert "waiting for process 1 of 2" in first.stderr.readline()
    status, _, lines = result(launch(*of_several(port, 0, 2)))
    first.kill()
    first.communicate()
    assert status == 2
    assert f"process 0 cannot listen on port {port}" in lines[-1]
    assert "address already in use" in lines[-1]


@pytest.mark.parametrize("process_id", [0, 1])
def test_an_address_of_no_use(port, process_id):
    hosts = ("nowhere.invalid", "192.0.2.1")  # the latter is reserved for documentation
    processes = [launch(*of_several(port, process_id, 2, host), seconds=2) for host in hosts]
    for host, process in zip(hosts, processes, strict=True):
        status, _, lines = result(process)
        assert status == 2
        assert len(lines) == 1 and f"{host}:{port}" in lines[0]


def test_what_listens_there_is_another_program(port):
    with socket.create_server(("localhost", port)) as other:
        process = launch(*of_several(port, 1, 2), seconds=2)
        with other.accept()[0] as connection:
            connection.sendall(b"220 mail.example.org ESMTP\r\n")
            status, _, lines = result(process)
    assert status == 2
    assert "something other than gsjax is listening there" in lines[-1]


@pytest.mark.slow
def test_a_program_that_looks_at_the_port_changes_nothing(port):
    first = launch(*of_several(port, 0, 2))
    assert "waiting for process 1" in first.stderr.readline()
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"\xff" * 9000, b""):
        with contextlib.suppress(ConnectionError):
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall(text)
                time.sleep(0.2)
    second = launch(*of_several(port, 1, 2))
    assert [result(process)[0] for process in (first, second)] == [0, 0]


# (coordinator, num_processes, process_id), variables, part of the line
NO_RUN = [
    (("localhost", 2, None), {}, "it must have the form HOST:PORT"),
    (("localhost:x", 2, None), {}, "it must have the form HOST:PORT"),
    (("localhost:1234", None, None), {}, "needs --num_processes"),
    (("localhost:1234", 4, 4), {}, "process_id is 4"),
    (("localhost:1234", 4, -1), {}, "process_id is -1"),
    (("localhost:1234", 0, 0), {}, "num_processes is 0"),
    (("", None, 0), {}, "--coordinator"),
    (("", None, None), slurm(0, "many"), "SLURM_STEP_NUM_TASKS=many"),
    (("", None, None), slurm("", 4), "SLURM_PROCID is missing"),
    (("", None, None), slurm(0, 4, SLURM_PROCID=None), "SLURM_PROCID is missing"),
    (("", None, None), slurm(0, 4, SLURM_JOB_ID="x"), "SLURM_JOB_ID=x"),
    (("", None, None), slurm(0, 4, SLURM_LOCALID="x"), "SLURM_LOCALID=x"),
    (("", None, None), slurm(0, 4, SLURM_STEP_NODELIST=None), "SLURM_STEP_NODELIST is missing"),
    (("", None, None), slurm(7, 4), "process_id is 7"),
    (("", None, None), {"TPU_WORKER_HOSTNAMES": "a,b"}, "JAX found no TPU pod"),
    (("", None, None), {"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, "JAX found no TPU pod"),
    (("auto", None, None), {}, "JAX found no TPU pod"),
]


@pytest.mark.parametrize(("flags", "variables", "expected"), NO_RUN)
def test_what_names_no_run_is_refused(monkeypatch, flags, variables, expected):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TPU_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        parallel._member(*flags)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("flags", "variables", "expected"), [NO_RUN[i] for i in (5, 9, 14)])
def test_what_names_no_run_is_told_in_one_line(flags, variables, expected):
    names = ("coordinator", "num_processes", "process_id")
    given = zip(names, flags, strict=True)
    arguments = [f"--{name}={value}" for name, value in given if value not in ("", None)]
    status, _, lines = result(launch(*arguments, **variables))
    assert status == 2
    assert len(lines) == 1 and expected in lines[0]


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "2"},  # of a batch script, which no srun has started
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},  # the shell of an salloc
        {"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"},
    ],
)
def test_a_single_process_in_a_cluster(variables):
    status, started, lines = result(launch(**variables))
    assert (status, started, lines) == (0, ["started 0 of 1"], [])


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,other", "node001"),
        ("node[001-015],other", "node001"),
        ("node[007,009-015]", "node007"),
        ("rack[2-3]node[01-04]", "rack2node01"),
    ],
)
def test_the_first_node_of_a_step(monkeypatch, nodes, first):
    for name, value in slurm(1, 2, SLURM_STEP_NODELIST=nodes, SLURM_JOB_ID="5000").items():
        monkeypatch.setenv(name, value)
    assert cluster.from_slurm().address == f"{first}:{61440 + 5000 % 4096}"


CACHE = """
import os, jax
from gsjax.runtime import parallel
parallel.start("float32")
jax.jit(lambda x: x + 1)(1)
jax.jit(lambda x: x + 2)(1)
print("kept" if jax.config.jax_compilation_cache_dir else "not kept")
"""
OTHER_USER = [
    # Reads everything, as the interpreter may be root's, but writes only where it may.
    "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
]  # fmt: skip


def cached(variables, user=()):
    names = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    inherited = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [*user, sys.executable, "-c", CACHE],
        capture_output=True, text=True, check=True, env=inherited | variables,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert not any("persistent compilation cache" in line for line in lines), done.stderr
    return done.stdout.strip(), [line for line in lines if line.startswith("gsjax:")]


@pytest.fixture
def other_user():
    """How to run a command as a user who is in no list of users and has no folder."""
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("takes another user: needs root and setpriv")
    if subprocess.run([*OTHER_USER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this container does not let another user in")
    return OTHER_USER


def test_without_a_home_folder_compiled_programs_are_not_kept(other_user):
    kept, (line,) = cached({}, other_user)
    assert kept == "not kept"
    assert line.startswith("gsjax: warning: compiled programs are not cached")
    assert "home directory" in line


def test_a_home_folder_of_another_user(other_user, tmp_path):
    kept, (line,) = cached({"HOME": str(tmp_path)}, other_user)
    assert kept == "not kept" and f"{tmp_path}" in line and "Permission denied" in line


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"])
def test_a_file_in_the_place_of_the_cache(name, tmp_path):
    (tmp_path / "file").write_text("")
    kept, (line,) = cached({name: str(tmp_path / "file")})
    assert kept == "not kept" and str(tmp_path) in line


def test_a_cache_that_can_be_written_is_kept_without_a_word(tmp_path):
    assert cached({"HOME": str(tmp_path)}) == ("kept", [])
    assert list((tmp_path / ".cache/gsjax/xla").glob("*-cache"))

"""Output that cannot be printed costs the output alone: closed streams, full disks, encodings."""

import os
import pty
import subprocess
import sys

import pytest
from trainings import flags

PYTHON = sys.executable
HELP = "-m gsjax.main --help"
WRONG = "-m gsjax.main --nonsense"


def shell(text, **variables):
    """Exit status, standard output and standard error of a line of bash."""
    done = subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, errors="surrogateescape",
        env=os.environ | variables, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("redirection", [
    ">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full",
    ">/dev/full 2>/dev/full",
])  # fmt: skip
def test_the_status_is_that_of_the_work(redirection, unbuffered):
    for arguments, status in ((HELP, 0), (WRONG, 2)):
        line = f"{PYTHON} {arguments} {redirection}"
        found, _, errors = shell(line, PYTHONUNBUFFERED=unbuffered)
        assert found == status, errors
        assert "Traceback" not in errors and "Exception ignored" not in errors


def test_one_stream_goes_on_without_the_other():
    assert "usage:" in shell(f"{PYTHON} {HELP} 2>&- <&-")[1]
    assert "gsjax: error: " in shell(f"{PYTHON} {WRONG} >&- <&-")[2]


def test_a_pipe_whose_reader_has_gone():
    for arguments, status in ((HELP, 0), (WRONG, 2)):
        line = f"{PYTHON} {arguments} 2>&1 | true; exit ${{PIPESTATUS[0]}}"
        assert shell(line) == (status, "", "")
    assert shell(f"{PYTHON} {HELP} | head -1; exit ${{PIPESTATUS[0]}}")[::2] == (0, "")


FILES = """
import os
from gsjax.runtime import output
output.guard()
with open("data", "w+b") as data:
    number = data.fileno()
    print("printed")
    os.write(1, b"from C")
    os.write(2, b"from C")
    os.system("echo from a child; echo from a child >&2")
    output.print_stderr("complained")
    data.flush()
assert number > 2, number
assert os.path.getsize("data") == 0
"""


def test_what_is_printed_reaches_no_file(tmp_path):
    """The number of a closed standard stream is given to the next file that is opened."""
    (tmp_path / "script.py").write_text(FILES)
    line = f"cd {tmp_path} && PYTHONPATH={os.getcwd()} {PYTHON} script.py <&- >&- 2>&-"
    assert shell(line)[0] == 0


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
)
def test_names_that_the_encoding_lacks(variables, tmp_path):
    for name in ("\u56fe", "\udcff"):
        folder = os.fsencode(tmp_path / name)
        os.mkdir(folder)
        command = [PYTHON, "-m", "gsjax.main", "--job=knn", b"--workdir=" + folder]
        done = subprocess.run(command, capture_output=True, env=os.environ | variables, check=False)
        assert done.returncode == 2 and b"Traceback" not in done.stderr
        assert b"gsjax: error: " in done.stderr and b"\\u" in done.stderr


def test_a_path_neither_breaks_a_line_nor_controls_the_terminal(capfd):
    from gsjax import main
    from gsjax.runtime import metrics

    metrics.log("workdir  runs/a\nb\x1b[31m c")
    main._print_error("runs/\x1b[31m is not a folder")
    told = capfd.readouterr()
    assert told.out == "workdir  runs/a\\nb\\x1b[31m c\n"
    assert told.err == "gsjax: error: runs/\\x1b[31m is not a folder\n"


SAYS = """
import os, sys
from gsjax.runtime import metrics
{before}
metrics.log("caf\u00e9 \udcff")
progress = metrics.Progress("label", 3)
for step in range(1, 4):
    progress.describe("figures")
    progress.update(step)
progress.close()
open("end", "w").close()
"""


@pytest.mark.parametrize(
    ("before", "redirection"),
    [
        ("", ">&-"),
        ("", ">&- 2>&-"),
        ("", ">/dev/full"),
        ("sys.stdout.close()", ""),
        ("sys.stdout.reconfigure(encoding='ascii', errors='strict')", ""),
    ],
)
def test_programs_of_others_go_on_too(before, redirection, tmp_path):
    """Those that use gsjax as a library and did not guard their streams."""
    (tmp_path / "script.py").write_text(SAYS.format(before=before), errors="backslashreplace")
    line = f"cd {tmp_path} && PYTHONPATH={os.getcwd()} {PYTHON} script.py {redirection}"
    status, _, errors = shell(line)
    assert status == 0 and "Traceback" not in errors, errors
    assert (tmp_path / "end").exists()


GONE = """
import os, signal, sys, time
from gsjax.runtime import output
signal.signal(signal.SIGHUP, signal.SIG_IGN)
output.guard()
from gsjax.runtime import metrics
progress = metrics.Progress("label", 100)
assert output.is_terminal()
print("ready", flush=True)
time.sleep(2)  # the terminal goes
for step in range(1, 101):
    progress.update(step)
    metrics.log("a line")
    print("an error", file=sys.stderr)
    output.print_stderr("a complaint")
    time.sleep(0.005)
progress.close()
open("end", "w").close()
"""


def test_a_terminal_that_is_gone(tmp_path):
    """Each write to it is an I/O error."""
    (tmp_path / "script.py").write_text(GONE)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [PYTHON, "script.py"], stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()}, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    text = b""
    while b"ready" not in text:
        text += os.read(master, 1000)
    os.close(master)
    assert process.wait(60) == 0
    assert (tmp_path / "end").exists()


@pytest.mark.slow
def test_training_evaluation_and_report_without_any_stream(tmp_path):
    run = tmp_path / "runs" / "one"
    for arguments in (
        [f"--workdir={run}", *flags(encoder__name="resnet18")],
        [f"--workdir={run}", "--job=knn"],
        [f"--workdir={run.parent}", "--job=report", "--config.report.diagnostics=false"],
    ):
        line = f"{PYTHON} -m gsjax.main {' '.join(arguments)} <&- >&- 2>&-"
        assert shell(line)[0] == 0, arguments
    assert (run / "results" / "knn.json").exists()
    assert list(run.parent.rglob("index.html"))


@pytest.mark.slow
def test_a_training_under_nohup_without_a_terminal(tmp_path):
    arguments = " ".join(flags(encoder__name="resnet18"))
    line = f"cd {tmp_path} && nohup {PYTHON} -m gsjax.main --workdir=run {arguments} <&-"
    status, output, errors = shell(line, PYTHONPATH=os.getcwd())
    assert status == 0, errors
    assert "simclr 12/12" in output

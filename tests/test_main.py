"""The command line as a user meets it, in processes of its own."""

import subprocess
import sys

import pytest


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "gsjax.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def slow(*case):
    """A case that opens data or devices; what it checks is also tested in one process."""
    return pytest.param(*case, marks=pytest.mark.slow)


def test_help_is_quick_and_useful():
    done = run("--help")
    assert done.returncode == 0
    for part in ("--config FILE", "pretrain", "similarity.threshold = 0.5", "example:"):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.similarity.treshold=1"], "similarity.threshold"),
        (["--config.num_epochs=-3"], "num_epochs is -3"),
        (["--config=nowhere.py"], "there is no file nowhere.py"),
        (["--nonsense"], "nonsense"),
        (["--num_processes=many"], "num_processes"),
        (["--job=nonsense"], "known: pretrain"),
        (["--config"], "config"),
        (["surplus"], "surplus"),
        (["--num_processes=2"], "--coordinator"),
        (["--num_processes=2", "--coordinator=auto"], "--coordinator"),
        (["--config.data.source=folder", "--config.data.data_dir=/nowhere"], "/nowhere"),
        slow(["--config.batch_size=100000"], "use at most 5000"),
        slow(["--config.knn.k=100000"], "knn.k"),
        (["--workdir=/proc/nowhere"], "/proc/nowhere"),
        (["--job=knn"], "no run in "),
        (["--config.embed.source=folder"], "embed.data_dir"),
        (["--config.embed.source=list"], "embed.split"),
        (["--config.embed.data_dir=x"], "embed.source"),
        (["--config.embed.name=../x"], "embed.name"),
        (["--config.data.source=list", "--config.data.split="], "data.split"),
        slow(["--job=knn", "--config.checkpoint.load=none", "--config.knn.k=6000"], "knn.k"),
        (["--job=retrieval", "--config.checkpoint.load=none"], "retrieval.data_dir is empty"),
        (
            ["--job=linear", "--config.checkpoint.load=none", "--config.linear.num_epochs=0"],
            "least 1",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(tmp_path, arguments, expected):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("gsjax:")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert lines[0].startswith("gsjax: error: ")
    assert expected in lines[0]


def test_settings_are_checked_before_jax_and_tensorflow_are_imported(tmp_path):
    code = (
        "import sys\n"
        "from gsjax import main\n"
        "sys.argv = ['main', '--config.similarity.threshold=2']\n"
        "try:\n    main.main()\n"
        "except SystemExit as leave:\n    assert leave.code == 2\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)

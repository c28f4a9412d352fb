"""TensorBoard's event files, read by TensorBoard: every step of every metric once."""

import pytest
from etils import epath
from trainings import events

from gsjax.runtime import metrics, writers


def write(workdir, restored_step, steps, name="train/loss"):
    writer = writers.create_writer(epath.Path(workdir), restored_step)
    for step in steps:
        writer.write_scalars(step, {name: float(step)})
    writer.flush()
    return writer


@pytest.mark.parametrize("restored", [0, 3])
def test_a_resume_forgets_the_steps_that_come_anew(restored, tmp_path):
    killed = write(tmp_path, 0, range(6))  # flushed, never closed
    write(tmp_path, restored, range(restored + 1, 9)).close()
    kept = [(step, "train/loss") for step in range(1 if not restored else 0, 9)]
    assert events(tmp_path) == kept
    assert {row["step"] for row in metrics.read_records(epath.Path(tmp_path))} == {
        step for step, _ in kept
    }
    killed.close()


@pytest.mark.parametrize("rest", [1, 11, 13, 40, 60])
def test_what_a_kill_has_torn_is_cut(rest, tmp_path):
    write(tmp_path, 0, range(4)).close()
    (file,) = tmp_path.glob("*tfevents*")
    whole = file.read_bytes()
    last = len(whole) // 5  # a header of the file and four records of nearly one length
    file.write_bytes(whole[: len(whole) - last + min(rest, last - 1)])
    write(tmp_path, 2, [3]).close()
    assert events(tmp_path) == [(step, "train/loss") for step in range(4)]
    assert all(
        file.name.count("tfevents") for file in tmp_path.iterdir() if "jsonl" not in file.name
    )


def test_a_damaged_file_costs_what_follows_in_it(tmp_path):
    write(tmp_path, 0, range(4)).close()
    (file,) = tmp_path.glob("*tfevents*")
    file.write_bytes(file.read_bytes()[:80] + b"\xff" * 20)
    write(tmp_path, 5, [6]).close()
    assert events(tmp_path)[-1] == (6, "train/loss")


def test_a_repeated_evaluation_replaces_its_score_alone(tmp_path):
    folder = epath.Path(tmp_path)
    for value in ("knn/top1", "knn/top5", "knn/top1"):
        metrics.forget(folder, 7, {value})
        write(tmp_path, writers.KEEP_ALL, [7], value).close()
    write(tmp_path, writers.KEEP_ALL, [8], "knn/top1").close()
    assert events(tmp_path) == [(7, "knn/top1"), (7, "knn/top5"), (8, "knn/top1")]

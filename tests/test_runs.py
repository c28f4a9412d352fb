"""A run read from its work directory and from its summary."""

import dataclasses
import json
import math
import shutil

import pytest
from etils import epath

from gsjax.config import defaults, settings
from gsjax.errors import UserError
from gsjax.sweep import runs

START = {"step": 0, "time": "2024-05-01T10:00:00Z", "commit": "abcdef0"}
RESULT = {
    "checkpoint": "/home/me/run/checkpoints/500",
    "step": 500,
    "encoder": {"width": 4, "digest": "12ab"},
    "dataset": "photos",
    "scores": {"linear/top1": 12.3456789},
    "protocol": {"learning_rate": 0.123456789},
    "details": {"histogram": [0.333333333, 2]},
}


def write_run(folder, *, lines=500, num_steps=500, saved=500, **changes):
    """A work directory as a training leaves it, with a curve of `lines` points."""
    config = defaults.get_config().to_dict() | {"num_steps": num_steps, "seed": 3}
    config["optimizer"]["learning_rate"] = 0.123456789  # more digits than are kept of a score
    config |= changes
    content = {"gsjax": "0", "config": config, "data": {"num_images": 5000, "hosts": None}}
    (folder / "checkpoints" / str(saved)).mkdir(parents=True)
    (folder / "checkpoints" / str(saved) / "manifest.sha256").write_text("")
    (folder / "checkpoints" / str(saved + 1)).mkdir()  # its save broke off
    (folder / "results").mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "environment.json").write_text(json.dumps([START]))
    (folder / "results" / "linear.json").write_text(json.dumps([RESULT]))
    rows = [{"step": 0, "knn/top1": 20.0, "knn/pixels_top1": 30.0}]
    rows += [
        {"step": i + 1, "train/loss": math.sin(i) / 3, "train/grad_norm": None if i == 2 else 1.0}
        for i in range(lines)
    ]
    rows += [{"step": saved, "knn/top1": 123.4567891}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return epath.Path(folder)


@pytest.fixture
def workdir(tmp_path):
    return write_run(tmp_path / "simclr-seed3")


def test_a_work_directory_is_read(workdir):
    run = runs.read(workdir, {"label": "SimCLR", "seed": 3, "value": 0.1})
    assert (run.name, run.step, run.num_steps, run.finished) == ("simclr-seed3", 500, 500, True)
    assert run.member == {"label": "SimCLR", "seed": 3, "value": 0.1}
    assert run.data == {"num_images": 5000, "hosts": None}
    assert run.config["seed"] == 3
    assert run.starts == [START]
    assert run.results == {"linear": [RESULT]}
    assert run.curves["train/loss"] == [(i + 1, math.sin(i) / 3) for i in range(500)]
    assert run.curves["knn/top1"] == [(0, 20.0), (500, 123.4567891)]
    assert 3 not in [step for step, _ in run.curves["train/grad_norm"]]  # was not finite
    assert run.curves["knn/top1"][-1][1] == 123.4567891
    assert "nothing" not in run.curves
    assert run.folder == workdir


def test_length_in_epochs_and_an_unfinished_run(tmp_path):
    folder = write_run(
        tmp_path / "run", num_steps=0, num_epochs=10, batch_size=128, saved=389, lines=3
    )
    run = runs.read(folder)
    assert (run.step, run.num_steps, run.finished) == (389, 390, False)  # 5000 // 128 = 39 each
    assert run.member == {}


def test_a_run_that_has_just_begun(tmp_path):
    folder = write_run(tmp_path / "run", lines=0)
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").unlink()
    (folder / "environment.json").unlink()
    run = runs.read(folder)
    assert (run.step, run.finished, run.curves, run.starts) == (0, False, {}, [])


def slowly_thinned(curve):
    """Ends as they are; means of 6 consecutive points of the 498 between them."""
    points = [curve[0]]
    for start in range(1, len(curve) - 1, 6):
        total, count = 0.0, 0
        for step, value in curve[start : min(start + 6, len(curve) - 1)]:
            total, count, last = total + value, count + 1, step
        points.append((last, total / count))
    return [*points, curve[-1]]


def test_round_trip_keeps_all_but_paths_and_digits(workdir, tmp_path):
    run = runs.read(workdir, {"label": "SimCLR", "seed": 3, "value": 0.123456789})
    file = epath.Path(tmp_path / "summary.json")
    runs.write_summary(run, file)
    read = runs.read_summary(file)
    for field in ("name", "config", "data", "member", "starts", "step", "num_steps"):
        assert getattr(read, field) == getattr(run, field), field
    assert settings.shaping_differences(read.config, run.config) == []
    assert read.folder is None
    assert str(workdir) not in file.read_text()
    expected = {name: part for name, part in RESULT.items() if name != "checkpoint"}
    expected |= {
        "scores": {"linear/top1": 12.3457},
        "details": {"histogram": [0.333333, 2]},
    }
    assert read.results == {"linear": [expected]}

    assert read.curves["knn/top1"] == [(0, 20.0), (500, 123.457)]
    found, slow = read.curves["train/loss"], slowly_thinned(run.curves["train/loss"])
    assert [step for step, _ in found] == [step for step, _ in slow]
    assert [value for _, value in found] == [pytest.approx(v, rel=1e-5) for _, v in slow]
    assert len(found) <= 100
    assert found[-1] == (500, pytest.approx(math.sin(499) / 3, rel=1e-5))  # the last value

    again = epath.Path(tmp_path / "again.json")
    runs.write_summary(read, again)
    assert again.read_text() == file.read_text()

    for group in ("data", "transfer", "retrieval", "embed"):
        run.config[group]["data_dir"] = str(workdir)  # of this machine
    runs.write_summary(run, again)
    assert again.read_text() == file.read_text()


@pytest.mark.parametrize("size", [0, 1, 2, 99, 100, 101, 102, 199, 200, 12345])
def test_curves_are_never_too_long_and_keep_both_ends(tmp_path, size):
    curve = [(10 * i, float(i)) for i in range(size)]
    run = dataclasses.replace(runs.read(write_run(tmp_path / "run", lines=0)), curves={"x": curve})
    file = epath.Path(tmp_path / "run.json")
    runs.write_summary(run, file)
    found = runs.read_summary(file).curves.get("x", [])  # an empty curve is none
    assert len(found) <= 100
    assert found[:1] + found[-1:] == curve[:1] + curve[-1:]
    if size <= 100:
        assert found == curve
    else:
        assert len(found) > 50
        for (before, _), (step, value) in zip(found[:-2], found[1:-1], strict=True):
            own = [v for s, v in curve if before < s <= step]
            assert value == pytest.approx(sum(own) / len(own), rel=1e-5)


def test_a_summary_is_told_from_other_files(workdir, tmp_path):
    file = epath.Path(tmp_path / "summary.json")
    runs.write_summary(runs.read(workdir), file)
    assert runs.is_summary(file)
    others = [workdir / "config.json", workdir / "environment.json", workdir / "metrics.jsonl"]
    for other in (*others, epath.Path(tmp_path / "nothing.json")):
        assert not runs.is_summary(other)


def test_curves_hold_what_is_finite_alone(workdir, tmp_path):
    file = epath.Path(tmp_path / "summary.json")
    runs.write_summary(runs.read(workdir), file)
    curves = {"a": [], "b": [[1, math.nan]], "c": [[1, 2.5], [2, math.inf], [3, 4]]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"curves": curves}))
    assert runs.read_summary(file).curves == {"c": [(1, 2.5), (3, 4.0)]}
    lines = ['{"step": 1, "a": NaN, "b": 2}', '{"step": 2, "a": null, "b": Infinity}']
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert runs.read(workdir).curves == {"b": [(1, 2.0)]}


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"config": {}, "data": {}}'),
        ("environment.json", '[{"step": 0'),
        ("environment.json", '{"step": 0}'),
        ("environment.json", "[3]"),
        ("results/linear.json", "{}{"),
        ("results/linear.json", '[{"step": 3}]'),
        ("environment.json", '[{"step": 0, "packages": null}]'),
        ("results/linear.json", json.dumps([RESULT | {"protocol": None}])),
        ("results/linear.json", json.dumps([RESULT | {"dataset": []}])),
        ("results/linear.json", json.dumps([RESULT | {"scores": {"linear/top1": "high"}}])),
        ("metrics.jsonl", '{"step": 1, "x": 1}\n{"step": 2, "x"}\n'),
        ("metrics.jsonl", '{"x": 1}\n'),
        ("metrics.jsonl", '{"step": 1, "x": "far"}\n'),
    ],
)
def test_damaged_files_of_a_run_are_one_line_with_their_name(workdir, name, text):
    (workdir / name).write_text(text)
    with pytest.raises(UserError) as error:
        runs.read(workdir)
    assert str(workdir / name) in one_line(error) or f"{workdir} is damaged" in one_line(error)


def _without(config, *groups):
    return {name: value for name, value in config.items() if name not in groups}


def test_a_config_has_the_defaults_of_what_it_lacks(workdir, tmp_path):
    run = runs.read(workdir)
    summary, config = epath.Path(tmp_path / "summary.json"), workdir / "config.json"
    runs.write_summary(run, summary)
    for file in (config, summary):
        content = json.loads(file.read_text())
        content["config"] = _without(content["config"], "projector", "num_epochs")
        del content["config"]["optimizer"]["momentum"]
        content["config"]["loss"]["younger"] = 3  # than this gsjax
        content["config"]["encoder"]["name"] = "resnet152"
        file.write_text(json.dumps(content))
    del run.config["encoder"]["name"]
    for read in (runs.read(workdir), runs.read_summary(summary)):
        assert read.config["loss"].pop("younger") == 3
        assert read.config["encoder"].pop("name") == "resnet152"
        assert read.config == run.config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"projector": None}, "projector"),
        ({"projector": {"out_dim": "wide"}}, "projector.out_dim"),
        ({"num_steps": "10"}, "num_steps"),
        ({"method": {"a": 1}}, "method"),
        ({"method": "moco"}, "method"),
        ({"batch_size": 6000}, "batch_size"),
        ({"data": {"image_size": 32}}, "data.source"),
    ],
)
def test_settings_that_cannot_be_are_named(workdir, tmp_path, change, named):
    summary, config = epath.Path(tmp_path / "summary.json"), workdir / "config.json"
    runs.write_summary(runs.read(workdir), summary)
    for file, read in ((config, runs.read), (summary, runs.read_summary)):
        content = json.loads(file.read_text())
        content["config"] |= change
        file.write_text(json.dumps(content))
        with pytest.raises(UserError) as error:
            read(workdir if file == config else summary)
        assert named in one_line(error)


def test_no_run(tmp_path):
    with pytest.raises(UserError) as error:
        runs.read(epath.Path(tmp_path))
    assert "no run in " in one_line(error)


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"curves": None},
        {"curves": {"x": [[1]]}},
        {"config": []},
        {"step": "far"},
        {"results": {"knn": [{}]}},
        {"results": {"knn": 3}},
        {"results": []},
        {"name": 3},
        {"data": None},
        {"data": {"num_images": "many"}},
        {"member": None},
        {"member": {"label": ["a"]}},
        {"member": {"value": {}}},
        {"starts": None},
        {"starts": ["x"]},
        {"starts": [{"packages": None}]},
        {"results": {"linear": [RESULT | {"step": "last"}]}},
        {"results": {"linear": [RESULT | {"dataset": []}]}},
        {"results": {"linear": [RESULT | {"protocol": None}]}},
        {"results": {"linear": [RESULT | {"details": 3}]}},
        {"results": {"linear": [RESULT | {"scores": {"linear/top1": "high"}}]}},
        {"curves": {"x": [[1e999, 1.0]]}},
    ],
)
def test_a_damaged_summary_is_one_line_with_its_name(workdir, tmp_path, change):
    file = epath.Path(tmp_path / "summary.json")
    runs.write_summary(runs.read(workdir), file)
    text = file.read_text()
    file.write_text(text[:300] if change is None else json.dumps(json.loads(text) | change))
    with pytest.raises(UserError) as error:
        runs.read_summary(file)
    assert f"{file} is not a run summary" in one_line(error)
    with pytest.raises(UserError):
        runs.read_summary(epath.Path(tmp_path / "nothing.json"))

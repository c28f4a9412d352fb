"""What a report finds in folders: runs, sweeps, summaries, and what is damaged or missing."""

import json
import shutil

import pytest
from etils import epath
from report_runs import diagnosed, result, write_plan, write_run

from gsjax.errors import UserError
from gsjax.report import collect, compare
from gsjax.report.groups import label_of
from gsjax.sweep import runs


def _find(*folders):
    return collect.find([epath.Path(folder) for folder in folders])


def _names(study):
    return {group.name: [run.name for run in group.runs] for group in study.groups}


def _summarize(folder, label="SimCLR-GS", seed=5, value=None):
    run = runs.read(epath.Path(folder), {"label": label, "seed": seed, "value": value})
    runs.write_summary(run, epath.Path(f"{folder}.json"))


def test_runs_that_differ_in_the_seed_alone_are_a_group(tmp_path):
    for name, seed, measure in (("b", 6, "ioa"), ("a", 5, "ioa"), ("c", 5, "none")):
        write_run(tmp_path / name, 40.0, seed=seed, measure=measure)
    ((study,), damaged) = _find(tmp_path)
    assert (study.title, study.axis, study.missing, damaged) == ("3 runs", "", (), [])
    assert _names(study) == {"SimCLR": ["c"], "SimCLR-GS": ["a", "b"]}


def test_groups_of_one_name_are_told_apart_by_what_differs(tmp_path):
    write_run(tmp_path / "a", 40.0, config={"batch_size": 64})
    write_run(tmp_path / "b", 40.0, config={"knn.k": 5})
    write_run(tmp_path / "c", 40.0, measure="none")
    ((study,), _) = _find(tmp_path)
    assert _names(study) == {
        "SimCLR": ["c"],
        "SimCLR-GS (batch_size=64, knn.k=0)": ["a"],
        "SimCLR-GS (batch_size=128, knn.k=5)": ["b"],
    }


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"similarity.measure": "none"}, "SimCLR"),
        ({"similarity.measure": "none", "similarity.scale": 0.5}, "SimCLR"),
        ({}, "SimCLR-GS"),
        ({"similarity.scale": 0.5}, "SimCLR-GS, scale 0.5"),
        ({"similarity.measure": "iou"}, "SimCLR-GS, IoU"),
        ({"method": "simsiam"}, "SimSiam-GS"),
    ],
)
def test_labels_name_the_method(tmp_path, changes, label):
    config = json.loads((write_run(tmp_path / "run", config=changes) / "config.json").read_text())
    assert label_of(config["config"]) == label


def test_images_that_differ_are_not_compared(tmp_path):
    write_run(tmp_path / "a", 40.0)
    write_run(tmp_path / "b", 50.0, config={"data.source": "cifar10"})
    studies, _ = _find(tmp_path)
    assert [study.title for study in studies] == [
        "Run a on photos, 32 pixels",
        "Run b on cifar10, 32 pixels",
    ]


def test_the_same_seed_twice_counts_once_and_is_told(tmp_path):
    write_run(tmp_path / "a", done=50)
    write_run(tmp_path / "b", 40.0)
    write_run(tmp_path / "c", 41.0)
    ((study,), _) = _find(tmp_path)
    assert _names(study) == {"SimCLR-GS": ["b"]}
    assert ("c", "same settings and seed as b") in study.missing
    assert ("a", "same settings and seed as b") in study.missing


def test_a_folder_that_is_named_twice_counts_once(tmp_path):
    run = write_run(tmp_path / "all" / "run", 40.0)
    ((study,), _) = _find(tmp_path / "all", run, tmp_path / "all" / ".." / "all")
    assert _names(study) == {"SimCLR-GS": ["run"]}
    assert study.missing == ()


def test_summaries_without_folders_are_runs(tmp_path):
    folder = write_run(tmp_path / "member", 40.0, results={"diagnostics": [diagnosed()]})
    expected = compare.scores(runs.read(epath.Path(folder)))
    _summarize(folder)
    shutil.rmtree(folder)
    (tmp_path / "other.json").write_text('{"an": "other file"}')
    ((study,), damaged) = _find(tmp_path)
    assert (_names(study), damaged) == ({"SimCLR-GS": ["member"]}, [])
    assert compare.scores(study.groups[0].runs[0]) == pytest.approx(expected)
    assert len(expected) == 3


def test_a_summary_and_its_folder_are_one_run_with_later_results(tmp_path):
    folder = write_run(tmp_path / "member", 40.0)
    _summarize(folder)
    (folder / "results").mkdir()
    entries = [result("linear", "photos", {"top1": 61.0})]
    (folder / "results" / "linear.json").write_text(json.dumps(entries))
    ((study,), _) = _find(tmp_path)
    (run,) = study.groups[0].runs
    assert run.folder == epath.Path(folder)
    assert compare.scores(run) == {"kNN top-1": 40, "linear, photos, top1": 61}


def test_a_summary_stands_in_for_a_folder_without_checkpoints(tmp_path):
    folder = write_run(tmp_path / "member", 40.0)
    _summarize(folder)
    shutil.rmtree(folder / "checkpoints")
    ((study,), _) = _find(tmp_path)
    assert compare.scores(study.groups[0].runs[0]) == {"kNN top-1": 40}


def test_a_sweep_shows_what_is_missing_in_its_own_order(tmp_path):
    members = [
        (f"gs-{value}-seed{seed}", "SimCLR-GS", seed, value)
        for seed in (5, 6)
        for value in (0.2, 0.4, 0.6)
    ]
    write_plan(tmp_path, members, axis="similarity.threshold")
    for name, _, seed, value in members:
        config = {"similarity.threshold": value}
        if name in ("gs-0.2-seed6", "gs-0.4-seed5"):
            write_run(tmp_path / name, 40.0, seed=seed, config=config)
    write_run(tmp_path / "gs-0.4-seed6", seed=6, done=7, config={"similarity.threshold": 0.4})
    ((study,), damaged) = _find(tmp_path)
    assert damaged == []
    assert _names(study) == {
        "SimCLR-GS at 0.2": ["gs-0.2-seed6"],
        "SimCLR-GS at 0.4": ["gs-0.4-seed5", "gs-0.4-seed6"],
    }
    assert study.absent == ("SimCLR-GS at 0.6",)
    assert study.missing == (
        ("gs-0.2-seed5", "not run"),
        ("gs-0.6-seed5", "not run"),
        ("gs-0.4-seed6", "unfinished, step 7 of 100"),
        ("gs-0.6-seed6", "not run"),
    )


def test_a_sweep_of_which_nothing_was_run(tmp_path):
    write_plan(tmp_path, [("a", "SimCLR", 5, None)])
    ((study,), _) = _find(tmp_path)
    assert (study.groups, study.absent) == ((), ("SimCLR",))
    assert compare.headline(study) == [
        "A study: no run has finished.",
        "Missing: 1, listed below.",
    ]


def _tear(file):
    file.write_text(file.read_text()[:-20])


DAMAGE = {
    "torn config": lambda run: _tear(run / "config.json"),
    "no config": lambda run: (run / "config.json").write_text("{}"),
    "a list": lambda run: (run / "config.json").write_text("[1]"),
    "batch 0": lambda run: (run / "config.json").write_text(
        '{"config": {"batch_size": 0, "num_steps": 1}, "data": {"num_images": 5}}'
    ),
    "few settings": lambda run: (run / "config.json").write_text(
        '{"config": {"batch_size": 1, "num_steps": 1}, "data": {"num_images": 5}}'
    ),
    "torn results": lambda run: (run / "results" / "linear.json").write_text('[{"scores": '),
    "results without a step": lambda run: (run / "results" / "linear.json").write_text(
        '[{"scores": {}, "dataset": "photos"}]'
    ),
    "metrics that are none": lambda run: (run / "metrics.jsonl").write_text('{"step": 1}}\n{x}\n'),
    "metrics that are no text": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe}"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_named_and_the_others_go_on(tmp_path, kind):
    write_run(tmp_path / "good", 40.0)
    entries = [result("linear", "photos", {"top1": 61.0})]
    DAMAGE[kind](write_run(tmp_path / "bad", 30.0, seed=6, results={"linear": entries}))
    ((study,), damaged) = _find(tmp_path)
    assert _names(study) == {"SimCLR-GS": ["good"]}
    (line,) = damaged
    assert str(tmp_path / "bad") in line


def _plan_of(**member):
    members = [{"name": "a", "label": "SimCLR", "seed": 5, "value": None} | member]
    return json.dumps({"title": "x", "shows": [], "axis": "", "members": members})


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"title": "x"}', '{"members": 3}'),
        *(_plan_of(label=[]), _plan_of(value={})),
    ],
)
def test_a_damaged_plan_is_named_and_the_others_go_on(tmp_path, content):
    write_run(tmp_path / "good", 40.0)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text(content)
    ((study,), damaged) = _find(tmp_path)
    assert _names(study) == {"SimCLR-GS": ["good"]}
    (line,) = damaged
    assert line.startswith(f"{tmp_path / 'sweep' / 'sweep.json'} is damaged")


def test_a_damaged_member_of_a_sweep_is_missing(tmp_path):
    write_plan(tmp_path, [("a", "SimCLR-GS", 5, None), ("b", "SimCLR-GS", 6, None)])
    for name, seed in (("a", 5), ("b", 6)):
        _summarize(write_run(tmp_path / name, 40.0, seed=seed), seed=seed)
    _tear(tmp_path / "b.json")
    ((study,), damaged) = _find(tmp_path)
    assert _names(study) == {"SimCLR-GS": ["a"]}
    assert study.missing == (("b", "damaged"),)
    assert len(damaged) == 1 and str(tmp_path / "b.json") in damaged[0]


@pytest.mark.parametrize("name", ["empty", "none", "file"])
def test_nothing_to_report_on_is_one_line(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^--job report: .*{name}"):
        _find(tmp_path / name)


def test_what_is_wrong_is_told_where_nothing_else_is_there(tmp_path):
    DAMAGE["torn config"](write_run(tmp_path / "bad", 40.0))
    with pytest.raises(UserError, match=r"no run or sweep in .* \(.*bad.config.json"):
        _find(tmp_path)


def test_runs_of_the_setting_are_read_too():
    assert [str(path) for path in collect.parse_paths("/a", " /b, gs://c/d ,")] == [
        "/a",
        "/b",
        "gs://c/d",
    ]

"""Sweeps as a plan: members, their settings, the committed files, and what is refused."""

import ast
import pathlib
import subprocess
import sys

import pytest

from gsjax.config import settings
from gsjax.errors import UserError
from gsjax.sweep import plans

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.py"))
BASE = """
from gsjax.config import defaults

def get_config():
    return defaults.get_config()
"""
SWEEP = """
from gsjax.sweep.plans import Arm, Sweep

def get_sweep():
    return Sweep({})
"""
TWO_ARMS = """
    "SimCLR with and without graded similarity",
    arms=(Arm("SimCLR", "base", {"similarity.measure": "none"}), Arm("SimCLR-GS, IoA", "base")),
    seeds=(7, 5),
"""


def committed(name, **overrides):
    return plans.load(str(ROOT / "configs" / "sweeps" / f"{name}.py"), overrides)


@pytest.fixture
def written(tmp_path):
    """Writes configs/base.py and configs/sweeps/mine.py, returns the path of the latter."""

    def write(arguments=TWO_ARMS):
        (tmp_path / "configs" / "sweeps").mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs" / "base.py").write_text(BASE)
        file = tmp_path / "configs" / "sweeps" / "mine.py"
        file.write_text(SWEEP.format(arguments))
        return str(file)

    return write


def test_order_names_and_settings_of_members(written):
    """Seeds are slowest, then values; what is not on the axis comes before, once."""
    plan = plans.load(
        written("""
            "A title",
            arms=(
                Arm("SimCLR-GS, IoU", "base", {"similarity.measure": "iou"}),
                Arm("SimCLR", "base", {"similarity.measure": "none"}, is_on_axis=False),
                Arm("SimCLR-GS", "base", {"num_steps": 30}),
            ),
            seeds=(5, 6),
            overrides={"num_steps": 20, "augment.flip": 0.25},
            axis="similarity.threshold",
            values=(0.1, 1.0),
        """),
        {"batch_size": "64"},
    )
    found = [(m.name, m.label, m.seed, m.value) for m in plan.members]
    expected = []
    for seed in (5, 6):
        expected += [(f"simclr-seed{seed}", "SimCLR", seed, None)]
        for value, text in ((0.1, "0.1"), (1.0, "1")):
            for slug, label in (("simclr_gs_iou", "SimCLR-GS, IoU"), ("simclr_gs", "SimCLR-GS")):
                expected += [(f"{slug}-threshold_{text}-seed{seed}", label, seed, value)]
    assert found == expected
    for member in plan.members:
        flat = settings.flatten(member.config)
        assert flat["seed"] == member.seed
        assert flat["batch_size"] == 64
        assert flat["augment.flip"] == 0.25
        assert flat["num_steps"] == (30 if member.label == "SimCLR-GS" else 20)
        assert flat["similarity.threshold"] == (0.5 if member.value is None else member.value)
        assert flat["similarity.measure"] == {"SimCLR": "none", "SimCLR-GS": "ioa"}.get(
            member.label, "iou"
        )
    assert plan.member(1) is plan.members[1]


def test_members_of_one_seed_are_alike_but_for_the_arms(written):
    plan = plans.load(written(), {})
    assert [m.seed for m in plan.members] == [7, 7, 5, 5]
    for baseline, graded in zip(plan.members[::2], plan.members[1::2], strict=True):
        differences = settings.shaping_differences(baseline.config, graded.config)
        assert differences == ["similarity.measure: none -> ioa"]


def test_path_without_a_folder_and_by_a_detour(written, monkeypatch):
    file = pathlib.Path(written())
    names = [m.name for m in plans.load(str(file), {}).members]
    monkeypatch.chdir(file.parent)
    assert [m.name for m in plans.load("mine.py", {}).members] == names
    (file.parent / "below").mkdir()
    monkeypatch.chdir(file.parent / "below")
    assert [m.name for m in plans.load("../mine.py", {}).members] == names


def test_a_value_that_is_a_path_makes_no_folder(written):
    plan = plans.load(
        written('"x", arms=(Arm("a", "base"),), axis="data.data_dir", values=("/b/c", "../d")'), {}
    )
    assert [m.name for m in plan.members] == ["a-data_dir__b_c-seed5", "a-data_dir_.._d-seed5"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('"x", arms=(Arm("a", "base"))', r"mine.py:5: ValueError: arms is not a tuple"),
        ('"x", arms=()', "must not be empty"),
        ('"x", arms=(Arm("a", "base"),), seeds=()', "must not be empty"),
        ('"x", arms=(Arm("a", "base"),), axis="batch_size"', "both or neither"),
        ('"x", arms=(Arm("a", "base"),), values=(1, 2)', "both or neither"),
        ('"x", arms=(Arm("a", "base"),), jobs=("linaer",)', "'linaer'; those with scores are knn"),
        ('"x", arms=(Arm("a", "base"),), jobs=("features",)', "'features'; those with scores"),
        ('"x", arms=(Arm("a", "base"),), jobs=("sweep",)', "'sweep'; those with scores"),
        ('"x", arms=(Arm("a", "base", {"seed": 3}),)', "set seed only through seeds"),
        ('"x", arms=(Arm("a", "base"),), overrides={"seed": 3}', "set seed only through seeds"),
        ('"x", arms=(Arm("a", "base"),), axis="seed", values=(1,)', "set seed only through seeds"),
        (
            '"x", arms=(Arm("a", "base", {"batch_size": 8}),), axis="batch_size", values=(4,)',
            "an arm on the axis overrides batch_size",
        ),
        (
            '"x", arms=(Arm("a", "base", is_on_axis=False),), axis="batch_size", values=(4,)',
            "no arm is on the axis batch_size",
        ),
        ('"x", arms=(Arm("a", "nowhere"),)', r"mine.py, member a-seed5: .*no file .*nowhere.py"),
        (
            '"x", arms=(Arm("a", "base", {"similarity.treshold": 1.0}),)',
            r"mine.py, member a-seed5: unknown setting .*did you mean similarity.threshold",
        ),
        (
            '"x", arms=(Arm("a", "base"),), overrides={"similarity.treshold": 1.0}',
            r"mine.py, member a-seed5: unknown setting similarity.treshold",
        ),
        (
            '"x", arms=(Arm("a", "base"),), axis="similarity.threshold", values=(0.5, 1.5)',
            r"member a-threshold_1.5-seed5: similarity.threshold is 1.5; it must be from 0 to 1",
        ),
        (
            '"x", arms=(Arm("a", "base"), Arm("A", "base", {"batch_size": 8}))',
            "two members are named a-seed5",
        ),
        ('"x", arms=(Arm("a", "base"), Arm("b", "base"))', "a-seed5 and b-seed5 are identical"),
    ],
)  # fmt: skip
def test_impossible_sweeps_are_refused(written, arguments, expected):
    with pytest.raises(UserError, match=expected):
        plans.load(written(arguments), {})


def test_command_line_must_not_take_the_difference_away(written):
    with pytest.raises(UserError, match="simclr-seed7 and simclr_gs_ioa-seed7 are identical"):
        plans.load(written(), {"similarity.measure": "iou"})


def test_file_that_returns_something_else(written):
    file = pathlib.Path(written())
    file.write_text("def get_sweep():\n    return 3\n")
    with pytest.raises(UserError, match="must return a gsjax.sweep.plans.Sweep"):
        plans.load(str(file), {})


# The committed files. ---------------------------------------------------------------------------

LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
METHODS = ("SimCLR", "SimCLR-GS", "SimSiam", "SimSiam-GS")
# name: (number of members, figures and tables of the thesis, evaluations)
EXPECTED = {
    "thesis_cifar10": (4, ("Figure 7a", "Figure 8a", "Table 1"), ("linear",)),
    "thesis_stl10": (4, ("Figure 7b", "Figure 8b", "Table 1"), ("linear",)),
    "thesis_imagenet": (
        4,
        ("Figure 7c", "Figure 8c", "Table 1", "Table 2", "Table 3"),
        ("linear", "transfer", "retrieval"),
    ),
    "similarity_measures": (3, ("Figure 9",), ()),
    "threshold": (12, ("Figure 10",), ()),
    "no_augmentation": (4, ("Figure 11",), ()),
    "batch_size": (10, ("Figure 12",), ()),
    "seeds": (20, (), ("linear",)),
    "scale": (5, (), ()),
    "crop_scale": (10, (), ()),
    "projector": (12, (), ()),
    "optimizer": (12, (), ()),
    "methods": (24, (), ()),
    "forms": (24, (), ()),
    "multi_crop": (24, (), ()),
    "overlap": (24, (), ()),
    "small_extensions": (66, (), ()),
    "small_study": (15, (), ()),
    "small_threshold": (8, ("Figure 10",), ()),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_sweep_loads_and_its_docstring_gives_the_command(path):
    plan = plans.load(str(path), {})
    size, shows, jobs = EXPECTED[path.stem]
    assert (len(plan.members), tuple(plan.sweep.shows), tuple(plan.sweep.jobs)) == (
        size,
        shows,
        jobs,
    )
    for member in plan.members:
        assert settings.check(member.config) is member.config
        assert member.config.seed == member.seed
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert f"python -m gsjax.main --job sweep --config configs/sweeps/{path.name}" in docstring


def test_every_figure_and_table_of_the_thesis_has_a_sweep():
    shown = {figure for file in FILES for figure in committed(file.stem).sweep.shows}
    figures = {f"Figure {n}{part}" for n in (7, 8) for part in "abc"}
    assert shown == figures | {f"Figure {n}" for n in range(9, 13)} | {
        f"Table {n}" for n in (1, 2, 3)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_graded_members_differ_from_their_baseline_in_the_similarity_alone(path):
    """Of one seed and one value; a graded arm's label is its baseline's with -GS in it."""
    plan = plans.load(str(path), {})
    pairs = 0
    for graded in plan.members:
        if "-GS" not in graded.label:
            continue
        plain = graded.label.replace("-GS", "")
        has_own = any(member.label == plain for member in plan.members)
        name = plain if has_own else plain.split(",")[0]
        for baseline in plan.members:
            if baseline.label == name and (baseline.seed, baseline.value) in (
                (graded.seed, graded.value),
                (graded.seed, None),
            ):
                pairs += 1
                for line in settings.shaping_differences(baseline.config, graded.config):
                    assert line.startswith("similarity."), (graded.name, baseline.name, line)
    # One has no baseline, the other no graded similarity.
    assert pairs or path.stem in ("small_threshold", "overlap")


def test_thesis_threshold():
    """Section 6.4: lambda from 0 to 1 in steps of 0.1, SimCLR, CIFAR-10, 200 epochs."""
    members = committed("threshold").members
    assert [m.value for m in members] == [None, *LAMBDAS]
    assert [m.config.similarity.threshold for m in members[1:]] == list(LAMBDAS)
    for member in members:
        assert (member.config.num_epochs, member.config.num_steps) == (200, 0)
        assert (member.config.data.source, member.config.method) == ("cifar10", "simclr")
        assert member.config.batch_size == 1024
    assert members[0].config.similarity.measure == "none"


def test_thesis_batch_size():
    """Section 6.4: 128 to 2048, both methods, 800 epochs."""
    members = committed("batch_size").members
    sizes = (128, 256, 512, 1024, 2048)
    for label in ("SimCLR", "SimCLR-GS"):
        assert tuple(m.config.batch_size for m in members if m.label == label) == sizes
    assert {(m.config.num_epochs, m.config.method, m.config.data.source) for m in members} == {
        (800, "simclr", "cifar10")
    }


def test_thesis_similarity_measures():
    members = committed("similarity_measures").members
    assert [m.config.similarity.measure for m in members] == ["none", "ioa", "iou"]
    assert {(m.config.num_epochs, m.config.method) for m in members} == {(200, "simclr")}


def test_thesis_without_augmentations():
    """Crops and flips stay as in the methods' own recipes."""
    members = {m.label: m.config for m in committed("no_augmentation").members}
    assert set(members) == set(METHODS)
    for label, config in members.items():
        assert (config.augment.jitter, config.augment.gray, config.augment.blur) == (0, 0, 0)
        assert (config.augment.flip, config.num_epochs) == (0.5, 200)
        assert config.augment.min_scale == (0.2 if "SimSiam" in label else 0.08)


@pytest.mark.parametrize(
    ("name", "epochs"), [("thesis_cifar10", 800), ("thesis_stl10", 800), ("thesis_imagenet", 100)]
)
def test_thesis_pre_trainings_are_the_committed_configs(name, epochs):
    for member in committed(name).members:
        config = settings.load(
            str(ROOT / f"configs/{member.label.lower().replace('-', '_')}_{name[7:]}.py")
        )
        assert settings.flatten(member.config) == settings.flatten(config)
        assert (member.label, member.config.num_epochs) in [(m, epochs) for m in METHODS]


# The command line. ------------------------------------------------------------------------------

LEAVES = """
import sys
from gsjax import main
sys.argv = ["main", *sys.argv[1:]]
try:
    main.main()
finally:
    found = {"jax", "tensorflow"} & set(sys.modules)
    if found:
        print("imported:", found, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--job=sweep"], "--job sweep needs --config FILE, a file in configs/sweeps/"),
        (["--job=sweep", "--config=nowhere.py"], "there is no file nowhere.py"),
        (["--job=sweep", "--config=configs/base.py"], "configs/base.py has no get_sweep()"),
        (["--config=configs/sweeps/mine.py"], "configs/sweeps/mine.py has no get_config()"),
        (["--job=sweep", "--config=configs/sweeps/mine.py", "--config.seed=3"], "--config.seed"),
        (
            ["--job=sweep", "--config=configs/sweeps/mine.py", "--config.augment.flip=0.1"],
            "--config.augment.flip",
        ),
        (
            ["--job=sweep", "--config=configs/sweeps/mine.py", "--config.knn.x=1"],
            "unknown setting knn.x",
        ),
        (
            ["--job=sweep", "--config=configs/sweeps/mine.py", "--sweep_index=2"],
            "--sweep_index=2: the members of this sweep are 0 a-flip_0.2-seed5, 1 a-flip_0.4-seed5",
        ),
        (
            ["--job=sweep", "--config=configs/sweeps/mine.py", "--sweep_index=-1"],
            "--sweep_index=-1: the members of this sweep are 0",
        ),
        (["--sweep_index=0"], "--sweep_index is for --job sweep, not --job pretrain"),
    ],
)  # fmt: skip
def test_errors_are_one_line_before_anything_heavy_is_imported(written, arguments, expected):
    file = pathlib.Path(
        written('"x", arms=(Arm("a", "base"),), axis="augment.flip", values=(0.2, 0.4)')
    )
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, *arguments],
        capture_output=True,
        text=True,
        cwd=file.parent.parent.parent,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gsjax: error: ")]
    assert expected in line


def test_a_sweep_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plans.load("small_study", {})
    assert {member.config.encoder.width for member in plan.members} == {16}

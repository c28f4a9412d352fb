"""Scores, paired differences and tables of reports, against scipy, numpy and the thesis."""

import itertools

import numpy as np
import pytest
from etils import epath
from report_runs import diagnosed, result, write_plan, write_run
from scipy import stats

from gsjax.evaluate.datasets import DATASETS
from gsjax.methods import METHODS
from gsjax.report import collect, compare, tables, thesis
from gsjax.report.groups import baseline_of


def _studies(*folders):
    studies, damaged = collect.find([epath.Path(folder) for folder in folders])
    assert damaged == []
    return studies


def _cells(table):
    """{name of the row: {column: text}}."""
    return {
        row[0].text: dict(zip(table.header[1:], (cell.text for cell in row[1:]), strict=True))
        for row in table.rows
    }


def _pair(folder, graded=((5, 40.0), (6, 42.0)), plain=((5, 39.0), (6, 40.0)), **options):
    for seed, value in graded:
        write_run(folder / f"gs-{seed}", value, seed=seed, **options)
    for seed, value in plain:
        write_run(folder / f"plain-{seed}", value, seed=seed, measure="none", **options)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_paired_difference_equals_scipys(n):
    rng = np.random.default_rng(n)
    one, other = rng.normal(50, 3, n), rng.normal(49, 3, n)
    found = compare.paired(dict(enumerate(one)), dict(enumerate(other)))
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    np.testing.assert_allclose(found.mean, np.mean(one - other), rtol=1e-12)
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-9)
    assert found.pairs == n


def test_paired_difference_by_hand():
    # differences 1, 2, 3: mean 2, standard deviation 1, t of two degrees of freedom 4.302653
    found = compare.paired({1: 11.0, 2: 12.0, 3: 13.0}, {1: 10.0, 2: 10.0, 3: 10.0})
    half = 4.302652729911275 / 3**0.5
    assert found == pytest.approx((2, 2 - half, 2 + half, 3))


def test_only_seeds_that_both_have_are_paired():
    found = compare.paired({5: 50.0, 6: 90.0}, {5: 49.0, 7: 0.0})
    assert found == compare.Difference(1.0, None, None, 1)
    assert compare.paired({5: 1.0}, {6: 1.0}) is None


def test_results_table_has_means_standard_deviations_and_floors(tmp_path):
    _pair(tmp_path, untrained=20.5, pixels=31.25)
    (study,) = _studies(tmp_path)
    cells = _cells(tables.results_table(study, "results"))
    assert list(cells) == ["raw pixels", "untrained encoder", "SimCLR", "SimCLR-GS"]
    assert cells["raw pixels"]["kNN top-1"] == "31.25"
    assert cells["untrained encoder"]["kNN top-1"] == "20.50 (0.00)"
    mean, sd = np.mean([40, 42]), np.std([40, 42], ddof=1)
    assert cells["SimCLR-GS"]["kNN top-1"] == f"{mean:.2f} ({sd:.2f})"
    assert cells["SimCLR-GS"]["seeds"] == "2"
    low, high = stats.ttest_rel([40, 42], [39, 40]).confidence_interval(0.95)
    column = "difference from the baseline (95 % interval)"
    assert cells["SimCLR-GS"][column] == f"+1.50 ({low:+.2f} to {high:+.2f})"
    assert cells["SimCLR"][column] == "baseline"


def test_untrained_encoders_of_two_widths_are_not_averaged(tmp_path):
    write_run(tmp_path / "a", 40.0, untrained=20.0)
    write_run(tmp_path / "b", 40.0, untrained=28.0, config={"encoder.width": 8})
    (study,) = _studies(tmp_path)
    assert compare.floors(study.groups) == {
        "raw pixels": {"kNN top-1": [30.0]},
        "untrained encoder (encoder.width=16)": {"kNN top-1": [20.0]},
        "untrained encoder (encoder.width=8)": {"kNN top-1": [28.0]},
    }


def test_the_untrained_encoder_of_a_seed_counts_once(tmp_path):
    _pair(tmp_path)
    (study,) = _studies(tmp_path)
    assert compare.floors(study.groups)["untrained encoder"] == {"kNN top-1": [20.0, 20.0]}


def test_untrained_results_are_the_floor_of_evaluations(tmp_path):
    entries = [
        result("linear", "photos", {"top1": 61.5, "top5": 90.0}),
        result("linear", "photos", {"top1": 33.5}, step=None),
        result("linear", "photos", {"top1": 1.5}, step=50),
    ]
    write_run(tmp_path / "run", 40.0, results={"linear": entries, "diagnostics": [diagnosed()]})
    (study,) = _studies(tmp_path)
    cells = _cells(tables.results_table(study, "results"))
    column = "linear, photos, top1"
    assert cells["SimCLR-GS"][column] == "61.50"
    assert cells["untrained encoder"][column] == "33.50"
    assert cells["raw pixels"][column] == ""
    assert cells["untrained encoder"]["calibration error"] == ""
    assert "linear, photos, top5" not in cells["SimCLR-GS"]
    assert compare.scores(study.groups[0].runs[0])["linear, photos, top5"] == 90


def test_a_named_reference_is_the_baseline(tmp_path):
    """An arm that differs in more than the similarity, or has none, is compared with it."""
    arms = {"SimCLR": 39.0, "SimCLR, 2 + 4": 41.5, "SimCLR-GS, 2 + 4": 40.0}
    members = []
    for seed in (5, 6):
        for label, value in arms.items():
            name = f"{len(members)}-{seed}"
            config = {"crops.local_views": 4} if "2 + 4" in label else {}
            measure = "ioa" if "GS" in label else "none"
            write_run(tmp_path / name, value + seed, seed=seed, measure=measure, config=config)
            reference = "SimCLR" if label == "SimCLR, 2 + 4" else ""
            members.append((name, label, seed, None, reference))
    write_plan(tmp_path, members)
    (study,) = _studies(tmp_path)
    cells = _cells(tables.results_table(study, "t"))
    column = "difference from the baseline (95 % interval)"
    assert cells["SimCLR"][column] == "baseline"
    assert cells["SimCLR, 2 + 4"][column] == "+2.50 (+2.50 to +2.50)"
    assert cells["SimCLR-GS, 2 + 4"][column] == "-1.50 (-1.50 to -1.50)"


@pytest.mark.parametrize(
    "other",
    [
        {"encoder.width": 8},
        {"batch_size": 64},
        {"augment.min_scale": 0.2},
        {"method": "simsiam"},
        {"num_steps": 90},
        {"knn.k": 20},
        {"knn.preset": "instdisc"},
        {"loss.temperature": 0.1},
    ],
)
def test_a_baseline_of_other_settings_is_none(tmp_path, other):
    write_run(tmp_path / "gs", 40.0)
    write_run(tmp_path / "plain", 39.0, measure="none", config=other)
    (study,) = _studies(tmp_path)
    (graded,) = [group for group in study.groups if not group.is_baseline]
    assert baseline_of(graded, study.groups) is None
    cells = _cells(tables.results_table(study, "results"))
    assert cells[graded.name]["difference from the baseline (95 % interval)"] == ("no baseline")
    assert tables.differences_table(study, "differences") is None


@pytest.mark.parametrize(
    ("scale", "method", "stands_in"),
    [(0.5, "simclr", True), (1.0, "simclr", False), (1.0, "simsiam", True)],
)
def test_without_another_baseline_lambda_0_is_one_where_the_loss_is_the_same(
    tmp_path, scale, method, stands_in
):
    for value in (0.0, 0.5):
        config = {"similarity.threshold": value, "similarity.scale": scale, "method": method}
        write_run(tmp_path / f"at-{value}", 40.0 + value, config=config)
    (study,) = _studies(tmp_path)
    found = [baseline_of(group, study.groups) for group in study.groups]
    assert found == [None, study.groups[0] if stands_in else None]
    cells = list(_cells(tables.results_table(study, "results")).values())[-2:]
    column = [row["difference from the baseline (95 % interval)"] for row in cells]
    expected = ["baseline", "+0.50 (one seed: no interval)"]
    assert column == (expected if stands_in else ["no baseline"] * 2)


@pytest.mark.parametrize("harmless", [{"similarity.threshold": 0.7}, {"log.every_steps": 3}])
def test_a_baseline_may_differ_in_what_does_not_shape_it(tmp_path, harmless):
    write_run(tmp_path / "gs", 40.0)
    write_run(tmp_path / "plain", 39.0, measure="none", config=harmless)
    (study,) = _studies(tmp_path)
    graded, plain = study.groups[1], study.groups[0]
    assert baseline_of(graded, study.groups) is plain
    assert baseline_of(plain, study.groups) is None


def test_unfinished_runs_never_give_a_number(tmp_path):
    entries = {"linear": [result("linear", "photos", {"top1": 77.5}, step=60)]}
    records = [{"step": 60, "knn/top1": 55.5}]
    write_run(tmp_path / "a", seed=5, done=60, records=records, results=entries)
    write_run(tmp_path / "b", 39.0, seed=5, measure="none")
    write_run(tmp_path / "c", 38.0, seed=6, measure="none", done=0)
    (study,) = _studies(tmp_path)
    made = [
        tables.results_table(study, "results"),
        tables.runs_table(study, "runs"),
    ]
    assert tables.differences_table(study, "differences") is None
    text = str(made) + str(compare.headline(study))
    for number in ("77.5", "55.5", "38.0"):
        assert number not in text
    assert _cells(made[0])["SimCLR-GS"]["kNN top-1"] == "missing"
    assert ("a", "unfinished, step 60 of 100") in study.missing
    assert ("c", "unfinished, step 0 of 100") in study.missing


def test_what_a_run_was_not_measured_on_is_missing(tmp_path):
    for seed in (5, 6):
        entries = {"linear": [result("linear", "photos", {"top1": 60.0})]} if seed == 5 else None
        write_run(tmp_path / f"{seed}", 40.0 + seed, seed=seed, results=entries)
    write_run(tmp_path / "plain", untrained=None, measure="none")
    (study,) = _studies(tmp_path)
    cells = _cells(tables.results_table(study, "results"))
    assert cells["SimCLR-GS"]["linear, photos, top1"] == "60.00 [1 of 2 seeds]"
    assert cells["SimCLR"]["linear, photos, top1"] == "missing"
    assert cells["SimCLR"]["kNN top-1"] == "missing"
    assert "SimCLR: kNN top-1 missing." in compare.headline(study)


def test_what_is_not_finite_is_missing(tmp_path):
    records = [{"step": 50, "train/loss": None}, {"step": 100, "knn/top1": None}]
    entries = {"linear": [result("linear", "photos", {"top1": float("nan")})]}
    write_run(tmp_path / "run", records=records, results=entries)
    (study,) = _studies(tmp_path)
    assert compare.scores(study.groups[0].runs[0]) == {}


def test_results_by_two_protocols_are_told_apart(tmp_path):
    for name, epochs in (("a", 10), ("b", 90)):
        protocol = {"num_epochs": epochs, "learning_rate": 0.1, "seed": epochs, "num_left_out": 0}
        entries = {"linear": [result("linear", "photos", {"top1": 50.0 + epochs}, 100, protocol)]}
        write_run(tmp_path / name, 40.0, measure="none" if name == "a" else "ioa", results=entries)
    (study,) = _studies(tmp_path)
    assert compare.score_names(study.groups) == [
        "kNN top-1",
        "linear, photos, top1 (num_epochs=10)",
        "linear, photos, top1 (num_epochs=90)",
    ]
    differences = tables.differences_table(study, "differences")
    assert [row[2].text for row in differences.rows] == ["kNN top-1"]


def test_each_method_may_have_its_own_learning_rate_of_the_linear_evaluation(tmp_path):
    for method, rate in (("simclr", 0.1), ("simsiam", 30.0)):
        protocol = {"num_epochs": 90, "learning_rate": rate}
        entries = {"linear": [result("linear", "photos", {"top1": 50.0}, 100, protocol)]}
        write_run(tmp_path / method, 40.0, results=entries, config={"method": method})
    (study,) = _studies(tmp_path)
    assert compare.score_names(study.groups) == ["kNN top-1", "linear, photos, top1"]


@pytest.mark.parametrize(("psi", "paired"), [("min(ioa / 0.5, 1)", True), ("ioa", False)])
def test_calibration_errors_are_compared_where_they_ask_for_the_same(tmp_path, psi, paired):
    write_run(tmp_path / "gs", 40.0, results={"diagnostics": [diagnosed(0.25)]})
    plain = {"diagnostics": [diagnosed(0.75, psi)]}
    write_run(tmp_path / "plain", 40.0, measure="none", results=plain)
    (study,) = _studies(tmp_path)
    table = tables.differences_table(study, "differences")
    rows = {row[2].text: row[3].text for row in table.rows}
    assert rows.get("calibration error") == ("-0.50 (one seed: no interval)" if paired else None)
    assert "rank correlation" in rows


@pytest.mark.parametrize(
    ("graded", "words"),
    [
        ((45.0, 46.1, 47.0), "higher than SimCLR."),
        ((35.0, 36.1, 37.0), "lower than SimCLR."),
        ((40.0, 44.0, 39.0), "no clear difference from SimCLR."),
        ((40.5,), "points (one seed, so no interval) relative to SimCLR."),
    ],
)
def test_headline_claims_no_more_than_the_interval(tmp_path, graded, words):
    plain = dict(zip((5, 6, 7), (40.0, 41.0, 42.0), strict=True))
    _pair(tmp_path, dict(zip((5, 6, 7), graded, strict=False)).items(), plain.items())
    (study,) = _studies(tmp_path)
    lines = compare.headline(study)
    assert lines[0].startswith(f"{3 + len(graded)} runs: SimCLR; SimCLR-GS (resnet18,")
    assert lines[0].endswith(f"100 steps) on photos; {3 + len(graded)} finished runs.")
    assert lines[2].endswith(words)
    assert lines[3] == "For comparison: raw pixels 30.00 %, untrained encoder 20.00 (0.00) %."


def test_headline_names_the_swept_setting_once(tmp_path):
    members = [(f"{label}-{n}", label, 5, n) for n in (64, 128) for label in ("SimCLR", "GS")]
    write_plan(tmp_path, members, axis="batch_size")
    for name, label, _, value in members:
        measure = "ioa" if label == "GS" else "none"
        write_run(tmp_path / name, 30.0, measure=measure, config={"batch_size": value})
    (study,) = _studies(tmp_path)
    assert compare.headline(study)[0] == (
        "A study: SimCLR at batch_size = 64, 128; GS at batch_size = 64, 128 "
        "(resnet18, width 16, 100 steps) on photos; 4 finished runs."
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.234, -10.0, 0.004), ["+1.23", "-10.00", "+0.00"]),
        ((-0.0123, 0.05), ["-0.0123", "+0.0500"]),
        ((0.0,), ["+0.00"]),
        ((-0.001, 3.0), ["+0.00", "+3.00"]),
    ],
)
def test_signed_numbers_have_the_digits_of_the_largest(values, expected):
    assert compare.signed(*values) == expected


def test_every_finished_run_has_a_row_with_its_own_values(tmp_path):
    _pair(tmp_path)
    (study,) = _studies(tmp_path)
    rows = [[cell.text for cell in row] for row in tables.runs_table(study, "runs").rows]
    assert rows == [
        ["SimCLR", "5", "39"],
        ["SimCLR", "6", "40"],
        ["SimCLR-GS", "5", "40"],
        ["SimCLR-GS", "6", "42"],
    ]


def test_table_1_has_the_figures_of_the_thesis():
    (table,) = [table for table in thesis.TABLES if table.name == "Table 1"]
    rows = dict(
        zip(thesis.METHODS, zip(*(c.values for c in table.columns), strict=True), strict=True)
    )
    assert rows == {
        "SimCLR": (86.28, 87.98, 63.60),
        "SimCLR-GS": (87.19, 88.19, 63.53),
        "SimSiam": (88.71, 88.57, 65.29),
        "SimSiam-GS": (89.36, 88.86, 63.18),
    }


def test_every_score_of_the_thesis_tables_is_one_that_a_job_writes():
    known = {("linear", source, "linear/top1") for source in ("cifar10", "stl10", "imagenet2012")}
    known |= {
        ("transfer", name, f"transfer/{name}_{dataset.metric}")
        for name, dataset in DATASETS.items()
    }
    difficulties, metrics = ("easy", "medium", "hard"), ("mAP", "mP@1", "mP@5", "mP@10")
    known |= {
        ("retrieval", name, f"retrieval/{difficulty}_{metric}")
        for name in ("roxford5k", "rparis6k")
        for difficulty, metric in itertools.product(difficulties, metrics)
    }
    columns = [(c.job, c.dataset, c.score) for table in thesis.TABLES for c in table.columns]
    assert len(columns) == len(set(columns)) == 3 + 8 + 8
    assert set(columns) <= known


RECIPE = "resnet18, width 16, batch 128, 100 steps"


def _linear(top1, dataset="cifar10", **protocol):
    return {"linear": [result("linear", dataset, {"top1": top1}, protocol=protocol)]}


def _ours(studies, table="Table 1", column=2):
    """{method: our cell} of a column of a thesis' table."""
    (found,) = [t for t in tables.thesis_tables(studies) if t.name == table]
    return {row[0].text: row[column].text for row in found.rows}


def test_our_figures_stand_beside_the_thesis_with_their_recipe(tmp_path):
    folder = tmp_path / "sweep"
    members = [(f"plain-{seed}", "SimCLR", seed, None) for seed in (5, 6)]
    write_plan(folder, members, shows=("Table 1",))
    config = {"data.source": "cifar10"}
    for seed, top1 in ((5, 61.0), (6, 62.0)):
        options = {"measure": "none", "results": _linear(top1), "config": config}
        write_run(folder / f"plain-{seed}", 40.0, seed=seed, **options)
    (table,) = tables.thesis_tables(_studies(tmp_path))
    assert _cells(table)["SimCLR"]["CIFAR-10: thesis"] == "86.28"
    assert len(table.header) == 7
    ours = _ours(_studies(tmp_path))
    assert ours["SimCLR"] == f"61.50 (0.71) [{RECIPE}, 2 seeds]"
    assert ours["SimCLR-GS"] == "not run"


@pytest.mark.parametrize(
    ("method", "protocol", "told"),
    [
        ("simclr", {"num_epochs": 1, "flip": 0.5}, "linear.num_epochs=1"),
        ("simclr", {"num_epochs": 90, "learning_rate": 0.1, "train": "all", "num_train": 9}, ""),
        ("simclr", {"num_epochs": 90, "learning_rate": 30.0}, "linear.learning_rate=30"),
        ("simsiam", {"num_epochs": 90, "learning_rate": 30.0}, ""),
    ],
)
def test_our_figures_say_what_their_linear_evaluation_differs_in(tmp_path, method, protocol, told):
    config = {"data.source": "cifar10", "method": method}
    write_run(tmp_path / "run", 40.0, results=_linear(61.5, **protocol), config=config)
    label = {"simclr": "SimCLR-GS", "simsiam": "SimSiam-GS"}[method]
    expected = f"61.50 [{RECIPE}, 1 seed{told and ', '}{told}]"
    assert _ours(_studies(tmp_path))[label] == expected


@pytest.mark.parametrize(
    ("table", "job", "dataset", "scores", "protocol", "told"),
    [
        ("Table 2", "transfer", "cifar10", {"cifar10_top1": 61.5}, {"max_examples": 5000}, None),
        ("Table 2", "transfer", "cifar10", {"cifar10_top1": 61.5}, {"max_iterations": 500}, ""),
        ("Table 3", "retrieval", "roxford5k", {"easy_mAP": 61.5}, {"protocol": "aspect"}, None),
        (
            *("Table 3", "retrieval", "roxford5k", {"easy_mAP": 61.5}),
            *({"protocol": "thesis", "image_size": 224}, ""),
        ),
        (
            *("Table 3", "retrieval", "roxford5k", {"easy_mAP": 61.5}),
            *({"protocol": "multiscale", "image_size": 224}, None),
        ),
    ],
)
def test_our_figures_say_what_other_evaluations_differ_in(
    tmp_path, table, job, dataset, scores, protocol, told
):
    entries = {job: [result(job, dataset, scores, protocol=protocol)]}
    config = {"data.source": "imagenet2012"}
    write_run(tmp_path / "run", 40.0, measure="none", results=entries, config=config)
    if told is None:
        told = "".join(f", {job}.{name}={value}" for name, value in protocol.items())
    assert _ours(_studies(tmp_path), table)["SimCLR"] == f"61.50 [{RECIPE}, 1 seed{told}]"


def test_the_usual_learning_rates_are_those_of_the_thesis():
    assert METHODS["simclr"].linear_learning_rate == 0.1  # thesis 5.1
    assert METHODS["simsiam"].linear_learning_rate == 30.0


def test_further_figures_for_a_cell_are_counted(tmp_path):
    for i, size in enumerate((64, 128, 256)):
        config = {"data.source": "cifar10", "batch_size": size}
        write_run(tmp_path / f"{size}", 40.0, results=_linear(60.0 + i), config=config)
    (study,) = _studies(tmp_path)
    first = study.groups[0]
    top1, size = compare.by_seed(first, "linear, cifar10, top1")[5], first.shaping["batch_size"]
    recipe = f"{first.name}, {RECIPE.replace('128', str(size))}"
    assert first.name == f"SimCLR-GS (batch_size={size})"
    assert _ours([study])["SimCLR-GS"] == f"{top1:.2f} [{recipe}, 1 seed; and 2 more above]"


def test_studies_that_name_a_table_come_first_in_it(tmp_path):
    config = {"data.source": "cifar10"}
    write_run(tmp_path / "a" / "loose", 40.0, results=_linear(70.0), config=config)
    only_loose = _studies(tmp_path)
    assert _ours(only_loose)["SimCLR-GS"] == f"70.00 [{RECIPE}, 1 seed]"
    assert _ours(only_loose)["SimCLR"] == "not run"
    for name, top1, shows in (("b", 80.0, ()), ("c", 90.0, ("Table 1",))):
        write_plan(tmp_path / name, [("gs", "SimCLR-GS", 5, None)], shows=shows)
        write_run(tmp_path / name / "gs", 40.0, results=_linear(top1), config=config)
    assert _ours(_studies(tmp_path))["SimCLR-GS"] == (f"90.00 [{RECIPE}, 1 seed; and 2 more above]")


def test_thesis_tables_that_nothing_repeats_are_not_shown(tmp_path):
    write_run(tmp_path / "run", 40.0)
    assert tables.thesis_tables(_studies(tmp_path)) == []


def test_thesis_tables_name_the_variant_of_a_protocol(tmp_path):
    write_plan(tmp_path / "s", [("plain", "SimCLR", 5, None)], shows=("Table 1",))
    entries = [
        result("linear", "cifar10", {"top1": 60.0 + n}, protocol={"num_epochs": n}) for n in (3, 9)
    ]
    config = {"data.source": "cifar10"}
    write_run(
        tmp_path / "s" / "plain",
        40.0,
        measure="none",
        results={"linear": entries},
        config=config,
    )
    (study,) = _studies(tmp_path)
    text = tables.thesis_tables([study])[0].rows[0][2].text
    told = "1 seed, linear.num_epochs=3; and 1 more above"
    assert text == f"63.00 [{RECIPE}, {told}]"

"""Figures of reports: what is drawn is what was measured, and no case warns."""

import io
import math
import re

import numpy as np
import pytest
from etils import epath
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from report_runs import diagnosed, write_plan, write_run

from gsjax.report import collect, draw, figures


def _study(folder):
    ((study,), damaged) = collect.find([epath.Path(folder)])
    assert damaged == []
    return study


def _axes():
    return Figure().add_subplot()


def _lines(axes):
    """{label: points} of the lines that the legend names, and a list of the others' points."""
    named, others = {}, []
    for line in axes.get_lines():
        points = [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]
        label = line.get_label()
        if label.startswith("_"):
            others.append(points)
        else:
            named[label] = points
    return named, others


def _records(values, metric="train/loss", start=10):
    return [{"step": start * (i + 1), metric: value} for i, value in enumerate(values)]


def test_the_curve_of_one_run_is_drawn_as_it_was_measured(tmp_path):
    write_run(tmp_path / "run", 40.0, records=_records([3.0, 2.5, None, 2.25]))
    study, axes = _study(tmp_path), _axes()
    draw.curves(axes, study.groups, "train/loss", draw.colors(study))
    assert _lines(axes) == ({"SimCLR-GS": [(10, 3.0), (20, 2.5), (40, 2.25)]}, [])


def test_the_thick_line_is_the_mean_over_seeds_and_baselines_are_dashed(tmp_path):
    write_run(tmp_path / "a", 40.0, seed=5, records=_records([3.0, 2.0]))
    write_run(tmp_path / "b", 40.0, seed=6, records=_records([4.0, 2.5]))
    write_run(tmp_path / "c", 40.0, measure="none", records=_records([1.0, 0.5]))
    study, axes = _study(tmp_path), _axes()
    colors = draw.colors(study)
    draw.curves(axes, study.groups, "train/loss", colors)
    named, others = _lines(axes)
    assert named == {"SimCLR-GS": [(10, 3.5), (20, 2.25)], "SimCLR": [(10, 1.0), (20, 0.5)]}
    assert others == [[(10, 3.0), (20, 2.0)], [(10, 4.0), (20, 2.5)]]
    for line in axes.get_lines():
        if line.get_label() in named:
            assert line.get_linestyle() == ("--" if line.get_label() == "SimCLR" else "-")
            assert to_hex(line.get_color()) == colors[line.get_label()]


def test_a_mean_goes_as_far_as_all_seeds_and_between_their_points():
    long = [(0, 0.0), (10, 1.0), (20, 2.0), (30, 3.0)]
    short = [(5, 10.0), (20, 10.0)]
    assert draw.mean_curve([long, short]) == [(5, 5.25), (20, 6.0)]
    assert draw.mean_curve([long]) == long
    assert draw.mean_curve([[(0, 1.0), (10, 2.0)], [(5, 4.0)]]) == [(5, 2.75)]


def test_seeds_that_share_no_step_have_no_mean():
    assert draw.mean_curve([[(0, 1.0)], [(5, 4.0)]]) == []


def test_seeds_that_share_no_step_are_drawn_without_a_mean(tmp_path):
    write_run(tmp_path / "a", seed=5, done=10, untrained=None, records=_records([3.0]))
    write_run(tmp_path / "b", 40.0, seed=6, untrained=None, records=_records([2.0], start=50))
    study, axes = _study(tmp_path), _axes()
    draw.curves(axes, study.groups, "train/loss", draw.colors(study))
    assert _lines(axes) == ({}, [[(10, 3.0)], [(50, 2.0)]])


def test_curves_are_over_epochs_where_their_steps_differ(tmp_path, monkeypatch):
    drawn = {}
    curves = draw.curves

    def spy(axes, groups, metric, *rest):
        curves(axes, groups, metric, *rest)
        drawn[metric] = axes.get_xlabel(), _lines(axes)[0]

    monkeypatch.setattr(figures.draw, "curves", spy)
    for name, size in (("a", 100), ("b", 50)):  # of 1000 images: 10 steps an epoch, and 20
        records = _records([3.0, 2.5])
        write_run(tmp_path / "runs" / name, 40.0, records=records, config={"batch_size": size})
    _panels(tmp_path / "runs", tmp_path / "both")
    assert drawn["train/loss"] == (
        "epoch",
        {
            "SimCLR-GS (batch_size=100)": [(1, 3.0), (2, 2.5)],
            "SimCLR-GS (batch_size=50)": [(0.5, 3.0), (1, 2.5)],
        },
    )
    assert drawn["knn/top1"][0] == "epoch"
    _panels(tmp_path / "runs" / "a", tmp_path / "one")
    assert drawn["train/loss"] == ("step", {"SimCLR-GS": [(10, 3.0), (20, 2.5)]})


def test_each_method_has_a_panel_of_its_knn_accuracy(tmp_path, monkeypatch):
    drawn = {}
    render = figures.Panels._render

    def spy(self, name, title, note, fill):
        axes = _axes()
        fill(axes)
        drawn[title] = sorted(_lines(axes)[0])
        return render(self, name, title, note, fill)

    monkeypatch.setattr(figures.Panels, "_render", spy)
    for method in ("simsiam", "simclr"):
        for measure in ("none", "ioa"):
            options = {"measure": measure, "config": {"method": method}}
            folder = tmp_path / "runs" / f"{method}-{measure}"
            write_run(folder, 40.0, records=_records([1.0]), **options)
    panels, _ = _panels(tmp_path / "runs", tmp_path)
    assert len({panel.file for panel in panels}) == 3
    assert drawn == {
        "SimCLR: kNN accuracy during pre-training": ["SimCLR", "SimCLR-GS", "raw pixels"],
        "SimSiam: kNN accuracy during pre-training": ["SimSiam", "SimSiam-GS", "raw pixels"],
        "Loss": ["SimCLR", "SimCLR-GS", "SimSiam", "SimSiam-GS"],
    }


def test_knn_accuracy_is_beside_raw_pixels(tmp_path):
    write_run(tmp_path / "run", 40.0, untrained=20.5, pixels=31.25)
    study, axes = _study(tmp_path), _axes()
    draw.curves(axes, study.groups, "knn/top1", draw.colors(study))
    named, _ = _lines(axes)
    assert named["SimCLR-GS"] == [(0, 20.5), (100, 40.0)]
    assert [y for _, y in named["raw pixels"]] == [31.25, 31.25]


def test_the_spread_is_drawn_so_that_one_is_the_sphere(tmp_path):
    records = _records([0.125], "train/embedding_std")
    write_run(tmp_path / "run", 40.0, records=records, config={"projector.out_dim": 16})
    study = _study(tmp_path)
    curve = draw.scaled(study.groups[0].runs[0], "train/embedding_std")
    assert curve == [(10, pytest.approx(0.125 * math.sqrt(16)))]


def _axis_study(folder, axis, values, runs=2):
    members = [
        (f"gs-{i}-{seed}", "SimCLR-GS", seed, value)
        for seed in (5, 6)[:runs]
        for i, value in enumerate(values)
    ]
    members += [("plain-5", "SimCLR", 5, None)]
    write_plan(folder, members, axis=axis)
    for name, label, seed, value in members:
        config = {} if value is None else {axis: value}
        measure = "none" if label == "SimCLR" else "ioa"
        knn = 50.0 if value is None else 40.0 + seed + 10 * values.index(value)
        write_run(folder / name, knn, seed=seed, measure=measure, config=config)
    return _study(folder)


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("similarity.threshold", [0.5, 0.1, 1.0]),
        ("batch_size", [256, 64, 128]),
        ("augment.crop", ["tf", "byol", "torchvision"]),
        ("encoder.zero_init_residual", [True, False]),
        ("similarity.threshold", [0.3]),
        ("batch_size", [32]),
    ],
)
def test_accuracy_over_a_setting(tmp_path, axis, values):
    study, axes = _axis_study(tmp_path, axis, values), _axes()
    draw.over_axis(axes, study)
    (line,) = [line for line in axes.get_lines() if line.get_label() == "SimCLR-GS"]
    is_number = not isinstance(values[0], (str, bool))
    order = sorted(values) if is_number else values
    xs = line.get_xdata().tolist() if hasattr(line.get_xdata(), "tolist") else line.get_xdata()
    assert list(xs) == (order if is_number else [str(value) for value in order])
    expected = [45.5 + 10 * values.index(value) for value in order]
    np.testing.assert_allclose(line.get_ydata(), expected)
    (level,) = [line for line in axes.get_lines() if line.get_label() == "SimCLR"]
    assert list(level.get_ydata()) == [50, 50]
    points = np.concatenate([c.get_offsets() for c in axes.collections])
    assert sorted(points[:, 1]) == sorted(
        40.0 + seed + 10 * i for seed in (5, 6) for i in range(len(values))
    )


def test_histograms_are_shares():
    axes = _axes()
    draw.histograms(axes, {"ioa_histogram": [1, 3], "psi_histogram": [0, 8]})
    bars = [(round(bar.get_x(), 6), bar.get_height()) for bar in axes.patches]
    assert bars == [(0.0, 0.25), (0.5, 0.75), (0.25, 0.0), (0.75, 1.0)]


def test_each_law_of_the_overlap_has_a_histogram(tmp_path):
    """A baseline's psi is that of the default, as the first graded arm's."""
    psi = {"plain": "min(ioa / 0.5, 1)", "gs": "min(ioa / 0.5, 1)", "other": "min(iou / 0.5, 1)"}
    measures = {"plain": "none", "gs": "ioa", "other": "iou"}
    psi["far"], measures["far"] = psi["gs"], "ioa"
    for name, measure in measures.items():
        entry = diagnosed(psi=psi[name])
        config = {}
        if name == "far":
            config = {"similarity.scale": 0.5, "crops.max_overlap": 0.2}
            entry["protocol"]["crops"] = {"max_overlap": 0.2}
        results = {"diagnostics": [entry]}
        write_run(tmp_path / "runs" / name, 40.0, measure=measure, config=config, results=results)
    panels, _ = _panels(tmp_path / "runs", tmp_path)
    notes = {panel.title: panel.note for panel in panels if "overlap of the crops" in panel.title}
    assert notes == {
        "SimCLR-GS: overlap of the crops and psi": (
            "Pairs of crops from photos, sampled as in gs. Same distribution: SimCLR."
        ),
        "SimCLR-GS, IoU: overlap of the crops and psi": (
            "Pairs of crops from photos, sampled as in other."
        ),
        "SimCLR-GS, scale 0.5: overlap of the crops and psi": (
            "Pairs of crops from photos, sampled as in far."
        ),
    }


def test_calibration_leaves_out_empty_bins():
    bins = diagnosed()["details"]["calibration"]
    bins["count"][1] = 0
    for name in ("mean", "target", "q10", "q25", "q50", "q75", "q90"):
        bins[name] = [None if i == 1 else value for i, value in enumerate(bins[name])]
    bins["target"] = [0.5, None, 0.0]
    axes = _axes()
    draw.calibration(axes, bins, "#3b82c4")
    named, _ = _lines(axes)
    expected = [(1 / 6, 0.9), (5 / 6, 0.5)]
    assert np.allclose(named["mean"], expected)
    assert np.allclose(named["1 - psi"], [(1 / 6, 0.5), (5 / 6, 0.0)])


@pytest.mark.parametrize(
    ("counts", "drawn", "note"),
    [
        ([19, 20, 500], [1, 2], "Bins with fewer than 20 directions are omitted."),
        ([20, 0, 500], [0, 2], ""),
        ([19, 0, 1], [0, 2], "All bins have fewer than 20 directions."),
    ],
)
def test_calibration_leaves_out_small_bins_and_says_so(tmp_path, counts, drawn, note):
    entry = diagnosed(counts=counts)
    bins, axes = entry["details"]["calibration"], _axes()
    draw.calibration(axes, bins, "#3b82c4")
    middle = [(2 * i + 1) / 6 for i in drawn]
    assert np.allclose([x for x, _ in _lines(axes)[0]["mean"]], middle)
    for band in axes.collections:
        assert np.allclose(np.unique(band.get_paths()[0].vertices[:, 0].round(9)), middle)
    write_run(tmp_path / "runs" / "run", 40.0, results={"diagnostics": [entry]})
    panels, _ = _panels(tmp_path / "runs", tmp_path)
    (found,) = [panel.note for panel in panels if "distance by overlap" in panel.title]
    assert found == f"Seed 5. Mean distance from the dashed line: 0.50. {note}".rstrip()


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], None, [0, 0, 0, 0], [-1, 0, 1, 5]])
def test_the_map_shows_every_picture(labels):
    places = {"x": [0.0, 1.0, 2.0, 3.0], "y": [4.0, 5.0, 6.0, 7.0], "label": labels}
    places["class_names"] = ["_cat", "$dog"] if labels else None
    axes = _axes()
    draw.scatter_map(axes, places)
    points = np.concatenate([c.get_offsets() for c in axes.collections]).tolist()
    assert sorted(points) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    shown = [text.get_text() for text in axes.get_legend().get_texts()] if axes.legend_ else []
    expected = {2: [" _cat", "$dog"], 4: ["-1", " _cat", "$dog", "5"]}
    assert shown == (expected.get(len(set(labels)), []) if labels else [])


def _panels(folder, out):
    (out / "figures").mkdir(parents=True)
    drawn = figures.Panels(_study(folder), epath.Path(out / "figures"), "results")
    return drawn.all(), drawn.damaged


def _empty_bins():
    entry = diagnosed()
    entry["details"]["calibration"]["count"] = [0, 0, 0]
    entry["details"]["ioa_histogram"] = entry["details"]["psi_histogram"] = [0, 0]
    return entry


CASES = {
    "one point": {"records": _records([3.0]), "untrained": None},
    "all equal": {"records": _records([2.0, 2.0, 2.0])},
    "all zero": {"records": _records([0.0] * 3, "train/learning_rate"), "pixels": 0.0},
    "huge": {"records": _records([1e30, 1e-30])},
    "empty bins": {"results": {"diagnostics": [_empty_bins()]}},
    "one bin": {"results": {"diagnostics": [diagnosed(bins=1)]}},
    "many points": {"records": _records(np.linspace(3, 1, 999).tolist())},
    "one label": {"records": [], "results": {"diagnostics": [diagnosed()]}},
}


@pytest.mark.parametrize("case", CASES)
def test_every_figure_of_odd_runs_is_drawn_without_warning(tmp_path, case):
    for seed in (5, 6):
        write_run(tmp_path / "runs" / f"{seed}", 40.0, seed=seed, **CASES[case])
    panels, damaged = _panels(tmp_path / "runs", tmp_path)
    assert damaged == []
    assert len(panels) >= 1
    for panel in panels:
        with Image.open(tmp_path / "figures" / panel.file) as image:
            assert image.size == (736, 512)
            pixels = np.asarray(image.convert("L"))
        assert pixels.min() < 100 < 250 < pixels.max()


def test_labels_of_any_letters_are_drawn_as_they_are(tmp_path):
    label = '_a "b" <c> & $d_e$ \u65e5\u672c id="x"'
    write_plan(tmp_path / "runs", [("a", label, 5, None), ("b", f"{label}!", 5, None)])
    for name in ("a", "b"):
        config = {"batch_size": 64 if name == "a" else 32}
        entries = {"diagnostics": [diagnosed()]}
        write_run(tmp_path / "runs" / name, 40.0, config=config, results=entries)
    panels, damaged = _panels(tmp_path / "runs", tmp_path)
    assert damaged == []
    assert len({panel.file for panel in panels}) == len(panels) == 4
    assert panels[-1].title == f"{label}!: distance by overlap"
    assert '_a "b" &lt;c&gt; &amp; $d_e$ \u65e5\u672c id="x"' in panels[0].svg


def test_damaged_diagnostics_are_named_and_the_other_figures_go_on(tmp_path):
    entry = diagnosed()
    entry["details"] = {}
    run = write_run(tmp_path / "runs" / "run", 40.0, results={"diagnostics": [entry]})
    (run / "diagnostics").mkdir()
    (run / "diagnostics" / "map.json").write_text("{")
    panels, damaged = _panels(tmp_path / "runs", tmp_path)
    assert [panel.title for panel in panels] == ["kNN accuracy during pre-training"]
    assert len(damaged) == 3 and all("diagnostics of run" in line for line in damaged)


def test_figures_of_unfinished_runs_say_so(tmp_path):
    entries = {"diagnostics": [diagnosed(step=60)]}
    write_run(tmp_path / "runs" / "run", done=60, results=entries)
    panels, _ = _panels(tmp_path / "runs", tmp_path)
    (note,) = [panel.note for panel in panels if "distance by overlap" in panel.title]
    assert note.startswith("Seed 5, unfinished: step 60.")


def test_an_svg_has_the_colors_of_the_page_and_identifiers_of_its_own():
    def fill(axes):
        axes.plot([1, 2, 3], [1, 3, 2], marker="o", color="#3b82c4", label="a")
        axes.scatter([1, 2], [2, 3], color="#e07b39", rasterized=True)
        axes.set_xlabel("x")
        axes.legend()

    one, png = figures.render("one", "A title", fill)
    two, _ = figures.render("two", "A title", fill)
    for svg, name in ((one, "one"), (two, "two")):
        identifiers = re.findall(r' id="([^"]+)"', svg)
        used = re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)
        assert len(identifiers) == len(set(identifiers))
        assert set(used) == set(identifiers)
        assert all(identifier.startswith(f"{name}-") for identifier in identifiers)
        colors = set(re.findall(r"#[0-9a-f]{6}\b", svg))
        assert colors <= {"#3b82c4", "#e07b39"}
        assert "currentColor" in svg
        assert not re.search(r"(fill|stroke): ?(black|#000)\b", svg)
        texts = re.findall(r"<text[^>]*>", svg)
        assert texts and all("fill: currentColor" in text for text in texts)
        assert "<svg" in svg[:5] and "width=" not in svg[: svg.index(">")]
    assert Image.open(io.BytesIO(png)).format == "PNG"

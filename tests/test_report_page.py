"""The job report as a process, and the page that it writes."""

import csv
import html.parser
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest
from etils import epath
from PIL import Image
from report_runs import diagnosed, result, write_plan, write_run

from gsjax.config import defaults, settings
from gsjax.errors import UserError
from gsjax.report import absent, collect, figures, report
from gsjax.sweep import runs

LABEL = "a \"b\" <i>&amp; | 'c'"


def _report(workdir, *arguments):
    command = [sys.executable, "-m", "gsjax.main", "--job", "report", "--workdir", str(workdir)]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error::UserWarning:matplotlib"},
    )


class _Page(html.parser.HTMLParser):
    """Tags that match, identifiers, what is asked for, and the texts of tables."""

    _VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.asked, self.tables, self.texts = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self._VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                self.asked.append(value)
            self.asked += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "button"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "style":
            self.asked += re.findall(r"url\(([^)]*)\)|(@import)", data)
        self.texts.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a sweep, loose runs and damage, and what the report says of it."""
    folder = tmp_path_factory.mktemp("runs")
    members = [(f"gs-{seed}", LABEL, seed, None) for seed in (5, 6)]
    members += [(f"plain-{seed}", "SimCLR", seed, None) for seed in (5, 6)]
    members.append(("never", "SimCLR-GS, never run", 5, None))
    write_plan(folder / "sweep", members, title="Does <it> help & how?", shows=("Table 1",))
    for name, _, seed, _ in members[:4]:
        measure = "ioa" if name.startswith("gs") else "none"
        entries = {
            "linear": [
                result("linear", "photos", {"top1": 60.0 + seed}),
                result("linear", "photos", {"top1": 35.0}, step=None),
            ],
            "diagnostics": [diagnosed(0.01 * seed)],
        }
        run = write_run(
            folder / "sweep" / name,
            40.0 + seed + (measure == "ioa"),
            seed=seed,
            measure=measure,
            records=[{"step": 10, "train/loss": 3.0}, {"step": 20, "train/loss": None}],
            results=entries,
        )
        Image.new("RGB", (1500, 30), "#446688").save(run / "examples.png")
    places = {"x": [0.0, 1.0], "y": [0.0, 1.0], "label": [0, 1], "class_names": ["<a>", "b&"]}
    (run / "diagnostics").mkdir()
    (run / "diagnostics" / "map.json").write_text(json.dumps(places))
    (run / "diagnostics" / "neighbors.png").write_text("no picture")
    write_run(folder / "half", done=50)
    (write_run(folder / "bad", 10.0) / "config.json").write_text("{")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_run(elsewhere / "other", 70.0, config={"data.source": "cifar10"})
    (folder / "report" / "figures").mkdir(parents=True)
    (folder / "report" / "old.csv").write_text("1")
    (folder / "report" / "figures" / "old.png").write_text("1")
    (folder / "report" / "notes.txt").write_text("mine")
    done = _report(folder, f"--config.report.runs={elsewhere}", "--config.report.diagnostics=false")
    assert done.returncode == 0, done.stderr
    return folder / "report", done


def test_the_job_says_what_came_out_and_what_is_damaged(written):
    folder, done = written
    assert "gsjax" not in done.stderr and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert f"written to {folder / 'index.html'}" == lines[-1]
    assert any(
        line.startswith(f"{LABEL}: kNN top-1 46.50 (0.71) %, +1.00 points (95 % interval +1.00 to")
        for line in lines
    )
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert len(left_out) == 2
    assert "bad" in left_out[0] and "neighbors.png is damaged" in left_out[1]


def test_the_report_is_made_anew_and_leaves_what_is_not_its_own(written):
    folder, _ = written
    names = sorted(file.name for file in folder.iterdir())
    assert "old.csv" not in names and not (folder / "figures" / "old.png").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert {"index.html", "tables.md", "settings.csv", "environment.csv", "table_1.csv"} < set(
        names
    )
    assert {"study_1.csv", "study_1_differences.csv", "study_1_runs.csv"} < set(names)
    figures = sorted((folder / "figures").iterdir())
    assert len(figures) == 6 + 1 + 1
    for file in figures:
        with Image.open(file) as image:
            image.verify()


def test_the_page_is_whole_and_asks_for_nothing(written):
    text = (written[0] / "index.html").read_text()
    page = _Page(text)
    assert len(page.ids) == len(set(page.ids)) > 10
    assert page.asked and all(
        asked.startswith(("#", "data:image/", "data:,")) for asked in page.asked
    )
    fragments = {asked[1:] for asked in page.asked if asked.startswith("#")}
    assert fragments <= set(page.ids)
    links = set(re.findall(r"https?://[^\"'\s<)]+", text))
    assert links <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_page_begins_with_what_was_compared_and_what_came_out(written):
    page = _Page((written[0] / "index.html").read_text())
    text = " ".join(" ".join(page.texts).split())
    start = text.index("Summary")
    after = text[start : start + 400]
    assert f"Does <it> help & how?: {LABEL}; SimCLR (resnet18, width" in after
    assert "4 finished runs" in after and "no clear difference" not in after
    assert "never: not run" in text and "half: unfinished, step 50 of 100" in text


def _csv_files(folder):
    files = folder.glob("*.csv")
    return {file.name: list(csv.reader(io.StringIO(file.read_text()))) for file in files}


def test_the_page_the_csv_files_and_tables_md_hold_the_same(written):
    folder, _ = written
    page = _Page((folder / "index.html").read_text())
    files = _csv_files(folder)
    assert sorted(page.tables) == sorted(files.values())
    markdown, tables = (folder / "tables.md").read_text(), []
    for line in markdown.splitlines():
        if line.startswith("| "):
            cells = [re.sub(r"\\([|<])", r"\1", c) for c in re.split(r"(?<!\\) \| ", line[2:-2])]
            tables[-1].append(cells) if tables and tables[-1] else tables.append([cells])
        elif tables and tables[-1]:
            tables.append([])
    tables = [[table[0], *table[2:]] for table in tables if table]
    assert sorted(tables) == sorted(files.values())
    cells = {row[0]: row for row in files["study_1.csv"]}
    assert cells[LABEL][2] == "46.50 (0.71)"
    assert cells["SimCLR-GS, never run"][1:3] == ["0", "missing"]
    assert cells["raw pixels"][2] == "30.00"


def test_the_settings_hold_all_that_differs_and_could_matter(tmp_path):
    free = {"knn.every_epochs": 3, "log.every_steps": 7, "diagnostics.num_images": 64}
    of_machine = {"data.data_dir": "/a", "checkpoint.load": "none", "report.runs": "/b"}
    write_run(tmp_path / "a", 40.0, seed=6, config={**free, **of_machine, "batch_size": 64})
    write_run(tmp_path / "b", 40.0, measure="none")
    studies, _ = collect.find([epath.Path(tmp_path)])
    table = report._settings(studies)
    assert table.header == ("setting", "default", "SimCLR", "SimCLR-GS")
    assert {row[0].text: [cell.text for cell in row[1:]] for row in table.rows} == {
        "data.num_images": ["", "1000", "1000"],
        "batch_size": ["128", "128", "64"],
        "num_steps": ["200", "100", "100"],
        "similarity.measure": ["ioa", "none", "ioa"],
        "knn.every_epochs": ["10", "10", "3"],
        "log.every_steps": ["10", "10", "7"],
        "diagnostics.num_images": ["2000", "2000", "64"],
    }


def test_cells_are_sorted_by_the_number_that_they_show(written):
    text = (written[0] / "index.html").read_text()
    cells = re.findall(r'<td data-value="([^"]+)">([^<]+)<', text)
    assert len(cells) > 20
    for value, shown in cells:
        assert float(shown.split()[0]) == pytest.approx(float(value), abs=0.0051, rel=0.006)


def test_pictures_are_at_most_as_wide_as_the_page(written):
    text = (written[0] / "index.html").read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert 'alt="a &#34;b&#34; &lt;i&gt;' in text


def test_a_section_says_under_its_figures_what_is_not_there(written):
    text = " ".join(_Page((written[0] / "index.html").read_text()).texts)
    sweep, half, other = re.findall(r"Not shown: .*\.", text)
    assert sweep == (
        "Not shown: spread, distance between the two views, rank, alignment, uniformity, "
        "learning rate, speed (not recorded)."
    )
    assert (
        half
        == other
        == (
            "Not shown: views, nearest neighbors, maps (not in any work directory); "
            "calibration and histograms of psi (no diagnostics); "
            "loss, spread, distance between the two views, rank, alignment, uniformity, "
            "learning rate, speed (not recorded)."
        )
    )


def test_a_section_of_summaries_says_where_its_pictures_are(tmp_path):
    records = [{"step": 1, **{metric: 1.0 for metric in absent.CURVES}}]
    entries = {"diagnostics": [diagnosed()]}
    folder = write_run(tmp_path / "run", 40.0, records=records, results=entries)
    runs.write_summary(runs.read(epath.Path(folder)), epath.Path(f"{folder}.json"))
    shutil.rmtree(folder)
    ((study,), _) = collect.find([epath.Path(tmp_path)])
    assert absent.line(study) == (
        "Not shown: views, nearest neighbors, maps (in the members' work directories, "
        "not in their summaries)."
    )


def test_nothing_is_said_where_all_is_there_or_nothing_was_run(tmp_path):
    assert absent.CURVES.keys() == figures._CURVES.keys()
    records = [{"step": 1, **{metric: 1.0 for metric in absent.CURVES}}]
    entries = {"diagnostics": [diagnosed()]}
    folder = write_run(tmp_path / "runs" / "run", 40.0, records=records, results=entries)
    (folder / "diagnostics").mkdir()
    for name in absent.PICTURES:
        (folder / name).write_text("")
    write_plan(tmp_path / "sweep", [("a", "SimCLR", 5, None)])
    studies, _ = collect.find([epath.Path(tmp_path)])
    assert [absent.line(study) for study in studies] == ["", ""]


def test_nothing_to_report_on_is_one_line_and_status_2(tmp_path):
    done = _report(tmp_path / "missing")
    assert (done.returncode, done.stdout) == (2, "")
    folder = tmp_path / "missing"
    assert f"gsjax: error: --job report: no such folder: {folder}\n" in done.stderr


@pytest.mark.parametrize("name", ["empty", "bad"])
def test_where_nothing_can_be_read_nothing_is_written(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (write_run(tmp_path / "bad", 10.0) / "config.json").write_text("{")
    with pytest.raises(UserError, match=f"^--job report: no run or sweep in .*{name}"):
        report.run(defaults.get_config(), str(tmp_path / name))
    assert not (tmp_path / name / "report").exists()


# What one summary holds instead, and whether the report can still show the run.
CHANGES = {
    "starts that are texts": ({"starts": ["x"]}, False),
    "packages that are null": ({"starts": [{"packages": None}]}, False),
    "versions that are null": ({"starts": [{"python": None, "packages": {"jax": 3}}]}, True),
    "no member": ({"member": None}, False),
    "a label that is a list": ({"member": {"label": [1]}}, False),
    "no data": ({"data": None}, False),
    "no protocol": ({"results": {"knn": [result("knn", "a", {}) | {"protocol": None}]}}, False),
    "an endless score": ({"results": {"diagnostics": [diagnosed(1e999)]}}, True),
    "empty curves": ({"curves": {"train/loss": [], "knn/pixels_top1": [[0, math.nan]]}}, True),
    "no projector": ({"config": {"projector": ...}}, True),
    "a projector that is null": ({"config": {"projector": None}}, False),
    "a seed that is a text": ({"config": {"seed": "five"}}, False),
    "a setting of tomorrow": ({"config": {"loss": {"younger": [None]}}}, True),
    "no method": ({"config": {"method": ...}}, False),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_one_odd_summary_does_not_end_the_report(tmp_path, kind):
    change, is_shown = CHANGES[kind]
    for name, seed in (("good", 5), ("odd", 6)):
        folder = write_run(tmp_path / name, 40.0, seed=seed, records=[{"step": 1, "train/loss": 2}])
        runs.write_summary(runs.read(epath.Path(folder)), epath.Path(f"{folder}.json"))
        shutil.rmtree(folder)
    content = json.loads((tmp_path / "odd.json").read_text())
    config = {**content["config"], **change.get("config", {})}
    config = {name: value for name, value in config.items() if value is not ...}
    (tmp_path / "odd.json").write_text(json.dumps({**content, **change, "config": config}))
    report.run(defaults.get_config(), str(tmp_path))
    text = " ".join(_Page((tmp_path / "report" / "index.html").read_text()).texts)
    rows = _csv_files(tmp_path / "report")["environment.csv"]
    assert [row[1] for row in rows] == (["seed", "5", "6"] if is_shown else ["seed", "5"])
    assert (f"{tmp_path / 'odd.json'} is not a run summary" in text) != is_shown


def test_only_the_report_itself_needs_what_draws(tmp_path):
    write_run(tmp_path / "run", 10.0)
    code = """
import sys
sys.modules |= dict.fromkeys(("matplotlib", "jinja2", "umap"))  # as if they were not installed
import gsjax.train.pretrain
from gsjax.config import defaults; from gsjax import errors
from gsjax.report import report
try:
    report.run(defaults.get_config(), sys.argv[1])
except errors.UserError as error:
    sys.exit(str(error))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"--job report: .*matplotlib.*; pip install 'gsjax\[report\]'", line)
    assert not (tmp_path / "report").exists()


def test_diagnostics_are_run_where_a_checkpoint_has_none(tmp_path, monkeypatch):
    write_run(tmp_path / "new", 40.0)
    write_run(tmp_path / "old", 40.0, seed=6, results={"diagnostics": [diagnosed(step=50)]})
    write_run(tmp_path / "done", 40.0, seed=7, results={"diagnostics": [diagnosed()]})
    write_run(tmp_path / "begun", seed=8, done=0)
    gone = write_run(tmp_path / "gone", 40.0, seed=9)
    shutil.rmtree(gone / "checkpoints" / "100")
    (gone / "checkpoints" / "100.tmp").mkdir()
    calls = []

    def run(command, check):
        calls.append(command[-1])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(report.subprocess, "run", run)
    studies, _ = collect.find([epath.Path(tmp_path)])
    assert not report._diagnose(studies, defaults.get_config())
    assert sorted(calls) == [str(tmp_path / "new"), str(tmp_path / "old")]


def test_diagnostics_get_the_settings_that_the_report_was_given(tmp_path, monkeypatch):
    write_run(tmp_path / "run", 40.0)
    calls = []

    def run(command, check):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(report.subprocess, "run", run)
    given = {
        "platform": "cpu",
        "data.data_dir": "/a folder/with = and spaces",
        "data.test_split": "",
        "data.max_damaged": "0.123456789012345678",
        "diagnostics.num_images": "64",
        "features.keep": "false",
        "knn.every_epochs": "3",
    }
    config = defaults.get_config()
    settings.override(config, {**given, "report.runs": str(tmp_path / "run")})
    studies, _ = collect.find([epath.Path(tmp_path)])
    report._diagnose(studies, config)
    ((_, *arguments),) = calls
    rest, overrides = settings.split_overrides(arguments)
    assert rest[-2:] == ["--workdir", str(tmp_path / "run")]
    assert overrides.keys() == given.keys()
    handed = defaults.get_config()
    settings.override(handed, overrides)
    handed.report.runs = config.report.runs
    assert handed == config


def test_settings_without_an_effect_on_a_report_are_one_line(tmp_path):
    write_run(tmp_path / "run", 40.0)
    config = defaults.get_config()
    wrong = {"similarity.threshold": "0.7", "data.memory_gb": "1", "checkpoint.load": "50"}
    settings.override(config, {**wrong, "report.diagnostics": "false", "platform": "cpu"})
    with pytest.raises(UserError, match="^--job report: a report accepts ") as error:
        report.run(config, str(tmp_path))
    words, _, names = str(error.value).partition(": remove ")
    assert "\n" not in words and set(names.split(", ")) == set(wrong)
    assert not (tmp_path / "report").exists()

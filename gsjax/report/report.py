"""The job `report`: reads runs and sweeps, and writes one page with their tables and figures."""

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

import gsjax
from gsjax.config import settings
from gsjax.config.defaults import SETTINGS
from gsjax.config.schema import Kind
from gsjax.errors import UserError
from gsjax.report import absent, collect, compare, groups, tables
from gsjax.runtime import checkpoints, files, metrics
from gsjax.sweep.runs import Run

_NOT_COMPARED = ("seed", "checkpoint.load", "platform")


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Writes `report/` into the work directory: index.html, tables.md, CSV files and figures/.

    Raises:
      UserError: there is nothing to report on, a setting was given that has no effect here, or a
        library of the `report` extra is missing.
    """
    _check(config)
    try:
        from gsjax.report import figures, page  # matplotlib and jinja2, from the `report` extra
    except ImportError as error:
        raise UserError(f"--job report: {error}; pip install 'gsjax[report]'") from error

    paths = collect.parse_paths(workdir, config.report.runs)
    studies, damaged = collect.find(paths)
    if config.report.diagnostics and _diagnose(studies, config):
        studies, damaged = collect.find(paths)
    folder = files.absolute(workdir) / "report"
    with files.write_errors(folder):
        _clear(folder)
        sections = []
        for i, study in enumerate(studies):
            name = f"study_{i + 1}" if len(studies) > 1 else "results"
            panels = figures.Panels(study, folder / "figures", name)
            drawn = panels.all()
            damaged += panels.damaged
            pictures = []
            for title, file in _pictures(study):
                try:
                    pictures.append(page.picture(title, file))
                except UserError as error:
                    damaged.append(str(error))
            sections.append(
                page.Section(
                    study.title,
                    study.shows,
                    compare.headline(study),
                    _tables(study, name),
                    drawn,
                    pictures,
                    study.missing,
                    absent.line(study),
                )
            )
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        byline = f"Report by gsjax {gsjax.__version__}, {now}"
        background = [_settings(studies), _environments(studies)]
        page.write(folder, sections, tables.thesis_tables(studies), background, damaged, byline)
    for line in damaged:
        metrics.log(f"left out: {line}")
    for section in sections:
        for line in section.lines:
            metrics.log(line)
    metrics.log(f"written to {folder / 'index.html'}")


def _clear(folder: epath.Path) -> None:
    """Creates the folder and removes the tables and figures of an earlier report."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    drawn = files.with_suffix(folder / "figures", ".png")
    for file in files.with_suffix(folder, ".csv") + drawn:
        file.unlink()


def _tables(study: collect.Study, name: str) -> list[tables.Table]:
    found = [
        tables.results_table(study, name),
        tables.differences_table(study, f"{name}_differences"),
        tables.runs_table(study, f"{name}_runs"),
    ]
    return [table for table in found if table and table.rows]


def _check(config: ml_collections.ConfigDict) -> None:
    """Checks that no setting was given that the trained encoders already determine.

    Raises:
      UserError: one was given.
    """
    names = [key for key in _given(config) if not _is_passed_on(key)]
    if names:
        raise UserError(
            "--job report: a report accepts only its own settings and those of diagnostics; the "
            f"others come from each run's config.json: remove {', '.join(names)}"
        )


def _given(config: ml_collections.ConfigDict) -> dict[str, settings.Value]:
    """Returns the settings that differ from their defaults, except the report's own."""
    return {
        key: value
        for key, value in settings.flatten(config).items()
        if value != SETTINGS[key].default and not key.startswith("report.")
    }


def _is_passed_on(key: str) -> bool:
    """Whether to pass a setting on to diagnostics, which always use the newest checkpoint."""
    return SETTINGS[key].kind is Kind.FREE and key not in ("checkpoint.load", "encoder.weights")


def _diagnose(studies: Sequence[collect.Study], config: ml_collections.ConfigDict) -> bool:
    """Runs the job `diagnostics` on checkpoints that have none; returns whether any succeeded.

    Each gets the report's settings and its own process, because JAX's 64-bit mode applies to a
    whole process.
    """
    given = [f"--config.{key}={v}" for key, v in _given(config).items() if _is_passed_on(key)]
    succeeded = False
    for _, found in _runs(studies):
        done = [entry["step"] for entry in found.results.get("diagnostics", [])]
        if not found.folder or not found.step or found.step in done:
            continue
        if found.step not in checkpoints.saved_steps(found.folder):
            continue
        metrics.log(f"running diagnostics of {found.name}")
        command = [sys.executable, "-m", "gsjax.main", "--job", "diagnostics"]
        command += ["--workdir", found.folder.as_posix(), *given]
        status = subprocess.run(command, check=False).returncode
        if status:
            metrics.log(f"no diagnostics of {found.name}: the job exited with status {status}")
        succeeded = succeeded or not status
    return succeeded


def _pictures(study: collect.Study) -> list[tuple[str, epath.Path]]:
    """Returns (title, file) of the pictures, from each group's first run that has them."""
    found = []
    for group in study.groups:
        for title, name in (
            ("views, with their psi to the global ones", "examples.png"),
            ("nearest neighbors", "diagnostics/neighbors.png"),
        ):
            paths = [run.folder / name for run in group.runs if run.folder]
            paths = [path for path in paths if path.exists()]
            if paths:
                found.append((f"{group.name}: {title}", paths[0]))
    return found


def _runs(studies: Sequence[collect.Study]) -> list[tuple[groups.Group, Run]]:
    return [(g, run) for study in studies for g in study.groups for run in g.runs]


def _settings(studies: Sequence[collect.Study]) -> tables.Table:
    """Lists every setting that differs from its default in the first run of any group."""
    found = [group for study in studies for group in study.groups]
    values = [settings.flatten(group.runs[0].config) for group in found]
    images = [group.shaping["data.num_images"] for group in found]
    rows = [("data.num_images", "", *(str(number) for number in images))]
    for key, setting in SETTINGS.items():
        is_shown = not key.startswith("report.") and not key.endswith("data_dir")
        if is_shown and key not in _NOT_COMPARED and any(v[key] != setting.default for v in values):
            cells = [settings.text(value[key]) for value in values]
            rows.append((key, settings.text(setting.default), *cells))
    header = ("setting", "default", *(group.name for group in found))
    caption = (
        "Settings that differ from the package defaults in the first run of any group. Omitted: "
        "seed, data folders, checkpoint.load, platform (the environment table lists the devices) "
        "and the report's own. Evaluations that were started separately may have used others."
    )
    table = tuple(tuple(compare.Cell(text) for text in row) for row in rows)
    return tables.Table("settings", caption, header, table)


def _environments(studies: Sequence[collect.Study]) -> tables.Table:
    rows = []
    for group, one in _runs(studies):
        for start in one.starts or [{}]:
            cells = (
                group.name,
                str(one.config["seed"]),
                f"{one.step} of {one.num_steps}",
                _recorded(start.get("step")),
                _recorded(start.get("commit") or start.get("gsjax")),
                _recorded(start.get("python")),
                _recorded(start.get("packages", {}).get("jax")),
                _recorded(start.get("devices")),
                _recorded(start.get("processor")),
            )
            rows.append(tuple(compare.Cell(cell) for cell in cells))
    header = ("run", "seed", "steps", "from step", "commit", "Python", "JAX", "devices", "CPU")
    return tables.Table("environment", "Where each run ran.", header, tuple(rows))


def _recorded(value: Any) -> str:
    return "not recorded" if value is None else str(value)

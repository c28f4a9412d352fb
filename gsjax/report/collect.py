"""Finds runs and sweeps in work directories and groups them into studies."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from gsjax.errors import UserError
from gsjax.report import groups
from gsjax.runtime import files
from gsjax.sweep import runner, runs
from gsjax.sweep.runs import Run

_DEPTH = 2  # levels of subfolders to search
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError)


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs that are compared with each other: a sweep's members, or runs outside of sweeps.

    Attributes:
      title: the question it answers.
      shows: figures and tables of the thesis that it reproduces.
      axis: the swept setting, or "".
      groups: groups of runs, in sweep order.
      missing: (member, why it has no result).
      absent: names of groups without any run.
    """

    title: str
    shows: tuple[str, ...]
    axis: str
    groups: tuple[groups.Group, ...]
    missing: tuple[tuple[str, str], ...]
    absent: tuple[str, ...] = ()


def find(paths: Sequence[epath.Path]) -> tuple[list[Study], list[str]]:
    """Returns the studies under work directories, and a line for each damaged file.

    Runs outside of sweeps are compared with each other if they use the same images.

    Raises:
      UserError: a folder does not exist, or there is neither a run nor a sweep.
    """
    found = _Found()
    for path in paths:
        if not path.is_dir():
            raise UserError(f"--job report: no such folder: {path}")
        found.look(path, _DEPTH)
    studies = found.studies + _loose_studies(found.loose)
    if not studies:
        names = ", ".join(str(path) for path in paths)
        reason = f" ({found.damaged[0]})" if found.damaged else ""
        raise UserError(
            f"--job report: no run or sweep in {names}{reason}; set --workdir to the folder of one "
            "or of several"
        )
    return studies, found.damaged


def parse_paths(workdir: str, others: str) -> list[epath.Path]:
    """Returns the folders given by `--workdir` and `report.runs`."""
    names = [workdir, *(name.strip() for name in others.split(",") if name.strip())]
    return [files.absolute(name) for name in names]


class _Found:
    """What a walk through folders finds; each folder counts once."""

    def __init__(self) -> None:
        self.studies: list[Study] = []
        self.loose: list[Run] = []
        self.damaged: list[str] = []
        self._seen: set[str] = set()

    def look(self, path: epath.Path, depth: int) -> None:
        if str(path.resolve()) in self._seen:
            return
        self._seen.add(str(path.resolve()))
        try:
            if (path / runner.PLAN_FILE).exists():
                self.studies.append(_study(path, self.damaged))
                return
            if (path / "config.json").exists():
                self.loose.append(runs.read(path))
                return
            children = sorted(path.iterdir()) if depth else []
        except (UserError, OSError) as error:
            self.damaged.append(str(error))
            return
        for child in children:
            if child.suffix == ".json" and runs.is_summary(child):
                own = path / child.stem
                self._seen.add(str(own.resolve()))
                self._look_at_member(path, child.stem)
        for child in children:
            if child.is_dir():
                self.look(child, depth - 1)

    def _look_at_member(self, path: epath.Path, name: str) -> None:
        try:
            run = _member(path, name, {}, self.damaged)
        except UserError as error:
            self.damaged.append(str(error))
            return
        if run:
            self.loose.append(run)


def _loose_studies(loose: Sequence[Run]) -> list[Study]:
    """Returns one study per kind of images, since scores on different images are not comparable."""
    by_images: dict[str, list[Run]] = {}
    for run in loose:
        data = run.config["data"]
        by_images.setdefault(f"{data['source']}, {data['image_size']} pixels", []).append(run)
    studies = []
    for images, members in by_images.items():
        members.sort(
            key=lambda run: (
                run.config["method"],
                groups.shaping(run.config, run.data)["similarity.measure"] != "none",
                groups.label_of(run.config),
            )
        )
        found, repeated = groups.group_runs(members)
        missing = [(run.name, _unfinished(run)) for run in members if not run.finished]
        title = f"Run {members[0].name}" if len(members) == 1 else f"{len(members)} runs"
        title += f" on {images}" if len(by_images) > 1 else ""
        studies.append(Study(title, (), "", found, (*missing, *repeated)))
    return studies


def _study(folder: epath.Path, damaged: list[str]) -> Study:
    file = folder / runner.PLAN_FILE
    try:
        plan = json.loads(file.read_text())
        title, shows, axis = str(plan["title"]), tuple(plan["shows"]), str(plan["axis"])
        members = [
            (
                str(m["name"]),
                {n: m[n] for n in ("label", "seed", "value")}
                | {"reference": m.get("reference", "")},
            )
            for m in plan["members"]
        ]
        for _, about in members:
            runs.check_member(about)
    except _DAMAGE as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    found: list[Run] = []
    missing: list[tuple[str, str]] = []
    for name, about in members:
        try:
            run = _member(folder, name, about, damaged)
        except UserError as error:
            damaged.append(str(error))
            missing.append((name, "damaged"))
            continue
        if run is None:
            missing.append((name, "not run"))
            continue
        found.append(run)
        if not run.finished:
            missing.append((name, _unfinished(run)))
    planned = [(about["label"], about["value"]) for _, about in members]
    found.sort(key=lambda run: planned.index((run.member["label"], run.member["value"])))
    present, repeated = groups.group_runs(found)
    ran = {(run.member["label"], run.member["value"]) for run in found}
    absent = [groups.name_of(*key) for key in dict.fromkeys(planned) if key not in ran]
    return Study(title, shows, axis, present, (*missing, *repeated), tuple(absent))


def _member(folder: epath.Path, name: str, about: dict[str, Any], damaged: list[str]) -> Run | None:
    """Returns a member's run: its summary plus what its folder adds, or the folder alone."""
    summary, own = folder / f"{name}.json", folder / name
    if not summary.exists():
        return runs.read(own, about) if (own / "config.json").exists() else None
    run = runs.read_summary(summary)
    run = dataclasses.replace(run, member={**run.member, **about})
    if not (own / "config.json").exists():
        return run
    run = dataclasses.replace(run, folder=own)
    try:
        later = runs.read(own)
    except UserError as error:
        damaged.append(f"{error}; using its summary instead")
        return run
    if later.step != run.step:  # checkpoints were removed, or it is retraining
        return run
    return dataclasses.replace(run, results={**run.results, **later.results})


def _unfinished(run: Run) -> str:
    return f"unfinished, step {run.step} of {run.num_steps}"

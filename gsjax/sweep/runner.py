"""The job `sweep`: trains and evaluates the members of a sweep.

They run one after another, each in a process of its own; with `--sweep_index` only one does, so
that the job array of a cluster spreads them over machines. A finished member leaves one small file,
`<workdir>/<member>.json`, and is not run again where that file is.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from gsjax.config import defaults, settings
from gsjax.errors import UserError
from gsjax.jobs import JOBS
from gsjax.runtime import checkpoints, files, interrupts, metrics, parallel
from gsjax.sweep import runs
from gsjax.sweep.plans import Member, Plan

PLAN_FILE = "sweep.json"  # tells a report what belongs to the sweep
_JOBS = ("diagnostics",)  # of every sweep
# Settings of evaluations that leave the scores as they are, and those of the kNN monitor.
_NOT_OF_SCORES = ("data_dir", "memory_gb", "pictures", "neighbors", "every_epochs", "baselines")


def run_all(plan: Plan, workdir: str, arguments: Sequence[str]) -> None:
    """Runs every member that is not finished; one that fails does not keep the others from it.

    This process itself never touches a device.

    Args:
      plan: of the sweep.
      workdir: holds `<member>/` and `<member>.json`.
      arguments: the command line of this very call, to which `--sweep_index` is added.

    Raises:
      UserError: a summary is there that is of other settings, before anything runs; or members
        have failed, which are named.
    """
    folder = files.absolute(workdir)
    for member in plan.members:
        finished(plan, member, folder)
    write_plan(plan, folder)
    failed = []
    for index, member in enumerate(plan.members):
        print(f"member {index} of {len(plan.members)}: {member.name}", flush=True)
        if finished(plan, member, folder):
            print(f"finished: {folder / member.name}.json is there", flush=True)
            continue
        status = _run_process([*arguments, f"--sweep_index={index}"])
        if status:
            failed.append(f"{index} ({member.name}, status {status})")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(plan.members)} members failed: {', '.join(failed)}; their "
            "reasons stand above, the same command goes on with them"
        )
    print(f"all {len(plan.members)} members are finished: --job report --workdir {workdir}")


def run_member(plan: Plan, member: Member, workdir: str) -> None:
    """Trains, evaluates and sums up one member; goes on where an earlier start has stopped.

    Raises:
      UserError: as the pre-training and the evaluations.
    """
    folder = files.absolute(workdir)
    own, summary = folder / member.name, folder / f"{member.name}.json"
    if finished(plan, member, folder):
        metrics.say(f"finished: {summary} is there, nothing to do")
        return
    if summary.exists() and not checkpoints.saved_steps(own):
        missing = ", ".join(_missing(plan, member, runs.read_summary(summary)))
        raise UserError(
            f"{summary} lacks what this sweep wants ({missing}), and its encoder is not here: "
            f"bring {own} back, or move the file away to train anew"
        )
    if parallel.is_primary():
        write_plan(plan, folder)
    JOBS["pretrain"].load()(member.config, own.as_posix())
    config = ml_collections.ConfigDict(member.config.to_dict())
    config.checkpoint.load = "latest"
    for job in _evaluations(plan):
        metrics.say(f"job      {job}")
        JOBS[job].load()(settings.check(config), own.as_posix())
    if parallel.is_primary():
        about = {"label": member.label, "seed": member.seed, "value": member.value}
        runs.write_summary(runs.read(own, about), summary)


def finished(plan: Plan, member: Member, folder: epath.Path) -> bool:
    """Whether the member's summary is there, of the same settings and with all results.

    Raises:
      UserError: a summary is there that is of other settings.
    """
    file = folder / f"{member.name}.json"
    if not file.exists():
        return False
    run = runs.read_summary(file)
    wanted = member.config.to_dict()
    differences = settings.shaping_differences(run.config, wanted)
    if differences:
        raise UserError(
            f"{file} is of other settings ({'; '.join(differences)}); choose another --workdir or "
            "move it away"
        )
    return not _missing(plan, member, run)


def _evaluations(plan: Plan) -> list[str]:
    return list(dict.fromkeys((*_JOBS, *plan.sweep.jobs)))


def _missing(plan: Plan, member: Member, run: runs.Run) -> list[str]:
    """The jobs that a summary has no result of, or one by other settings."""
    training = [] if run.finished else ["pretrain"]
    return training + [
        job
        for job in _evaluations(plan)
        if not any(entry["step"] == run.step for entry in run.results.get(job, ()))
        or _protocol(run.config, job) != _protocol(member.config.to_dict(), job)
    ]


def _protocol(config: Mapping[str, Any], job: str) -> dict[str, Any]:
    """The settings that an evaluation's scores depend on; their defaults where there are none."""
    known = settings.flatten(defaults.get_config())
    return {
        key: value
        for key, value in (known | settings.flatten(config)).items()
        if key in ("data.labeled_split", "data.test_split")
        or (key in known and key.startswith(f"{job}.") and key.split(".")[1] not in _NOT_OF_SCORES)
    }


def write_plan(plan: Plan, folder: epath.Path) -> None:
    """Writes what belongs to the sweep, for its reports; two members may do so at a time."""
    content = {
        "title": plan.sweep.title,
        "shows": list(plan.sweep.shows),
        "axis": plan.sweep.axis,
        "jobs": list(plan.sweep.jobs),
        "members": [
            {"name": m.name, "label": m.label, "seed": m.seed, "value": m.value}
            for m in plan.members
        ],
    }
    text = json.dumps(content, indent=1) + "\n"
    file = folder / PLAN_FILE
    with files.told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != text:
            files.write_text(file, text)


def _run_process(arguments: Sequence[str]) -> int:
    """Runs gsjax; forwards signals, and exits after one that asks to stop.

    It is suspended and continued together with the member, as by Ctrl-Z and `fg`.
    """
    command = [sys.executable, "-m", "gsjax.main", *arguments]
    asked: list[int] = []
    process: subprocess.Popen | None = None

    def hand_on(number: int, frame: Any) -> None:
        asked.append(number)
        if process:
            process.send_signal(number)

    def suspend(number: int, frame: Any) -> None:
        if process:
            process.send_signal(number)
        os.kill(os.getpid(), signal.SIGSTOP)  # until somebody sends SIGCONT
        if process:
            process.send_signal(signal.SIGCONT)

    numbers = interrupts.handled()
    former: dict[int, Any] = {number: signal.signal(number, hand_on) for number in numbers}
    if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
        former[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, suspend)
    try:
        # In a process group of its own the terminal's signals reach it through us alone.
        process = subprocess.Popen(command, process_group=0)
        for number in asked:  # while it started
            process.send_signal(number)
        status = process.wait()
    finally:
        for number, handler in former.items():  # a scheduler may repeat itself until the end
            repeats = asked and number not in (signal.SIGINT, signal.SIGTSTP)
            signal.signal(number, signal.SIG_IGN if repeats else handler)
    if asked:
        sys.exit(128 + asked[0])
    return status

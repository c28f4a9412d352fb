"""The job `sweep`: trains and evaluates the members of a sweep.

They run one after another, each in its own process; with `--sweep_index` only one runs, so that a
cluster's job array can spread them over machines. A finished member leaves a small summary file,
`<workdir>/<member>.json`, and is not rerun while that file exists.
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

PLAN_FILE = "sweep.json"  # lists the members of the sweep for reports
_JOBS = ("diagnostics",)  # run in every sweep
# Evaluation settings that do not affect scores, and those of the kNN monitor.
_NO_EFFECT = ("data_dir", "memory_gb", "pictures", "neighbors", "every_epochs", "baselines")


def run_all(plan: Plan, workdir: str, arguments: Sequence[str]) -> None:
    """Runs every unfinished member; if one fails, the others still run.

    This process itself never touches a device.

    Args:
      plan: the sweep's plan.
      workdir: holds `<member>/` and `<member>.json`.
      arguments: the command line of this call, to which `--sweep_index` is added.

    Raises:
      UserError: an existing summary has other settings (raised before anything runs), or members
        failed (the message names them).
    """
    folder = files.absolute(workdir)
    for member in plan.members:
        finished(plan, member, folder)
    write_plan(plan, folder)
    failed = []
    for index, member in enumerate(plan.members):
        print(f"member {index} of {len(plan.members)}: {member.name}", flush=True)
        if finished(plan, member, folder):
            print(f"already finished: {folder / member.name}.json exists", flush=True)
            continue
        status = _run_process([*arguments, f"--sweep_index={index}"])
        if status:
            failed.append(f"{index} ({member.name}, status {status})")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(plan.members)} members failed: {', '.join(failed)}; the "
            "reasons are above, rerun the same command to retry them"
        )
    print(f"all {len(plan.members)} members are finished; next: --job report --workdir {workdir}")


def run_member(plan: Plan, member: Member, workdir: str) -> None:
    """Trains, evaluates and summarizes one member, resuming where an earlier start stopped.

    Raises:
      UserError: as in pre-training and the evaluations.
    """
    folder = files.absolute(workdir)
    own, summary = folder / member.name, folder / f"{member.name}.json"
    if finished(plan, member, folder):
        metrics.log(f"already finished: {summary} exists")
        return
    if summary.exists() and not checkpoints.saved_steps(own):
        missing = ", ".join(_missing(plan, member, runs.read_summary(summary)))
        raise UserError(
            f"{summary} lacks results of this sweep ({missing}), and {own} has no checkpoint: "
            "restore it, or move the file away to retrain"
        )
    if parallel.is_primary():
        write_plan(plan, folder)
    JOBS["pretrain"].load()(member.config, own.as_posix())
    config = ml_collections.ConfigDict(member.config.to_dict())
    config.checkpoint.load = "latest"
    for job in _evaluations(plan):
        metrics.log(f"job      {job}")
        JOBS[job].load()(settings.check(config), own.as_posix())
    if parallel.is_primary():
        runs.write_summary(runs.read(own, member.about), summary)


def finished(plan: Plan, member: Member, folder: epath.Path) -> bool:
    """Whether the member has a summary with the same settings and all results.

    Raises:
      UserError: its summary has other settings.
    """
    file = folder / f"{member.name}.json"
    if not file.exists():
        return False
    run = runs.read_summary(file)
    wanted = member.config.to_dict()
    differences = settings.shaping_differences(run.config, wanted)
    if differences:
        raise UserError(
            f"{file} has different settings ({'; '.join(differences)}); choose another --workdir "
            "or move the file away"
        )
    return not _missing(plan, member, run)


def _evaluations(plan: Plan) -> list[str]:
    return list(dict.fromkeys((*_JOBS, *plan.sweep.jobs)))


def _missing(plan: Plan, member: Member, run: runs.Run) -> list[str]:
    """Returns the jobs whose results a summary lacks or has with other settings."""
    training = [] if run.finished else ["pretrain"]
    return training + [
        job
        for job in _evaluations(plan)
        if not any(entry["step"] == run.step for entry in run.results.get(job, ()))
        or _protocol(run.config, job) != _protocol(member.config.to_dict(), job)
    ]


def _protocol(config: Mapping[str, Any], job: str) -> dict[str, Any]:
    """Returns the settings that affect an evaluation's scores, with defaults for missing ones."""
    known = settings.flatten(defaults.get_config())
    return {
        key: value
        for key, value in (known | settings.flatten(config)).items()
        if key in ("data.labeled_split", "data.test_split")
        or (key in known and key.startswith(f"{job}.") and key.split(".")[1] not in _NO_EFFECT)
    }


def write_plan(plan: Plan, folder: epath.Path) -> None:
    """Writes the list of members for reports; several members may do so at the same time."""
    content = {
        "title": plan.sweep.title,
        "shows": list(plan.sweep.shows),
        "axis": plan.sweep.axis,
        "jobs": list(plan.sweep.jobs),
        "members": [{"name": member.name, **member.about} for member in plan.members],
    }
    text = json.dumps(content, indent=1) + "\n"
    file = folder / PLAN_FILE
    with files.write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != text:
            files.write_text(file, text)


def _run_process(arguments: Sequence[str]) -> int:
    """Runs gsjax and returns its exit status; forwards signals, and exits after a request to stop.

    This process and the member are suspended and continued together, as by Ctrl-Z and `fg`.
    """
    command = [sys.executable, "-m", "gsjax.main", *arguments]
    received: list[int] = []
    process: subprocess.Popen | None = None

    def forward(number: int, frame: Any) -> None:
        received.append(number)
        if process:
            process.send_signal(number)

    def suspend(number: int, frame: Any) -> None:
        if process:
            process.send_signal(number)
        os.kill(os.getpid(), signal.SIGSTOP)  # until somebody sends SIGCONT
        if process:
            process.send_signal(signal.SIGCONT)

    numbers = interrupts.handled()
    former: dict[int, Any] = {number: signal.signal(number, forward) for number in numbers}
    if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
        former[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, suspend)
    try:
        # In its own process group, it gets the terminal's signals only through us.
        process = subprocess.Popen(command, process_group=0)
        for number in received:  # while it was starting
            process.send_signal(number)
        status = process.wait()
    finally:
        for number, handler in former.items():  # a scheduler may repeat its signal until we exit
            repeats = received and number not in (signal.SIGINT, signal.SIGTSTP)
            signal.signal(number, signal.SIG_IGN if repeats else handler)
    if received:
        sys.exit(128 + received[0])
    return status

"""The command line: `python -m gsjax.main --config FILE [--workdir DIR] [--job NAME] ...`."""

import atexit
import functools
import gc
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import ml_collections
from absl import app, flags, logging

from gsjax.config import choices, settings
from gsjax.config.schema import Row
from gsjax.errors import UserError
from gsjax.jobs import JOBS, Job
from gsjax.methods import METHODS
from gsjax.models import ENCODERS
from gsjax.runtime import interrupts, output, rendezvous
from gsjax.sweep import plans

_CONFIG = flags.DEFINE_string("config", "", "Config file; defaults if empty.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run; runs/<config name> if empty.")
_JOB = flags.DEFINE_string("job", "pretrain", f"One of: {', '.join(JOBS)}.")
_SWEEP_INDEX = flags.DEFINE_integer("sweep_index", None, "Run only this member of a sweep.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "For several processes: HOST:PORT of process 0, or auto on pods."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes in the run; 1 means a single one, even under SLURM."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")

_HELP_FLAGS = ("--help", "-h", "-help", "--helpshort")
_HELP = """\
gsjax: self-supervised vision with graded similarity.

usage: python -m gsjax.main --config FILE [--workdir DIR] [--job NAME] [--config.KEY=VALUE ...]

  --config FILE      a config file, or the name of one that comes with gsjax, such as
                     simclr_gs_imagenet; without it, the defaults (built-in photographs)
  --workdir DIR      folder for all output of the run, also gs://...; default runs/<config name>
  --job NAME         default pretrain
  --config.KEY=VALUE overrides a setting
  --sweep_index I    run only member I of a sweep, from 0 (for the job array of a cluster)
  --coordinator HOST:PORT --num_processes N --process_id I
                     one process of several; --coordinator auto on TPU pods and SLURM
                     (the tasks of an srun are found without it; --num_processes 1 makes each
                     a run of its own). Startup waits up to 300 s for all processes

jobs:
{jobs}

methods (--config.method):
{methods}

encoders (--config.encoder.name):
{encoders}

Evaluations use the newest checkpoint in --workdir and its settings (--config may be omitted);
--config.checkpoint.load=none evaluates the untrained encoder of --config. A sweep needs a file in
configs/sweeps/; a report covers every run and sweep under --workdir.

example:
  python -m gsjax.main --config configs/simclr_gs_cifar10.py --config.num_epochs=100
  python -m gsjax.main --workdir runs/simclr_gs_cifar10 --job linear
  python -m gsjax.main --job sweep --config configs/sweeps/threshold.py

exit status:
  0           done
  2           an error that you can fix, described in one line
  75 or 134   another process of the run is gone; rerun to resume from the last checkpoint
  128 + N     stopped by signal N: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (closed terminal),
              138 by SIGUSR1, 140 by SIGUSR2, 152 by SIGXCPU. Training saves first; rerun to resume.
              Ctrl-C, or a second SIGTERM, over a second later exits immediately
  1           a traceback: a bug in gsjax

settings and their defaults:
{settings}
"""


def _print_error(message: str) -> None:
    output.print_stderr(f"gsjax: error: {' '.join(message.split())}")


def _list(table: Mapping[str, Row]) -> str:
    return "\n".join(f"  {name:12} {row.help}" for name, row in table.items())


def _workdir() -> str:
    return _WORKDIR.value or f"runs/{pathlib.Path(_CONFIG.value or 'defaults').stem}"


def _parse_flags(argv: list[str]) -> Callable[[], None]:
    """Returns the job to run, with checked settings; exits on --help and on errors."""
    try:
        if not argv[1:] or any(argument in _HELP_FLAGS for argument in argv[1:]):
            text = _HELP.format(
                jobs=_list(JOBS),
                methods=_list(METHODS),
                encoders=_list(ENCODERS),
                settings=settings.describe(),
            )
            print(text, flush=True)
            sys.exit(0)
        arguments, overrides = settings.split_overrides(argv)
        surplus = flags.FLAGS(arguments)[1:]
        if surplus:
            raise UserError(f"unexpected argument {surplus[0]!r}; see --help")
        if _JOB.value not in JOBS:
            raise UserError(f"--job: unknown job {_JOB.value!r}; known: {', '.join(JOBS)}")
        job = JOBS[_JOB.value]
        if job.configured_by == "sweep":
            return functools.partial(_run_sweep, job, plans.load(_CONFIG.value, overrides), argv)
        if _SWEEP_INDEX.value is not None:
            raise UserError(f"--sweep_index is for --job sweep, not --job {_JOB.value}")
        if job.configured_by == "run":
            config = settings.of_evaluation(_workdir(), _CONFIG.value, overrides)
        else:
            config = settings.load(_CONFIG.value)
            settings.override(config, overrides)
        settings.check(config)
        choices.check(config, overrides)
        return functools.partial(_run_job, job, config)
    except (UserError, flags.Error) as error:
        _print_error(str(error))
        sys.exit(2)


def _load(job: Job, config: ml_collections.ConfigDict, function: str = "") -> Callable:
    """Starts JAX and imports the job.

    Imports leave a million objects that stay and hardly any garbage. Without collecting it, during
    the imports and at the end of the process, a command takes a second and a half less.
    """
    gc.disable()
    atexit.register(gc.freeze)
    try:
        # Imports JAX, so only once settings are known to be good.
        from gsjax.runtime import parallel

        dtype = config.encoder.dtype
        parallel.start(dtype, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        parallel.choose_platform(config.platform)
        # Right away, because no host waits long for another one's first exchange.
        parallel.sync_hosts("start")
        return job.load(function)
    finally:
        gc.freeze()
        gc.enable()


def _run_job(job: Job, config: ml_collections.ConfigDict) -> None:
    with interrupts.exit_on_signal():
        _load(job, config)(config, _workdir())


def _run_sweep(job: Job, plan: plans.Plan, argv: list[str]) -> None:
    index = _SWEEP_INDEX.value
    if index is None:
        job.load()(plan, _workdir(), argv[1:])
    else:
        member = plan.member(index)
        with interrupts.exit_on_signal():
            _load(job, member.config, "run_member")(plan, member, _workdir())


def _run(start: Callable[[], None]) -> None:
    logging.set_verbosity(logging.ERROR)  # library log messages would drown out our lines
    try:
        start()
    except UserError as error:
        _print_error(str(error))
        _exit(2)
    except Exception as error:
        _exit_after(error)


def _exit_after(error: Exception) -> NoReturn:
    if isinstance(error, rendezvous.LostFirst):
        _print_error(f"{error}: rerun the same command")
        _exit(os.EX_TEMPFAIL)
    if "gsjax.runtime.parallel" in sys.modules:
        from gsjax.runtime import parallel

        if parallel.is_lost_peer(error):
            _print_error(
                "another process of this run has exited or cannot be reached "
                f"({str(error).splitlines()[0]}): rerun to resume from the last checkpoint"
            )
            _exit(parallel.LOST_PEER)
    traceback.print_exc()  # a bug of ours; it must not leave the other hosts waiting
    _exit(1)


def _exit(status: int) -> NoReturn:
    if "gsjax.runtime.parallel" not in sys.modules:  # JAX has not been started
        sys.exit(status)
    from gsjax.runtime import parallel

    parallel.exit_process(status)


def main() -> None:
    """The entry point of `python -m gsjax.main` and of the `gsjax` command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read by JAX's libraries; JAX sets 1
    output.guard()
    try:
        app.run(_run, flags_parser=_parse_flags)
    except KeyboardInterrupt:
        output.print_stderr("gsjax: stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()

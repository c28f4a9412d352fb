"""Determines which process of a multi-process run this is, from the flags, SLURM or JAX."""

import dataclasses
import os
import re

from gsjax.errors import UserError

START_SECONDS = 300  # for all processes to connect, as in jax.distributed.initialize
SINGLE = "to run a single process, add --num_processes=1"


@dataclasses.dataclass(frozen=True)
class Member:
    """One process of a multi-process run.

    Attributes:
      address: HOST:PORT of process 0.
      num_processes: number of processes in the run.
      process_id: index of this process, from 0.
      origin: where these values came from, for messages.
      run: identifies the run, where several could share the address.
    """

    address: str
    num_processes: int
    process_id: int
    origin: str
    run: str = ""

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise UserError(
                f"num_processes is {self.num_processes} ({self.origin}); it must be at least 1"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"process_id is {self.process_id} ({self.origin}); with {self.num_processes} "
                f"processes it must be from 0 to {self.num_processes - 1}"
            )
        host, colon, port = self.address.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise UserError(f"--coordinator {self.address}: it must have the form HOST:PORT")

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port, for sockets."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)


def from_slurm() -> Member | None:
    """Reads the SLURM variables of an `srun` task; None outside a step or if it has one task.

    Raises:
      UserError: variables are missing, as in a notebook that inherited only some of them, or are
        not numbers.
    """
    if not os.environ.get("SLURM_STEP_NUM_TASKS"):
        return None
    count = _slurm_number("SLURM_STEP_NUM_TASKS")
    if count == 1:
        return None
    job, process_id = _slurm_number("SLURM_JOB_ID"), _slurm_number("SLURM_PROCID")
    _slurm_number("SLURM_LOCALID")  # JAX reads it
    step = _slurm_number("SLURM_STEP_ID", "0")
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    # The first node of "node[001-015,020],other".
    first = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0]
    if not first:
        raise UserError(_unusable("SLURM_STEP_NODELIST", nodes))
    # JAX's port range; two steps of a job may run side by side.
    port = os.environ.get("JAX_COORDINATOR_PORT") or 61440 + (job + 97 * step) % 4096
    return Member(f"{first}:{port}", count, process_id, "from SLURM", f"{job}.{step}")


def _slurm_number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise UserError(_unusable(name, text))
    return int(text)


def _unusable(name: str, text: str) -> str:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    value = f"{name}={text}" if text else f"{name} is missing"
    return (
        f"the SLURM environment is incomplete or invalid ({value}, SLURM_STEP_NUM_TASKS={tasks}); "
        f"{SINGLE}"
    )


def from_jax() -> Member:
    """Returns what JAX detects by itself: TPU pods, Kubernetes, Open MPI.

    Raises:
      UserError: JAX detects no cluster, or its description is incomplete.
    """
    from jax._src import clusters  # what jax.distributed.initialize calls

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
        address, count, process_id, _ = detect(address, None, None, [], None, START_SECONDS)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise UserError(f"JAX cannot find the processes of this run: {error}; {SINGLE}") from error
    if address is None or count is None or process_id is None:
        raise UserError(
            "JAX found no TPU pod, SLURM step or cluster with several processes: give "
            f"--coordinator HOST:PORT, --num_processes and --process_id; {SINGLE}"
        )
    return Member(address, count, process_id, "from JAX")

"""Devices and hosts: startup, the mesh, data-parallel functions, transfer to the devices."""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gsjax.errors import UserError
from gsjax.runtime import cluster, output, rendezvous

AXIS = "batch"  # the only mesh axis; the collectives of the step refer to it
_CONNECT_TIMEOUT = 60  # seconds; all processes have met by then
_PEER_TIMEOUT = 20  # seconds until the others exit because a process is gone
LOST_PEER = os.EX_TEMPFAIL  # exit status in that case: a scheduler may rerun the command
_EXTRAS = {
    "gpu": "pip install 'gsjax[cuda12]' (or cuda13)",
    "tpu": "pip install 'gsjax[tpu]'",
}


def start(
    dtype: str,
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Sets up JAX: persistent compilation cache, 64 bits if requested, the other processes.

    Args:
      dtype: `encoder.dtype`; "float64" switches JAX to 64 bits.
      coordinator: HOST:PORT of process 0; "auto" if the environment describes the processes (SLURM,
        TPU pods, Kubernetes with `jax[k8s]`); "" is like "auto" under `srun` and on TPU pods.
      num_processes: of the whole run; 1 runs a single process regardless of the environment.
      process_id: index of this process.

    Raises:
      UserError: the flags or environment are unusable, or the other processes do not connect.
    """
    member = _member(coordinator, num_processes, process_id)
    _cache_compilations(warn=not (member and member.process_id))
    jax.config.update("jax_enable_x64", dtype == "float64")
    # Regardless of the environment, a seed gives the same draws on any number of devices.
    jax.config.update("jax_threefry_partitionable", True)
    jax.config.update("jax_random_seed_offset", 0)
    if not member:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # it catches SIGTERM, which interrupts.py handles
    rendezvous.meet(member)
    try:
        jax.distributed.initialize(
            member.address,
            member.num_processes,
            member.process_id,
            initialization_timeout=_CONNECT_TIMEOUT,
            heartbeat_timeout_seconds=_PEER_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--coordinator {member.address}: {error}") from error


def _member(
    coordinator: str, num_processes: int | None, process_id: int | None
) -> cluster.Member | None:
    """Returns which process of which run this is; None for a single process."""
    if coordinator not in ("", "auto"):
        if num_processes is None:
            raise UserError("--coordinator HOST:PORT needs --num_processes and --process_id")
        origin = "from the flags"
        named = cluster.Member(coordinator, num_processes, process_id or 0, origin)
        return named if num_processes > 1 else None
    if num_processes == 1 and not process_id:
        return None
    if num_processes is not None or process_id is not None:
        raise UserError(
            "--num_processes and --process_id need --coordinator HOST:PORT of process 0"
        )
    member = cluster.from_slurm()
    if member or os.environ.get("SLURM_STEP_NUM_TASKS") == "1":
        return member
    workers = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if coordinator or "," in workers:
        return cluster.from_jax()
    return None


def _cache_compilations(warn: bool) -> None:
    """Caches compiled programs in the user's cache folder; does without if that is impossible."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A cache that fails later, e.g. on a full disk, is not worth a warning per program.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    try:
        if not folder:
            home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
            folder = str(pathlib.Path(home) / "gsjax" / "xla")
        if "://" not in folder:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        folder = None
        if warn:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            output.print_stderr(
                "gsjax: warning: compiled programs are not cached, so every start recompiles: "
                f"{getattr(error, 'filename', None) or 'the cache folder'}: {reason}; "
                "set JAX_COMPILATION_CACHE_DIR to another folder"
            )
    jax.config.update("jax_compilation_cache_dir", folder)


def choose_platform(platform: str) -> None:
    """Selects the CPU if `config.platform` is cpu; otherwise checks that its devices exist.

    Call it before anything else asks JAX for devices. With "auto" the CPU is accepted, with a
    warning unless JAX_PLATFORMS asks for it.

    Raises:
      UserError: JAX finds other devices than those requested, or fails to start them.
    """
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
        return
    requested = jax.config.values["jax_platforms"]
    among = f" with JAX_PLATFORMS={requested}" if requested else ""
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise UserError(f"JAX cannot initialize its devices{among}: {error}") from error
    if platform not in ("auto", found):
        raise UserError(
            f"platform is {platform}, but JAX{among} found no {platform.upper()}, only {found}: "
            f"{_EXTRAS[platform]}, check its driver, or use --config.platform=cpu"
        )
    if found == "cpu" and not requested and is_primary():
        output.print_stderr(
            "gsjax: warning: no accelerator found, using the CPU; if there is one: "
            f"{' or '.join(_EXTRAS.values())}; if not, --config.platform=cpu silences this"
        )


def create_mesh(
    batch_size: int, devices: Sequence[jax.Device] | None = None, setting: str = "batch_size"
) -> Mesh:
    """Returns a mesh along the axis `batch` of `devices`, by default all devices of all hosts.

    Raises:
      UserError: `batch_size`, the value of `setting`, cannot be split evenly.
    """
    # Each host's devices are adjacent, so that its rows are contiguous in the global batch.
    devices = devices or sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    if batch_size % len(devices):
        raise UserError(
            f"{setting} is {batch_size}; it must be a multiple of the {len(devices)} devices"
        )
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def data_parallel(
    function: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()
) -> jax.stages.Wrapped:
    """Compiles a per-device function with explicit collectives, as `jax.pmap` did.

    Replication is not checked: each device's gradient is that of its local loss, and the function
    averages gradients itself.
    """
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)


def shard(batch: Any, mesh: Mesh) -> Any:
    """Puts this host's part [b, ...] of a batch on its devices; returns global arrays [B, ...]."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def create_any_host(mesh: Mesh) -> Callable[[int], jax.Array]:
    """Compiles this host's number -> the maximum over all hosts, int32 [] on every device.

    Every host must call it the same number of times. A call only starts the exchange; reading the
    result later does not wait for it.
    """
    largest = data_parallel(
        lambda numbers: lax.pmax(numbers[0], AXIS), mesh, in_specs=P(AXIS), out_specs=P()
    )
    count = len(mesh.local_devices)
    return lambda number: largest(shard(np.full(count, number, np.int32), mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays replicated on every device of every host."""
    return NamedSharding(mesh, P())


def prefetch(batches: Iterator[Any], mesh: Mesh, depth: int = 2) -> Iterator[Any]:
    """Keeps `depth` batches in transfer to the devices while one is in use."""
    queue: collections.deque = collections.deque()
    for batch in itertools.islice(batches, depth):
        queue.append(shard(batch, mesh))
    while queue:
        yield queue.popleft()
        for batch in itertools.islice(batches, 1):
            queue.append(shard(batch, mesh))


def sync_hosts(name: str) -> None:
    """Waits until all hosts reach this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(columns: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """Concatenates each column's rows from all hosts, on every host."""
    if jax.process_count() == 1:
        return columns
    return multihost_utils.process_allgather(columns, tiled=True)


def agree(*facts: Any) -> bool:
    """Whether JSON-serializable values are equal on all hosts; every host must call it."""
    digest = hashlib.sha256(json.dumps(facts).encode()).digest()
    digests = gather((np.frombuffer(digest, np.uint8)[None],))[0]
    return bool((digests == digests[:1]).all())


def everywhere(flag: bool) -> bool:
    """Whether the flag is true on all hosts; every host must call it."""
    return all(gather((np.array([flag]),))[0])


def is_primary() -> bool:
    """Whether this is the host that prints and writes metrics."""
    return jax.process_index() == 0


def exit_process(status: int) -> NoReturn:
    """Exits; in a multi-process run, skips JAX's shutdown barrier."""
    if jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # its reader is gone
                if stream is not None:
                    stream.flush()
        os._exit(status)
    sys.exit(status)


def is_lost_peer(error: Exception) -> bool:
    """Whether an error means that another process of the run is gone.

    JAX has no type for it: it raises JaxRuntimeError or, when reading an array, ValueError.
    """
    words = r"\bgloo\b|\bnccl|coordination (service|agent)|heartbeat|by peer"
    return jax.process_count() > 1 and bool(re.search(words, str(error), re.IGNORECASE))


def from_primary(function: Callable[[], Any]) -> Any:
    """Calls a function on the primary host only, and returns its result on all hosts.

    Args:
      function: returns something JSON-serializable. If it raises a UserError, all hosts exit, with
        one message.
    """
    if jax.process_count() == 1:
        return function()
    answer: dict[str, Any] = {}
    try:
        if is_primary():
            answer["result"] = function()
    finally:
        text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
        text = np.asarray(multihost_utils.broadcast_one_to_all(np.resize(text, length)))
    answer = json.loads(text.tobytes())
    if "result" not in answer:
        exit_process(2)
    return answer["result"]

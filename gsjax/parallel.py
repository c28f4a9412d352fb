"""Devices and hosts: start-up, the mesh, the data-parallel program, the way onto the devices."""

import collections
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gsjax.errors import UserError

AXIS = "batch"  # the one mesh axis; collectives of the step name it


def start(dtype: str, coordinator: str = "", num_processes: int = 1, process_id: int = 0) -> None:
    """Prepares JAX: persistent compilation cache, 64 bits where asked, the other processes.

    Args:
      dtype: `encoder.dtype`; "float64" switches JAX to 64 bits.
      coordinator: HOST:PORT of process 0, "auto" where JAX finds it by itself (TPU pods, SLURM),
        or "" for a single process.
      num_processes: of the whole run.
      process_id: of this process.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "gsjax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_enable_x64", dtype == "float64")
    if not coordinator:
        if num_processes != 1 or process_id:
            raise UserError(
                "--num_processes and --process_id need --coordinator HOST:PORT of process 0"
            )
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--coordinator {coordinator}: {error}") from error


def create_mesh(
    batch_size: int, devices: Sequence[jax.Device] | None = None, setting: str = "batch_size"
) -> Mesh:
    """Returns the mesh of all devices of all hosts, or of those given, along the axis `batch`.

    Raises:
      UserError: `batch_size`, which the setting gives, cannot be split evenly.
    """
    # A host's devices side by side, so that its rows are side by side in the global batch.
    devices = devices or sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    if batch_size % len(devices):
        raise UserError(
            f"{setting} is {batch_size}; it must be a multiple of the {len(devices)} devices"
        )
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def data_parallel(
    function: Callable, mesh: Mesh, *, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()
) -> Callable:
    """Compiles a per-device function with explicit collectives, as `jax.pmap` did.

    Replication is not checked: a per-device gradient stays that of the local loss, and the function
    averages it itself.
    """
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)


def shard(batch: Any, mesh: Mesh) -> Any:
    """Puts this host's part [b, ...] of a batch on its devices; returns global arrays [B, ...]."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device of every host holds whole."""
    return NamedSharding(mesh, P())


def prefetch(batches: Iterator[Any], mesh: Mesh, depth: int = 2) -> Iterator[Any]:
    """Keeps `depth` batches on their way to the devices while one is in use."""
    queue: collections.deque = collections.deque()
    for batch in itertools.islice(batches, depth):
        queue.append(shard(batch, mesh))
    while queue:
        yield queue.popleft()
        for batch in itertools.islice(batches, 1):
            queue.append(shard(batch, mesh))


def sync_hosts(name: str) -> None:
    """Waits until all hosts are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def is_primary() -> bool:
    """Whether this is the host that prints and writes metrics."""
    return jax.process_index() == 0

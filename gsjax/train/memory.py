"""Describes how much memory the training step needs."""

import jax
import ml_collections

from gsjax.models import ENCODERS


def describe_step(config: ml_collections.ConfigDict, compiled: jax.stages.Compiled | None) -> str:
    """Describes the training step's size and how to shrink it without changing the recipe.

    Args:
      config: the whole configuration.
      compiled: the step, or None before it is compiled, which omits its memory.
    """
    has_chunks = not ENCODERS[config.encoder.name].batch_norm
    ways = [
        "--config.loss.chunks=N, larger" if has_chunks else "",
        "" if config.remat else "--config.remat=true (slower)",
        f"more devices than {jax.device_count()}",
        "" if config.encoder.dtype == "bfloat16" else "--config.encoder.dtype=bfloat16",
    ]
    kept = ", ".join(way for way in ways if way)
    size = f"a step with batch_size={config.batch_size} needs {_step_memory(compiled)}"
    return f"{size}. To keep the recipe, try {kept}; a smaller batch_size changes it"


def _step_memory(compiled: jax.stages.Compiled | None) -> str:
    found = compiled.memory_analysis() if compiled else None
    if found is None:
        return "more than a device has"
    temporary, arguments = found.temp_size_in_bytes, found.argument_size_in_bytes
    whole = temporary + arguments + found.output_size_in_bytes - found.alias_size_in_bytes
    return (
        f"{whole / 2**30:.1f} GiB per device, of which {temporary / 2**30:.1f} GiB for "
        "intermediate values"
    )

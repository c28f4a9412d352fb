"""Encoders as programs that run without gsjax: StableHLO and ONNX."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from gsjax.errors import UserError

_PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(encode: Callable[[jax.Array], jax.Array], size: int) -> bytes:
    """Serializes a program for any number of images.

    Args:
      encode: maps images uint8 [B, S, S, 3] to representations [B, F]; holds the weights.
      size: S.
    """
    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    return bytes(export.export(jax.jit(encode), platforms=_PLATFORMS)(shape).serialize())


def run_stablehlo(program: bytes, images: np.ndarray) -> np.ndarray:
    """Runs what `stablehlo` returned on images uint8 [B, S, S, 3]."""
    return np.asarray(export.deserialize(bytearray(program)).call(images))


def onnx(encode: Callable[[jax.Array], jax.Array], size: int) -> bytes:
    """Converts a function to ONNX, with the input `images` and the output `representations`.

    Args:
      encode: maps normalized images float32 [B, 3, S, S] to representations [B, F].
      size: S.

    Raises:
      UserError: the extra `onnx` is not installed, or cannot convert the encoder.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise UserError(
            "export.onnx needs more packages: pip install 'gsjax[onnx]', or set it to false"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):
        model: Any = jax2onnx.to_onnx(encode, inputs=[("B", 3, size, size)])
    return model.SerializeToString()


def run_onnx(program: bytes, images: np.ndarray) -> np.ndarray:
    """Runs what `onnx` returned on normalized images [B, 3, S, S]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.astype(np.float32)})
    return outputs

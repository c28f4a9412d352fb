"""An encoder for tests of everything around it: one convolution, which is quick to compile."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gsjax.models.norm import BatchNorm, at_least_float32
from gsjax.models.outputs import Outputs


class ToyEncoder(nn.Module):
    """Patches of 4x4 pixels, and BatchNorm so that there are statistics to keep."""

    width: int
    dtype: jax.typing.DTypeLike
    axis_name: str | None = "batch"

    @nn.compact
    def __call__(self, images, train, keys=None):
        wide = at_least_float32(self.dtype)
        maps = nn.Conv(
            self.width, (4, 4), strides=4, padding="VALID", use_bias=False,
            dtype=self.dtype, param_dtype=wide,
        )(images)  # fmt: skip
        norm = BatchNorm(dtype=self.dtype, relu=True, axis_name=self.axis_name)
        maps = norm(maps, train).astype(wide)
        return Outputs(jnp.mean(maps, axis=(1, 2)), maps)


def create(settings, remat):
    return ToyEncoder(settings.width, settings.dtype)

"""Vision transformers (Dosovitskiy et al., arXiv:2010.11929) as in timm, DINO and MoCo v3.

Images are [N, H, W, 3]; a side that is no multiple of the patch is cut at the bottom or right.
T = 1 + h * w tokens: the class token, then the patches, row by row.
"""

import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn
from jax import lax

from gsjax.errors import UserError
from gsjax.models import VIT_WIDTHS
from gsjax.models.norm import at_least_float32
from gsjax.models.outputs import Outputs

_EPSILON = 1e-6  # of the layer normalizations
_A = -0.75  # of PyTorch's bicubic kernel without antialiasing
_OFFSET = 0.1  # that DINO adds to the new number of patches before it divides by the old one

Initializer = nn.initializers.Initializer
Attention: TypeAlias = Literal["xla", "cudnn"]

normal = nn.initializers.normal


class LayerScale(nn.Module):
    """Scales every channel (Touvron et al., arXiv:2103.17239).

    Attributes:
      initial: initial value.
    """

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, T, D] to [N, T, D]."""
        dtype = at_least_float32(x.dtype)
        gamma = self.param("gamma", nn.initializers.constant(self.initial), x.shape[-1:], dtype)
        return x * jnp.broadcast_to(gamma.astype(x.dtype), x.shape)


class Block(nn.Module):
    """Self-attention and an MLP of four times the width, each normalized first and added to x.

    Attributes:
      num_heads: attention heads.
      layer_scale: initial value of both `LayerScale`; 0 for none.
      qkv_init: initializer of the queries', keys' and values' kernel.
      kernel_init: initializer of the other kernels.
      attention: see `attend`.
      dtype: computation dtype.
    """

    num_heads: int
    layer_scale: float
    qkv_init: Initializer
    kernel_init: Initializer
    attention: Attention
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, factors: jax.Array | None) -> jax.Array:
        """Maps x [N, T, D] to [N, T, D]; factors [N, 2] scale what is added, for drop path."""
        num_images, num_tokens, width = x.shape
        heads = (num_images, num_tokens, 3, self.num_heads, width // self.num_heads)
        y = self._dense(3 * width, "attn_qkv", self.qkv_init)(layer_norm(self.dtype, "norm1")(x))
        q, k, v = jnp.moveaxis(y.reshape(heads), 2, 0)
        y = attend(q, k, v, self.attention).reshape(x.shape)
        y = self._dense(width, "attn_proj", self.kernel_init)(y)
        x = x + self._scaled(y, "ls1", factors, 0)
        y = self._dense(4 * width, "mlp_fc1", self.kernel_init)(layer_norm(self.dtype, "norm2")(x))
        y = self._dense(width, "mlp_fc2", self.kernel_init)(nn.gelu(y, approximate=False))
        return x + self._scaled(y, "ls2", factors, 1)

    def _scaled(self, y: jax.Array, name: str, factors: jax.Array | None, branch: int) -> jax.Array:
        if self.layer_scale:
            y = LayerScale(self.layer_scale, name=name)(y)
        return y if factors is None else y * factors[:, branch, None, None].astype(y.dtype)

    def _dense(self, features: int, name: str, init: Initializer) -> nn.Dense:
        wide = at_least_float32(self.dtype)
        return nn.Dense(features, dtype=self.dtype, param_dtype=wide, kernel_init=init, name=name)


class ViT(nn.Module):
    """Maps images to representations.

    Attributes:
      width: D, channels of every token.
      depth: number of blocks.
      num_heads: attention heads per block.
      patch_size: side of a patch in pixels.
      positions: "learned", or "sincos": fixed, of two dimensions (MoCo v3, appendix).
      interpolation: of the positions, for images of another size: "torch", PyTorch's bicubic as in
        DINO, or "antialias", as in timm.
      pool: representation: "token", the class token, or "mean" of the patches.
      drop_path: rate at which the last block's branches are dropped, per image and branch; the
        first block's rate is 0, and it grows linearly (Huang et al., arXiv:1603.09382).
      layer_scale: initial value of the layer scales; 0 for none.
      freeze_patches: whether the patch embedding keeps its initial weights (MoCo v3, 4.2).
      initializer: "normal", with std 0.02 (DINO, timm: their truncation at 100 standard deviations
        changes nothing), or "xavier" (MoCo v3).
      attention: see `attend`.
      dtype: computation dtype; parameters are at least float32.
      remat: keep only the blocks' inputs for the backward pass and recompute the rest; variables
        and values are unchanged.
    """

    width: int
    depth: int = 12
    num_heads: int = 6
    patch_size: int = 16
    positions: str = "learned"
    interpolation: str = "torch"
    pool: str = "token"
    drop_path: float = 0.0
    layer_scale: float = 0.0
    freeze_patches: bool = False
    initializer: str = "normal"
    attention: Attention = "xla"
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parameters that are never trained."""
        fixed = ("pos_embed",) if self.positions == "sincos" else ()
        return (*fixed, "patch_embed_proj") if self.freeze_patches else fixed

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parameters from input to output, up to the last block."""
        blocks = ((f"blocks_{i}",) for i in range(self.depth))
        return (("patch_embed_proj", "cls_token", "pos_embed"), *blocks)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> Outputs:
        """Encodes normalized images [N, H, W, 3]; F = C = D.

        With `train`, drop path draws from `keys` [N], one per image; without keys nothing drops.
        """
        qkv_init, kernel_init = self._initializers()
        x = self._patches(images)
        maps_shape, wide = x.shape, at_least_float32(self.dtype)
        x = x.reshape(x.shape[0], -1, self.width)  # len(x) fails where the batch is symbolic
        std = 1e-6 if self.initializer == "xavier" else 0.02
        token = self.param("cls_token", normal(std), (1, 1, self.width), wide)
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        x = x + self._positions(*maps_shape[1:3]).astype(x.dtype)
        factors = self._factors(keys) if train and keys is not None and self.drop_path else None
        block = nn.remat(Block) if self.remat and train else Block
        for i in range(self.depth):
            x = block(
                self.num_heads,
                self.layer_scale,
                qkv_init,
                kernel_init,
                self.attention,
                self.dtype,
                name=f"blocks_{i}",
            )(x, None if factors is None else factors[:, i])
        x = layer_norm(self.dtype, "norm")(x).astype(wide)
        patches = x[:, 1:]
        pooled = x[:, 0] if self.pool == "token" else jnp.mean(patches, axis=1)
        return Outputs(pooled, patches.reshape(maps_shape))

    def fit(self, params: Any, image_size: int) -> Any:
        """Returns parameters whose positions are those of images of another size."""
        side = image_size // self.patch_size
        table = resize_positions(params["pos_embed"], side, side, self.interpolation)
        return params | {"pos_embed": table}

    def _patches(self, images: jax.Array) -> jax.Array:
        """[N, H, W, 3] -> [N, h, w, D]."""
        fan_in = 3 * self.patch_size**2
        uniform = _uniform(fan_in**-0.5)  # PyTorch's default, which DINO and timm keep
        xavier = (_uniform((6 / (fan_in + self.width)) ** 0.5), nn.initializers.zeros)
        kernel_init, bias_init = xavier if self.initializer == "xavier" else (uniform, uniform)
        x = nn.Conv(
            self.width,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding="VALID",
            dtype=self.dtype,
            param_dtype=at_least_float32(self.dtype),
            kernel_init=kernel_init,
            bias_init=bias_init,
            name="patch_embed_proj",
        )(images)
        return lax.stop_gradient(x) if self.freeze_patches else x

    def _positions(self, height: int, width: int) -> jax.Array:
        """The positions of the class token and of h x w patches, [1, T, D]."""

        def create(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike):
            if self.positions == "sincos":
                return jnp.asarray(sincos(height, width, self.width), dtype)
            return normal(0.02)(key, shape, dtype)

        if self.has_variable("params", "pos_embed"):  # perhaps of images of another size
            table: Any = self.get_variable("params", "pos_embed")
        else:
            shape = (1, 1 + height * width, self.width)
            table = self.param("pos_embed", create, shape, at_least_float32(self.dtype))
        if self.positions == "sincos":
            table = lax.stop_gradient(table)
        return resize_positions(table, height, width, self.interpolation)

    def _factors(self, keys: jax.Array) -> jax.Array:
        """[N, depth, 2]: 0 for a dropped branch, else 1 / (1 - rate)."""
        rates = np.linspace(0, self.drop_path, self.depth, dtype=np.float32)[None, :, None]
        draw = jax.vmap(lambda key: jax.random.uniform(key, (self.depth, 2), jnp.float32))
        return (draw(keys) >= rates) / (1 - rates)

    def _initializers(self) -> tuple[Initializer, Initializer]:
        if self.initializer == "normal":
            return normal(0.02), normal(0.02)
        # Queries, keys and values count as three matrices.
        return _uniform((6 / (2 * self.width)) ** 0.5), nn.initializers.xavier_uniform()


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, implementation: Attention = "xla"
) -> jax.Array:
    """Scaled dot-product attention over all tokens.

    Args:
      q: [N, T, heads, channels].
      k: like q.
      v: like q.
      implementation: "xla", or "cudnn" for half precision on NVIDIA GPUs.
    """
    if q.dtype != jnp.float64:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    # JAX's function computes the softmax in float32.
    logits = jnp.einsum("nqhc,nkhc->nhqk", q, k) / math.sqrt(q.shape[-1])
    return jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(logits, axis=-1), v)


def sincos(height: int, width: int, channels: int) -> np.ndarray:
    """Returns MoCo v3's fixed positions, float32 [1, 1 + height * width, channels].

    The row of the class token is 0. Half of the channels depend on the row, which MoCo v3's code
    calls w, the other half on the column; each half holds sines, then cosines.
    """
    quarter = channels // 4
    frequencies = 10000 ** (-np.arange(quarter, dtype=np.float32) / np.float32(quarter))
    row, column = (axis.reshape(-1, 1) for axis in np.mgrid[:height, :width].astype(np.float32))
    angles = [row * frequencies, column * frequencies]
    table = np.concatenate([f(angle) for angle in angles for f in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((1, channels), np.float32), table])[None]


def resize_positions(table: jax.Array, height: int, width: int, interpolation: str) -> jax.Array:
    """Interpolates positions [1, 1 + g * g, D] to [1, 1 + height * width, D].

    Args:
      table: positions of the class token and of g x g patches.
      height: new number of rows.
      width: new number of columns.
      interpolation: as `ViT.interpolation`.
    """
    side = math.isqrt(table.shape[1] - 1)
    if (height, width) == (side, side):
        return table
    old = table[0, 1:].reshape(side, side, -1)
    if interpolation == "antialias":
        new = jax.image.resize(old, (height, width, old.shape[-1]), "cubic")
    else:
        rows, columns = (jnp.asarray(_bicubic(side, n), table.dtype) for n in (height, width))
        new = jnp.einsum("ri,cj,ijd->rcd", rows, columns, old, precision=lax.Precision.HIGHEST)
    return jnp.concatenate([table[:, :1], new.reshape(1, height * width, -1)], axis=1)


def _bicubic(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] of PyTorch's bicubic interpolation of one axis, without antialiasing.

    Keys' kernel; at the edges the last value repeats.
    """
    place = (np.arange(new) + 0.5) * old / (new + _OFFSET) - 0.5
    first = np.floor(place)
    matrix = np.zeros((new, old))
    for step in range(-1, 3):
        x = np.abs(place - first - step)
        near = ((_A + 2) * x - (_A + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * _A * x - 4 * _A
        column = np.clip(first + step, 0, old - 1).astype(int)
        np.add.at(matrix, (np.arange(new), column), np.where(x <= 1, near, far))
    return matrix


def layer_norm(dtype: jax.typing.DTypeLike, name: str) -> nn.LayerNorm:
    """Creates a layer normalization."""
    return nn.LayerNorm(
        _EPSILON,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        use_fast_variance=False,
        name=name,
    )


def _uniform(bound: float) -> Initializer:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def create(settings: ml_collections.ConfigDict, remat: bool = False) -> ViT:
    """Creates the encoder of a `config.encoder` group; float64 needs `jax_enable_x64`."""
    width = VIT_WIDTHS[settings.name]
    if settings.attention == "cudnn" and jax.default_backend() != "gpu":
        raise UserError(
            "encoder.attention=cudnn needs an NVIDIA GPU, but the devices are "
            f"{jax.default_backend()}: use encoder.attention=xla"
        )
    return ViT(
        width=width,
        depth=settings.depth,
        num_heads=settings.heads or width // 64,
        patch_size=settings.patch_size,
        positions=settings.positions,
        interpolation=settings.interpolation,
        pool=settings.pool,
        drop_path=settings.drop_path,
        layer_scale=settings.layer_scale,
        freeze_patches=settings.freeze_patches,
        initializer=settings.initializer,
        attention=settings.attention,
        dtype=settings.dtype,
        remat=remat,
    )

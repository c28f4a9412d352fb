"""Residual networks (He et al., arXiv:1512.03385) as in torchvision's `resnet.py`.

Bottlenecks have their stride in the 3x3 convolution ("v1.5"). Padding is explicit and as in
PyTorch, unless weights come from TensorFlow or Haiku, whose `SAME` pads stride-2 convolutions
differently. Images are [N, S, S, 3].
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from gsjax.models import convolution
from gsjax.models.norm import BatchNorm, at_least_float32
from gsjax.models.outputs import Outputs

# torchvision's kaiming_normal_(mode="fan_out"): normal, not truncated, variance 2 / fan_out.
_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Attributes:
      features: output channels.
      stride: stride of the first convolution.
      conv: (features, kernel size, stride, name) -> convolution.
      norm: creates a batch normalization.
      last_scale_init: initializer of the last normalization's scale.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Conv]
    norm: Callable[..., BatchNorm]
    last_scale_init: nn.initializers.Initializer
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [N, H, W, C] to [N, H', W', features], H' = ceil(H / stride)."""
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = self.norm(relu=True, name="bn1")(y, train)
        y = self.conv(self.features, 3, 1, name="conv2")(y)
        y = self.norm(scale_init=self.last_scale_init, name="bn2")(y, train)
        return nn.relu(y + _shortcut(self, x, self.features, train))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut.

    Attributes:
      features: inner channels; the output has four times as many.
      stride: stride of the 3x3 convolution.
      conv: as in `BasicBlock`.
      norm: as in `BasicBlock`.
      last_scale_init: as in `BasicBlock`.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Conv]
    norm: Callable[..., BatchNorm]
    last_scale_init: nn.initializers.Initializer
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps x [N, H, W, C] to [N, H', W', 4 * features], H' = ceil(H / stride)."""
        y = self.conv(self.features, 1, 1, name="conv1")(x)
        y = self.norm(relu=True, name="bn1")(y, train)
        y = self.conv(self.features, 3, self.stride, name="conv2")(y)
        y = self.norm(relu=True, name="bn2")(y, train)
        y = self.conv(4 * self.features, 1, 1, name="conv3")(y)
        y = self.norm(scale_init=self.last_scale_init, name="bn3")(y, train)
        return nn.relu(y + _shortcut(self, x, 4 * self.features, train))


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, features: int, train: bool):
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, 1, block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x, train)


class ResNet(nn.Module):
    """Maps images to representations.

    Attributes:
      stage_sizes: blocks per stage; each stage after the first halves the side.
      block: BasicBlock or Bottleneck.
      width: features of the first stage, 64 in the paper; doubled in each stage.
      stem: "imagenet" (7x7 stride 2, then 3x3 max-pool stride 2) or "cifar" (3x3 stride 1).
      dtype: computation dtype; parameters and running statistics are at least float32.
      zero_init_residual: the last BN scale of each block starts at 0, so that blocks start as
        their shortcuts (Goyal et al., arXiv:1706.02677, 5.1).
      axis_name: mapped axis over whose devices training computes BN statistics, or None.
      remat: keep only the blocks' inputs for the backward pass and recompute the rest (Chen et al.,
        arXiv:1604.06174); variables and values are unchanged.
      padding: "torch"; "same" or "same_pool", where all or the max-pool is padded as TensorFlow's
        SAME; "solo", where the cifar stem is padded by 2, as in solo-learn.
    """

    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[Bottleneck]
    width: int = 64
    stem: str = "imagenet"
    dtype: jax.typing.DTypeLike = jnp.float32
    zero_init_residual: bool = True
    axis_name: str | None = "batch"
    remat: bool = False
    padding: str = "torch"

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parameters from input to output: the stem, then each stage."""
        stages = enumerate(self.stage_sizes, 1)
        return (
            ("conv1", "bn1"),
            *(tuple(f"layer{i}_{j}" for j in range(size)) for i, size in stages),
        )

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> Outputs:
        """Encodes normalized images [N, S, S, 3]; there is nothing to draw from `keys`.

        The pooled representation has F = 8 * width features with basic blocks and 32 * width with
        bottlenecks, as many as the maps of the last stage. With `train`, BN uses
        batch statistics and updates the collection `batch_stats`, which must be mutable.
        """
        del keys
        conv = functools.partial(_conv, self.dtype, self.padding == "same")
        norm = functools.partial(
            BatchNorm,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        initializers = nn.initializers
        last_scale_init = initializers.zeros if self.zero_init_residual else initializers.ones
        kernel_size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        if self.padding == "solo" and self.stem == "cifar":  # one pixel beside the usual one
            images = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = conv(self.width, kernel_size, stride, name="conv1")(images)
        x = norm(relu=True, name="bn1")(x, train)
        if self.stem == "imagenet":
            x = max_pool(x, train, same=self.padding in ("same", "same_pool"))
        block = nn.remat(self.block, static_argnums=(2,)) if self.remat and train else self.block
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                x = block(
                    features=self.width * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    conv=conv,
                    norm=norm,
                    last_scale_init=last_scale_init,
                    name=f"layer{i + 1}_{j}",
                )(x, train)
        maps = x.astype(at_least_float32(x.dtype))
        return Outputs(jnp.mean(maps, axis=(1, 2)), maps)


def max_pool(x: jax.Array, train: bool = True, same: bool = False) -> jax.Array:
    """The stem's 3x3 max-pool, stride 2; halves the sides of [N, H, W, C].

    Args:
      x: padded with -inf.
      train: whether gradients may be taken. If not, padding is an operation of its own, which XLA
        merges with the pool: the converter to ONNX would drop it.
      same: whether to pad as TensorFlow does, instead of by one pixel on each side.
    """
    pads = [(size % 2, 1) if same else (1, 1) for size in x.shape[1:3]]
    if train:
        return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=pads)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="VALID")


def _conv(dtype, same, features, kernel_size, stride, name) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        strides=stride,
        padding="SAME" if same else kernel_size // 2,
        use_bias=False,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        kernel_init=_he_normal,
        # A 1x1 convolution's weight gradient is one matrix product, which XLA computes well. The
        # faster function for the others takes explicit padding only.
        conv_general_dilated=(
            convolution.conv_general_dilated if kernel_size > 1 and not same else None
        ),
        name=name,
    )


ARCHITECTURES: dict[str, tuple[tuple[int, ...], type[BasicBlock] | type[Bottleneck]]] = {
    "resnet18": ((2, 2, 2, 2), BasicBlock),
    "resnet34": ((3, 4, 6, 3), BasicBlock),
    "resnet50": ((3, 4, 6, 3), Bottleneck),
    "resnet101": ((3, 4, 23, 3), Bottleneck),
}


def create(settings: ml_collections.ConfigDict, remat: bool = False) -> ResNet:
    """Creates the encoder of a `config.encoder` group; float64 needs `jax_enable_x64`."""
    stage_sizes, block = ARCHITECTURES[settings.name]
    return ResNet(
        stage_sizes=stage_sizes,
        block=block,
        width=settings.width,
        stem=settings.stem,
        padding=settings.padding,
        dtype=settings.dtype,
        zero_init_residual=settings.zero_init_residual,
        remat=remat,
    )

"""Projectors and predictors: small networks between the encoder and the loss."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gsjax import losses
from gsjax.models.norm import BatchNorm, at_least_float32


def _uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for the weight and bias of Linear."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Projector(nn.Module):
    """Representations to embeddings: [Linear - BN - ReLU] * (num_layers - 1), then a last Linear.

    Linear layers before a BN have no bias, others have one. SimCLR's head ends with Linear(bias),
    or with a BN with scale but no bias (google-research/simclr, model_util.py); SimSiam's with a BN
    with neither (facebookresearch/simsiam, builder.py).

    Attributes:
      num_layers: number of Linear layers.
      hidden_dim: features of all but the last.
      out_dim: features of the last.
      last_bn: whether a BN follows the last layer.
      last_bn_scale: whether that BN has a scale.
      dtype: computation dtype, as `ResNet.dtype`.
      axis_name: mapped axis over whose devices training computes BN statistics, or None.
      hidden_bn: whether the other layers have a BN (not in MoCo v2).
      last_bias: whether the last layer has a bias if no BN follows it (not in MoCo v3).
    """

    num_layers: int
    hidden_dim: int
    out_dim: int
    last_bn: bool
    last_bn_scale: bool
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = "batch"
    hidden_bn: bool = True
    last_bias: bool = True

    @nn.compact
    def __call__(self, representation: jax.Array, train: bool) -> jax.Array:
        """Maps representations [N, F] to embeddings [N, out_dim] in float32 or wider."""
        linear, norm = _layers(self)
        x = representation
        for i in range(1, self.num_layers):
            bias = not self.hidden_bn
            x = linear(self.hidden_dim, x.shape[-1], use_bias=bias, name=f"linear{i}")(x)
            x = norm(relu=True, name=f"bn{i}")(x, train) if self.hidden_bn else nn.relu(x)
        last, bias = self.num_layers, self.last_bias and not self.last_bn
        x = linear(self.out_dim, x.shape[-1], use_bias=bias, name=f"linear{last}")(x)
        if self.last_bn:
            x = norm(use_scale=self.last_bn_scale, use_bias=False, name=f"bn{last}")(x, train)
        return x.astype(at_least_float32(x.dtype))


class Predictor(nn.Module):
    """Predicts another view's embedding: Linear - BN - ReLU - Linear(bias).

    As in facebookresearch/simsiam, builder.py.

    Attributes:
      hidden_dim: features of the first layer.
      out_dim: features of the second layer, equal to the embedding's.
      dtype: as in `Projector`.
      axis_name: as in `Projector`.
    """

    hidden_dim: int
    out_dim: int
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = "batch"

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        """Maps embeddings [N, D] to predictions [N, out_dim] in float32 or wider."""
        linear, norm = _layers(self)
        x = linear(self.hidden_dim, embedding.shape[-1], use_bias=False, name="linear1")(embedding)
        x = norm(relu=True, name="bn1")(x, train)
        x = linear(self.out_dim, self.hidden_dim, use_bias=True, name="linear2")(x)
        return x.astype(at_least_float32(x.dtype))


class GELUProjector(nn.Module):
    """DINO's projector: [Linear - GELU] * (num_layers - 1), then a last Linear.

    Attributes:
      num_layers: number of Linear layers.
      hidden_dim: features of all but the last.
      out_dim: features of the last, the bottleneck.
      hidden_bn: whether a BN precedes each GELU.
      dtype: computation dtype, as `ResNet.dtype`.
      axis_name: as in `Projector`.
    """

    num_layers: int
    hidden_dim: int
    out_dim: int
    hidden_bn: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32
    axis_name: str | None = "batch"

    @nn.compact
    def __call__(self, representation: jax.Array, train: bool) -> jax.Array:
        """Maps representations [N, F] to embeddings [N, out_dim] in float32 or wider."""
        x = representation
        for i in range(1, self.num_layers + 1):
            is_last = i == self.num_layers
            x = nn.Dense(
                self.out_dim if is_last else self.hidden_dim,
                dtype=self.dtype,
                param_dtype=at_least_float32(self.dtype),
                kernel_init=nn.initializers.normal(0.02),
                name=f"linear{i}",
            )(x)
            if self.hidden_bn and not is_last:
                x = BatchNorm(dtype=self.dtype, axis_name=self.axis_name, name=f"bn{i}")(x, train)
            if not is_last:
                x = nn.gelu(x, approximate=False)
        return x.astype(at_least_float32(x.dtype))


class Prototypes(nn.Module):
    """DINO's last layer: scores of the normalized embedding, by weight-normalized vectors.

    Attributes:
      number: K, prototypes.
      unit: whether the prototypes keep unit length; otherwise it is trained.
      dtype: computation dtype.
    """

    number: int
    unit: bool
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        """Maps embeddings [N, D] to scores [N, K] in float32 or wider."""
        del train
        width, wide = embedding.shape[-1], at_least_float32(self.dtype)
        shape = (width, self.number)
        directions = self.param("directions", _uniform(width), shape, wide)
        prototypes = losses.normalize(directions.T).T
        if not self.unit:
            length = self.param("length", nn.initializers.ones, (1, self.number), wide)
            prototypes = prototypes * length
        return jnp.matmul(
            losses.normalize(embedding).astype(self.dtype),
            prototypes.astype(self.dtype),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=wide,
        )


def _layers(head: Projector | Predictor):
    """Returns functions that create the head's linear and batch normalization layers."""

    def linear(features, fan_in, use_bias, name):
        init = _uniform(fan_in)
        return nn.Dense(
            features,
            use_bias=use_bias,
            dtype=head.dtype,
            param_dtype=at_least_float32(head.dtype),
            kernel_init=init,
            bias_init=init,
            name=name,
        )

    norm = functools.partial(
        BatchNorm,
        dtype=head.dtype,
        axis_name=head.axis_name,
    )
    return linear, norm

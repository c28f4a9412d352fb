"""The encoders: sizes, padding, initial weights, dtypes, batch normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from scipy import signal

from gsjax.config import defaults
from gsjax.models import resnet
from gsjax.models.norm import BatchNorm


def create(name="resnet18", width=64, stem="imagenet", **settings):
    group = defaults.get_config().encoder
    group.update(name=name, width=width, stem=stem, **settings)
    return resnet.create(group)


def variable_shapes(encoder, size=32):
    images = jnp.zeros((2, size, size, 3))
    return jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, train=True))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_176_512),
        ("resnet34", 21_284_672),
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
    ],
)
def test_parameter_counts_are_torchvisions(name, count):
    params = variable_shapes(create(name))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("name", "stem", "size", "sides", "features"),
    [
        ("resnet18", "imagenet", 224, [112, 56, 28, 14, 7], 64),
        ("resnet18", "cifar", 32, [32, 32, 16, 8, 4], 64),
        ("resnet50", "imagenet", 65, [33, 17, 9, 5, 3], 256),  # odd sides round up
        ("resnet50", "cifar", 32, [32, 32, 16, 8, 4], 256),
    ],
)
def test_sides_of_the_stages(name, stem, size, sides, features):
    encoder = create(name, width=8, stem=stem)

    def run():
        images = jnp.zeros((2, size, size, 3))
        variables = encoder.init(jax.random.key(0), images, train=True)
        return encoder.apply(variables, images, train=False, capture_intermediates=True)

    output, captured = jax.eval_shape(run)
    tree = captured["intermediates"]
    stages = ["bn1"] + [f"layer{i}_1" for i in range(1, 5)]
    assert [tree[stage]["__call__"][0].shape[1] for stage in stages] == sides
    assert [tree[stage]["__call__"][0].shape[2] for stage in stages] == sides
    assert output.pooled.shape == (2, features)
    assert output.maps.shape == (2, sides[-1], sides[-1], features)


def test_bottleneck_strides_in_its_3x3_convolution():
    encoder = create("resnet50", width=8, stem="cifar")

    def run():
        images = jnp.zeros((2, 32, 32, 3))
        variables = encoder.init(jax.random.key(0), images, train=True)
        return encoder.apply(variables, images, train=False, capture_intermediates=True)[1]

    block = jax.eval_shape(run)["intermediates"]["layer2_0"]
    shapes = [block[f"conv{i}"]["__call__"][0].shape[1:] for i in (1, 2, 3)]
    assert shapes == [(32, 32, 16), (16, 16, 16), (16, 16, 64)]


def convolve(x, kernel, stride):
    """PyTorch's convolution of x [H, W, C] with padding = size // 2, by scipy."""
    pad = kernel.shape[0] // 2
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    maps = [
        sum(signal.correlate2d(x[..., c], kernel[..., c, f], "valid") for c in range(x.shape[-1]))
        for f in range(kernel.shape[-1])
    ]
    return np.stack(maps, -1)[::stride, ::stride]


def max_pool(x):
    """PyTorch's MaxPool2d(3, stride=2, padding=1) of x [H, W, C], as a loop."""
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = range(0, x.shape[0] - 2, 2), range(0, x.shape[1] - 2, 2)
    return np.array([[x[i : i + 3, j : j + 3].max((0, 1)) for j in columns] for i in rows])


@pytest.mark.usefixtures("branch")
@pytest.mark.parametrize(("stem", "size"), [("imagenet", 32), ("imagenet", 35), ("cifar", 11)])
def test_values_against_scipy(stem, size):
    """A network of two blocks in inference, where BN only divides by sqrt(1 + eps)."""
    encoder = resnet.ResNet((1, 1), resnet.BasicBlock, 4, stem)
    encoder = encoder.clone(zero_init_residual=False)
    image = np.random.default_rng(0).normal(size=(size, size, 3)).astype(np.float32)
    variables = encoder.init(jax.random.key(0), image[None], train=True)
    params = jax.tree.map(np.asarray, variables["params"])

    def norm(x):
        return x / np.sqrt(1 + 1e-5)

    def relu(x):
        return np.maximum(x, 0)

    x = relu(norm(convolve(image, params["conv1"]["kernel"], 2 if stem == "imagenet" else 1)))
    if stem == "imagenet":
        x = max_pool(x)
    for block, stride in ((params["layer1_0"], 1), (params["layer2_0"], 2)):
        y = relu(norm(convolve(x, block["conv1"]["kernel"], stride)))
        y = norm(convolve(y, block["conv2"]["kernel"], 1))
        if stride == 2:
            x = norm(convolve(x, block["downsample_conv"]["kernel"], stride))
        x = relu(x + y)
    output = encoder.apply(variables, image[None], train=False)
    np.testing.assert_allclose(output.pooled[0], x.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.maps[0], x, rtol=1e-4, atol=1e-5)


def test_max_pool_pads_with_minus_infinity():
    """All-negative inputs keep their maximum at the border, which zeros would replace."""
    x = jnp.full((1, 5, 5, 1), -2.0)
    np.testing.assert_array_equal(resnet.max_pool(x), np.full((1, 3, 3, 1), -2.0))


def test_initial_weights():
    encoder = resnet.ResNet((1, 1), resnet.BasicBlock, 64, "imagenet")
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=True)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *_, block, layer, name = ["", *(key.key for key in path)]
        if name == "kernel":
            height, width, _, features = leaf.shape
            std = np.sqrt(2 / (height * width * features))
            np.testing.assert_allclose(np.std(leaf), std, rtol=0.05)
            if leaf.size > 100_000:  # a normal cut off at 2 would end there
                assert np.abs(leaf).max() > 4 * std
        elif name == "scale":
            last = layer == "bn2" and block.startswith("layer")
            np.testing.assert_array_equal(leaf, 0.0 if last else 1.0)
        else:
            np.testing.assert_array_equal(leaf, 0.0)
    statistics = variables["batch_stats"]["layer1_0"]["bn1"]
    np.testing.assert_array_equal(statistics["mean"], 0.0)
    np.testing.assert_array_equal(statistics["var"], 1.0)


@pytest.mark.parametrize(
    ("block", "last"), [(resnet.BasicBlock, "bn2"), (resnet.Bottleneck, "bn3")]
)
def test_zero_init_residual(block, last):
    """Without a downsampling a block starts as its shortcut; without the setting, it does not."""
    for zero in (True, False):
        encoder = resnet.ResNet((2,), block, 4, "cifar", zero_init_residual=zero)
        images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
        variables = encoder.init(jax.random.key(0), images, train=True)
        scale = variables["params"]["layer1_0"][last]["scale"]
        np.testing.assert_array_equal(scale, 0.0 if zero else 1.0)
        captured = encoder.apply(variables, images, train=False, capture_intermediates=True)[1]
        tree = captured["intermediates"]
        before, after = (tree[f"layer1_{i}"]["__call__"][0] for i in (0, 1))
        assert np.array_equal(before, after) == zero
        assert np.abs(before).max() > 0


@pytest.mark.parametrize(
    ("dtype", "wide"), [("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64")]
)
def test_dtypes(dtype, wide):
    with jax.enable_x64(dtype == "float64"):
        encoder = create(width=8, stem="cifar", dtype=dtype).clone(axis_name=None)

        def run():
            images = jnp.zeros((2, 8, 8, 3))
            variables = encoder.init(jax.random.key(0), images, train=True)
            mutable = ["batch_stats", "intermediates"]
            output, changed = encoder.apply(
                variables, images, train=True, mutable=mutable, capture_intermediates=True
            )
            return variables, output, changed

        variables, output, changed = jax.eval_shape(run)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {wide}
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(changed["batch_stats"])} == {wide}
        assert output.pooled.dtype == output.maps.dtype == wide
        blocks = changed["intermediates"]
        assert blocks["conv1"]["__call__"][0].dtype == dtype
        assert blocks["layer4_1"]["__call__"][0].dtype == dtype


@pytest.mark.usefixtures("branch")
def test_batch_norm_is_flaxs():
    """Values and running statistics of `flax.linen.BatchNorm`, and its variable names."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(1.0, 3.0, (6, 4, 5, 3)))
        ours = BatchNorm(dtype="float64", axis_name=None)
        flax = nn.BatchNorm(
            momentum=0.9, epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float64
        )
        scale, bias = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.1, 0.2, -0.3])
        initial = ours.init(jax.random.key(0), x, train=True)
        reference = flax.init(jax.random.key(0), x, use_running_average=False)
        jax.tree.map(np.testing.assert_array_equal, initial, reference)
        for train in (True, False):
            statistics = {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([4.0, 5.0, 6.0])}
            variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}
            actual = ours.apply(variables, x, train, mutable=["batch_stats"])
            expected = flax.apply(variables, x, not train, mutable=["batch_stats"])
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, expected
            )
            with_relu, _ = ours.clone(relu=True).apply(variables, x, train, mutable=["batch_stats"])
            np.testing.assert_allclose(with_relu, np.maximum(expected[0], 0), atol=1e-12)


def test_running_variance_is_biased():
    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 2))
    norm = BatchNorm(axis_name=None)
    variables = norm.init(jax.random.key(0), jnp.asarray(x, jnp.float32), train=True)
    _, changed = norm.apply(variables, jnp.asarray(x, jnp.float32), True, mutable=["batch_stats"])
    statistics = changed["batch_stats"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var(0), rtol=1e-5)


def test_the_platform_changes_neither_values_nor_gradients(monkeypatch):
    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(0).normal(size=(5, 16, 16, 3)))
        results = []
        for platform in ("cpu", "default"):
            monkeypatch.setattr(
                lax, "platform_dependent", lambda *x, p=platform, **branches: branches[p](*x)
            )
            encoder = resnet.ResNet((1,), resnet.Bottleneck, 4, "cifar", "float64", False)
            encoder = encoder.clone(axis_name=None)
            variables = encoder.init(jax.random.key(0), images, train=True)

            def loss(params, encoder=encoder, variables=variables):
                variables = variables | {"params": params}
                y, changed = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
                return jnp.sum(jnp.sin(9 * y.pooled)), changed

            results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), *results)
        assert max(np.abs(g).max() for g in jax.tree.leaves(results[0][1])) > 1e-2

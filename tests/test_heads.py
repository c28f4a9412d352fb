"""Projector and predictor: layers, biases, initial weights, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsjax import methods
from gsjax.config import settings
from gsjax.models.heads import Predictor, Projector


def shapes(tree):
    return {
        "/".join(str(key.key) for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def init(head, features=24):
    return head.init(jax.random.key(0), jnp.zeros((2, features)), train=True)


BN1 = {"bn1/scale": (32,), "bn1/bias": (32,)}


def test_simclr_projector_has_a_bias_at_the_end_only():
    params = init(Projector(2, 32, 8, last_bn=False, last_bn_scale=True))["params"]
    expected = {"linear1/kernel": (24, 32), "linear2/kernel": (32, 8), "linear2/bias": (8,)}
    assert shapes(params) == expected | BN1


def test_last_bn_of_simclr_has_a_scale():
    params = init(Projector(2, 32, 8, last_bn=True, last_bn_scale=True))["params"]
    expected = {"linear1/kernel": (24, 32), "linear2/kernel": (32, 8), "bn2/scale": (8,)}
    assert shapes(params) == expected | BN1


def test_simsiam_projector_ends_with_bn_without_parameters():
    variables = init(Projector(3, 32, 8, last_bn=True, last_bn_scale=False))
    expected = {
        "linear1/kernel": (24, 32),
        "linear2/kernel": (32, 32),
        "linear3/kernel": (32, 8),
        "bn2/scale": (32,),
        "bn2/bias": (32,),
    }
    assert shapes(variables["params"]) == expected | BN1
    assert shapes(variables["batch_stats"])["bn3/mean"] == (8,)


def test_predictor_layers():
    params = init(Predictor(32, 8))["params"]
    expected = {"linear1/kernel": (24, 32), "linear2/kernel": (32, 8), "linear2/bias": (8,)}
    assert shapes(params) == expected | BN1


@pytest.mark.parametrize("last_bn", [False, True])
def test_mocov3_heads_have_no_bias_and_bn_without_parameters_at_the_end(last_bn):
    """moco/builder.py, _build_mlp: the predictor of a ResNet has no last BN, a ViT's does."""
    changes = {
        "method": "mocov3", "projector.last_bn": "true", "predictor.last_bn": str(last_bn),
        "projector.hidden_dim": "32", "projector.out_dim": "8", "predictor.hidden_dim": "16",
    }  # fmt: skip
    config = settings.load(None)
    settings.override(config, changes)
    networks = methods.create_method(settings.check(config)).networks
    params = init(networks["projector"])["params"]
    assert shapes(params) == {"linear1/kernel": (24, 32), "linear2/kernel": (32, 8)} | BN1
    variables = init(networks["predictor"], features=8)
    expected = {"linear1/kernel": (8, 16), "linear2/kernel": (16, 8)}
    assert shapes(variables["params"]) == expected | {"bn1/scale": (16,), "bn1/bias": (16,)}
    assert ("bn2" in variables["batch_stats"]) == last_bn


@pytest.mark.usefixtures("branch")
def test_values_against_numpy():
    def normalize(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    x = np.random.default_rng(0).normal(size=(16, 24))
    options = {"axis_name": None}
    simclr = Projector(2, 32, 8, last_bn=False, last_bn_scale=True, **options)
    simsiam = Projector(2, 32, 8, last_bn=True, last_bn_scale=False, **options)
    for head in (simclr, simsiam, Predictor(32, 8, **options)):
        variables = init(head)
        params = jax.tree.map(np.asarray, variables["params"])
        expected = np.maximum(normalize(x @ params["linear1"]["kernel"]), 0)
        expected = expected @ params["linear2"]["kernel"]
        if head is simsiam:
            expected = normalize(expected)
        else:
            expected = expected + params["linear2"]["bias"]
        y, _ = head.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_initial_weights_are_uniform_in_the_inverse_root_of_fan_in():
    params = init(Predictor(hidden_dim=1024, out_dim=2000), features=100)["params"]
    weights = [
        (params["linear1"]["kernel"], 100),
        (params["linear2"]["kernel"], 1024),
        (params["linear2"]["bias"], 1024),
    ]
    for weight, fan_in in weights:
        bound = fan_in**-0.5
        assert bound * 0.99 < np.abs(weight).max() <= bound
        np.testing.assert_allclose(np.std(weight), bound / 3**0.5, rtol=0.05)
        assert abs(np.mean(weight)) < bound * 0.05


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "out_dtype"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float64", "float64", "float64"),
    ],
)
def test_dtypes(dtype, param_dtype, out_dtype):
    with jax.enable_x64(dtype == "float64"):
        for head in (Projector(2, 32, 8, True, True, dtype), Predictor(32, 8, dtype)):
            variables = init(head)
            assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {param_dtype}
            x = jax.random.normal(jax.random.key(1), (4, 24))
            assert head.apply(variables, x, train=False).dtype == out_dtype
            hidden = head.apply(variables, x, train=False, capture_intermediates=True)[1]
            assert hidden["intermediates"]["linear1"]["__call__"][0].dtype == dtype

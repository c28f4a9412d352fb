"""The training state, the step, the loop and the job `pretrain`; the table of optimizers.

Importing it loads neither an optimizer nor JAX. An optimizer is a function (settings,
learning_rate) -> optax.GradientTransformation; it takes the settings group `optimizer` and a number
or schedule.
"""

from gsjax.config.schema import Row, shapes

OPTIMIZERS: dict[str, Row] = {
    "lars": Row(
        "gsjax.train.optimizers",
        "layer-wise rates for large batches (You et al. 2017)",
        {"optimizer.trust_coefficient": shapes(0.001, "lars only")},
        function="lars",
    ),
    "sgd": Row("gsjax.train.optimizers", "SGD with momentum, as in PyTorch", function="sgd"),
}
